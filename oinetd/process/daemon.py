"""The process: start, signals, reload, drain, end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from dataclasses import replace
from socket import socket
from typing import Any, Final

from oinetd.config import load_config
from oinetd.core.safe_open import give_empty_file
from oinetd.errors import ConfigError, OinetdError, Problem
from oinetd.forwarder import Forwarder
from oinetd.model import Config
from oinetd.observe.connection_log import Journal
from oinetd.observe.process_log import Messages
from oinetd.observe.status import summary
from oinetd.process.background import Handover, split
from oinetd.process.context import HELD_SIGNALS, close_inherited, raise_descriptor_limit, working_directory
from oinetd.process.eventloop import loop_factory
from oinetd.process.inherited import inherited_sockets
from oinetd.process.invocation import EX_OK, Options, exit_code
from oinetd.process.pidfile import PidFile
from oinetd.process.privileges import Identity
from oinetd.process.service_manager import ServiceManager

__all__ = ["Daemon", "run"]

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
"""A start that is stopped before it has opened anything ends at once, with exit code 0."""

logger = logging.getLogger("oinetd")


def run(options: Options) -> int:
    """Serve until a signal ends it; returns the exit code. Without `foreground` it returns when the daemon serves."""
    pid, base = os.getpid(), working_directory()
    handover = None
    if not options.foreground:
        close_inherited(os.environ, pid)
        answer = split()
        if isinstance(answer, int):
            return answer
        handover = answer
        # The daemon goes to the root directory, and reads the file again at each reload.
        options = replace(options, conf_file=os.path.join(base, options.conf_file))
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)
    messages = Messages(options.log_level, os.environ)
    sockets = inherited_sockets(os.environ, pid)
    daemon = Daemon(options, base, messages, ServiceManager.of(os.environ, pid), handover)
    factory = loop_factory()  # before `prepare`, after which the interpreter's files may be closed to the process
    code = daemon.prepare(sockets)
    if code is None:
        messages.write_in_background()
        # Not closed: see the last lines.
        runner = asyncio.Runner(loop_factory=factory)
        code = runner.run(daemon.run())
    messages.close()
    if daemon.failure:
        print(daemon.failure, file=sys.stderr)
    if handover is not None:
        handover.failed(code)
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything is closed and written. What may be left is a thread that waits for a name server, and an ordinary
    # exit would wait for that thread, half a minute or more.
    os._exit(code)


class _Stopped(Exception):
    """A signal to stop came while the configuration was read."""


def _stop(*_: object) -> None:
    raise _Stopped


class Daemon:
    """One process that serves one configuration file: `prepare`, then `run`.

    `failure` is what is to be said of a start that failed.
    """

    def __init__(
        self, options: Options, base: str, messages: Messages, manager: ServiceManager, handover: Handover | None
    ) -> None:
        self.failure = ""
        self._options = options
        self._base = base  # what relative names in the configuration start from
        self._messages = messages
        self._manager = manager
        self._handover = handover
        self._forwarder: Forwarder | None = None
        self._pid_file: PidFile | None = None
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._serving = False
        self._reload_wanted = False
        self._reloading: asyncio.Task[None] | None = None

    def prepare(self, sockets: tuple[socket, ...]) -> int | None:
        """Read the configuration, open the files, and give up root; the exit code if the start ends here.

        All of it while the process has one thread: capabilities belong to threads, and those that are started later
        take over what is left. Sockets are bound after it, with the one capability that is kept, and names are looked
        up by the user that serves.
        """
        try:
            for number in STOP_SIGNALS:
                signal.signal(number, _stop)
            config = self._resolve(load_config(self._options.conf_file))
            # From here on there is something to clean up: a signal to stop waits for its handler in the loop.
            signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
            self._open(config, sockets)
        except _Stopped:
            return EX_OK
        except (OinetdError, OSError) as error:
            if self._pid_file is not None:
                self._pid_file.release()
            return self._failed(error)
        return None

    def _open(self, config: Config, sockets: tuple[socket, ...]) -> None:
        raise_descriptor_limit()
        if config.pid_file:
            pid_file = PidFile(config.pid_file)
            pid_file.acquire()
            self._pid_file = pid_file
        self._forwarder = Forwarder(config, inherited=sockets)
        self._forwarder.open_log()
        if self._options.identity is not None:
            self._become(self._options.identity, config)

    async def run(self) -> int:
        """The life of the process; returns the exit code."""
        self._handle_signals()
        code = EX_OK
        assert self._forwarder is not None
        try:
            if await self._unless(self._stop, self._start()):
                await self._serve()
        except (OinetdError, OSError) as error:
            code = self._failed(error)
        finally:
            await self._forwarder.stop()
            if self._pid_file is not None:
                self._pid_file.release()
        return code

    def _failed(self, error: OinetdError | OSError) -> int:
        self.failure = str(error) if isinstance(error, ConfigError) else f"oinetd: {error}"
        return exit_code(error)

    # Start

    async def _start(self) -> None:
        assert self._forwarder is not None
        await self._forwarder.start()
        if self._pid_file is not None:
            self._pid_file.write()
        if self._handover is not None:
            self._messages.to_syslog()
            if not self._handover.ready():
                logger.info("whoever started oinetd has gone: ending")
                self._stop.set()

    def _resolve(self, config: Config) -> Config:
        """`config` under the command line's words, with no name relative to a directory. Raises `ConfigError`."""
        config = self._options.over(config)
        if config.pid_file:
            config = replace(config, pid_file=self._absolute("pid file", config.pid_file))
        if Journal.is_standard_stream(config.log):
            if not self._options.foreground:
                hint = "name a file, or stay in the foreground (-f)"
                raise ConfigError(Problem(f"logfile {config.log.file}: a daemon has no standard output", hint=hint))
        elif config.log.file:
            config = replace(config, log=replace(config.log, file=self._absolute("logfile", config.log.file)))
        return config

    def _absolute(self, what: str, path: str) -> str:
        if not self._base and not os.path.isabs(path):
            hint = "start oinetd in another directory, or give the name from / on"
            raise ConfigError(Problem(f"{what} {path}: the working directory has been removed", hint=hint))
        return os.path.join(self._base, path)

    @staticmethod
    def _become(identity: Identity, config: Config) -> None:
        """Give up root. A log that was just made is given to the new user, who has to open it again; nothing else."""
        log = config.log.file
        if log and not Journal.is_standard_stream(config.log):
            with contextlib.suppress(FileNotFoundError):
                give_empty_file(log, identity.uid, identity.gid)
        identity.assume()

    # Serve

    async def _serve(self) -> None:
        """Serve until the first signal to stop, then drain."""
        assert self._forwarder is not None
        forwarder = self._forwarder
        self._manager.ready(self._status())
        self._tick()
        self._serving = True
        self._reload_if_wanted()
        await self._stop.wait()
        self._serving = False
        if self._reloading is not None:
            self._reloading.cancel()
            await asyncio.wait({self._reloading})
        left = len(forwarder.sessions())
        patience_s = forwarder.config.drain_timeout_s
        word = f"{left} sessions have {patience_s:g} s to end" if left else "no session is open"
        logger.info("stopping: %s", word)
        self._manager.stopping(f"Stopping: {word}")
        if not await self._unless(self._hurry, forwarder.drain(patience_s)):
            logger.info("told again: ending at once")

    @staticmethod
    async def _unless(event: asyncio.Event, work: Coroutine[Any, Any, object]) -> bool:
        """Do `work`, but give it up when `event` comes first; whether it was done. Raises what `work` raises."""
        doing, waiting = asyncio.ensure_future(work), asyncio.ensure_future(event.wait())
        await asyncio.wait({doing, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        done = doing.done()
        doing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await doing
        return done

    def _tick(self) -> None:
        if self._manager.watchdog_s:
            self._manager.alive()
            asyncio.get_running_loop().call_later(self._manager.watchdog_s, self._tick)

    def _status(self) -> str:
        assert self._forwarder is not None
        return f"Forwarding from {len(self._forwarder.addresses)} addresses"

    # Signals

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        answers: dict[signal.Signals, Callable[[], None]] = {
            signal.SIGTERM: self._on_stop,
            signal.SIGINT: self._on_stop,
            signal.SIGHUP: self._on_reload,
            signal.SIGUSR1: self._on_reopen,
            signal.SIGUSR2: self._on_summary,
        }
        for number, answer in answers.items():
            loop.add_signal_handler(number, answer)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (*HELD_SIGNALS, *STOP_SIGNALS))

    def _on_stop(self) -> None:
        (self._hurry if self._stop.is_set() else self._stop).set()

    def _on_reload(self) -> None:
        # At once, whatever becomes of the reload: the file may have been moved away, and be compressed soon.
        self._on_reopen()
        self._reload_wanted = True
        self._reload_if_wanted()

    def _reload_if_wanted(self) -> None:
        """Begin a reload, unless one runs: that one will see the wish. Before and after serving there is none."""
        if self._reload_wanted and self._serving and self._reloading is None:
            self._reloading = asyncio.get_running_loop().create_task(self._reload())

    def _on_reopen(self) -> None:
        if self._forwarder is not None:
            self._forwarder.reopen_log()

    def _on_summary(self) -> None:
        if self._forwarder is not None:
            for line in summary(self._forwarder.stats(), self._forwarder.sessions(), self._forwarder.destinations()):
                logger.info("%s", line)

    # Reload

    async def _reload(self) -> None:
        """Answer every SIGHUP until now; those that come meanwhile are answered together, by one more turn."""
        try:
            while self._reload_wanted:
                self._reload_wanted = False
                self._manager.reloading()
                self._manager.ready(await self._reload_once())
        finally:
            self._reloading = None

    async def _reload_once(self) -> str:
        """Put the file as it is now in force, or leave everything as it was; returns the new status."""
        try:
            # Read in a thread: a network disk may be slow.
            config = await asyncio.to_thread(load_config, self._options.conf_file)
            await self._put_in_force(self._resolve(config))
        except (OinetdError, OSError) as error:
            logger.error("reload failed, everything stays as it was: %s", error)
            return f"{self._status()}; the last reload failed: {error}"
        except Exception as error:
            # A fault in oinetd itself: the old configuration serves on, and that is worth more than an early end.
            logger.exception("reload failed")
            return f"{self._status()}; the last reload failed: {error!r}"
        logger.info("reloaded %s", self._options.conf_file)
        return self._status()

    async def _put_in_force(self, config: Config) -> None:
        assert self._forwarder is not None
        old = self._pid_file
        if config.pid_file == (old.path if old else ""):
            await self._forwarder.reload(config)
            return
        new = PidFile(config.pid_file) if config.pid_file else None
        try:
            if new is not None:
                new.acquire()
                new.write()
            await self._forwarder.reload(config)
        except BaseException:
            if new is not None:
                new.release()
            raise
        self._pid_file = new
        if old is not None:
            old.release()
