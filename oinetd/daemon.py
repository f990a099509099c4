"""The process: start, signals, reload, drain, end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import stat
import sys
from collections.abc import Callable, Coroutine
from dataclasses import replace
from socket import socket
from typing import Any, Final

from oinetd.background import Handover, split
from oinetd.config import load_config
from oinetd.errors import ConfigError, OinetdError
from oinetd.eventloop import loop_factory
from oinetd.forwarder import Forwarder
from oinetd.inherited import inherited_sockets
from oinetd.invocation import EX_OK, Options, exit_code
from oinetd.messages import Messages
from oinetd.model import Config
from oinetd.notify import ServiceManager
from oinetd.pidfile import PidFile
from oinetd.privileges import Identity
from oinetd.summary import summary

__all__ = ["Daemon", "run"]

DESCRIPTORS_MAX: Final = 1_048_576
"""The soft limit of descriptors is raised to the hard one, but not beyond this, the kernel's usual `fs.nr_open`."""

HELD_SIGNALS: Final = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Held back until there are handlers: at their default they would end the process."""

logger = logging.getLogger("oinetd")


def run(options: Options) -> int:
    """Serve until a signal ends it; returns the exit code. Without `foreground` it returns when the daemon serves."""
    pid, base = os.getpid(), os.getcwd()
    handover = None
    if not options.foreground:
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
    # Not closed: see the last lines.
    runner = asyncio.Runner(loop_factory=loop_factory())
    code = runner.run(daemon.run(sockets))
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


class Daemon:
    """One process that serves one configuration file.

    `failure` is, after `run`, what is to be said of a start that failed.
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

    async def run(self, sockets: tuple[socket, ...]) -> int:
        """The life of the process; returns the exit code."""
        self._handle_signals()
        code = EX_OK
        try:
            if await self._unless(self._stop, self._start(sockets)):
                await self._serve()
        except (OinetdError, OSError) as error:
            code = exit_code(error)
            self.failure = str(error) if isinstance(error, ConfigError) else f"oinetd: {error}"
        finally:
            if self._forwarder is not None:
                await self._forwarder.stop()
            if self._pid_file is not None:
                self._pid_file.release()
        return code

    # Start

    async def _start(self, sockets: tuple[socket, ...]) -> None:
        config = await self._load()
        _raise_descriptor_limit()
        if config.pid_file:
            self._pid_file = PidFile(config.pid_file)
            self._pid_file.acquire()
        self._forwarder = Forwarder(config, inherited=sockets)
        await self._forwarder.start()
        if self._pid_file is not None:
            self._pid_file.write()
        if self._options.identity is not None:
            self._become(self._options.identity, config)
        if self._handover is not None:
            self._messages.to_syslog()
            if not self._handover.ready():
                logger.info("whoever started oinetd has gone: ending")
                self._stop.set()

    async def _load(self) -> Config:
        """The configuration as it is now, under the command line's words, with no name relative to a directory.

        Read in a thread: a network disk may be slow.
        """
        config = self._options.over(await asyncio.to_thread(load_config, self._options.conf_file))
        if config.pid_file:
            config = replace(config, pid_file=os.path.join(self._base, config.pid_file))
        if config.log.file and config.log.file != "-":
            config = replace(config, log=replace(config.log, file=os.path.join(self._base, config.log.file)))
        return config

    def _become(self, identity: Identity, config: Config) -> None:
        """Give up root; what has to be written later is given to the new user before."""
        if self._pid_file is not None:
            self._pid_file.give_to(identity.uid, identity.gid)
        log = config.log.file
        with contextlib.suppress(FileNotFoundError):
            if log and stat.S_ISREG(os.lstat(log).st_mode):
                os.chown(log, identity.uid, identity.gid, follow_symlinks=False)
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
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_SIGNALS)

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
            await self._put_in_force(await self._load())
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


def _raise_descriptor_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_MAX if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS_MAX)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError) as error:  # a filter of system calls, a kernel that allows fewer
            logger.warning("the limit of descriptors stays at %d: %s", soft, error)
