"""The daemon process: start, signals, reload, drain, exit."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any, Final

from oinetd.errors import ConfigError, OinetdError
from oinetd.forwarder import Forwarder
from oinetd.model import Config
from oinetd.observe.process_log import ProcessLog
from oinetd.observe.text import number_of
from oinetd.process.administration import Administration
from oinetd.process.background import Handover
from oinetd.process.config_watch import ConfigWatch
from oinetd.process.context import HELD_SIGNALS, raise_descriptor_limit
from oinetd.process.invocation import EX_OK, Options, exit_code
from oinetd.process.paths import with_absolute_paths
from oinetd.process.pidfile import PidFile, exchanged
from oinetd.process.privileges import drop_root
from oinetd.process.replacement import Replacement, adopt_files, report_document
from oinetd.process.service_manager import ServiceManager
from oinetd.process.signals import handle_signals
from oinetd.process.socket_activation import Inherited
from oinetd.process.waiting import unless
from oinetd.upgrade.give import UpgradeFailed
from oinetd.upgrade.take import GaveUp, Taker

__all__ = ["Daemon"]

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
"""A start that gets one of these before it has opened anything exits at once, with code 0."""

logger = logging.getLogger("oinetd")


class _Stopped(Exception):
    """A signal to stop came while the configuration was read."""


def _stop(*_: object) -> None:
    raise _Stopped


class Daemon:
    """One process that serves one configuration file: `prepare`, then `run`.

    `failure` is the error message of a failed start.
    """

    def __init__(
        self,
        options: Options,
        base: str,
        process_log: ProcessLog,
        manager: ServiceManager,
        handover: Handover | None,
        taker: Taker | None = None,
    ) -> None:
        self.failure = ""
        self._options = options
        self._base = base  # the directory of relative paths in the configuration
        self._process_log = process_log
        self._manager = manager
        self._handover = handover
        self._forwarder: Forwarder | None = None
        self._pid_file: PidFile | None = None
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()
        self._serving = False
        self._reload_wanted = False
        self._reloading: asyncio.Task[None] | None = None
        self._watch = ConfigWatch(self._want_reload)
        self._administration = Administration(options, os.environ, self._on_reload, self._upgrade)
        self._taker = taker
        self._replacement = Replacement(options, base, sys.argv[1:], manager, self._administration)
        self._upgrading: asyncio.Future[Mapping[str, Any]] | None = None
        self._replaced = False

    def prepare(self, sockets: Inherited) -> int | None:
        """Read the configuration, open the files, and drop root; returns the exit code if the start ends here.

        The process must have one thread: capabilities belong to threads, and later threads inherit what is left.
        Sockets are bound afterwards with the one capability that is kept, and names are resolved as the new user.
        """
        try:
            for number in STOP_SIGNALS:
                signal.signal(number, _stop)
            config = self._absolute(self._options.load())
            # From here on there is something to clean up, so stop signals wait for their handlers in the loop.
            signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
            self._open(config, sockets)
        except _Stopped:
            return EX_OK
        except (OinetdError, OSError) as error:
            code = self._failed(error)
            if self._pid_file is not None:
                self._pid_file.release()
            self._administration.shut()
            return code
        return None

    def _open(self, config: Config, sockets: Inherited) -> None:
        raise_descriptor_limit()
        adopted, log = False, -1
        pid_file = PidFile(config.pid_file) if config.pid_file else None
        if self._taker is not None:
            adopted, log = adopt_files(self._taker, pid_file, self._administration, config.log.file)
        if pid_file is not None:
            if not adopted:
                pid_file.acquire()
            self._pid_file = pid_file
        self._administration.open(config)
        self._manager.keeps(sockets.names if self._taker is None else self._taker.facts.get("stored", {}))
        self._forwarder = Forwarder(config, inherited=sockets.passed, lent=sockets.lent, hold_back=bool(self._taker))
        self._forwarder.open_log(log)
        if self._options.identity is not None and self._taker is None:
            drop_root(self._options.identity, config)

    async def run(self) -> int:
        """Start, serve, drain and stop; returns the exit code."""
        self._handle_signals()
        code = EX_OK
        assert self._forwarder is not None
        try:
            if self._taker is None:
                self._administration.start(self._forwarder)
            if await unless(self._stop, self._start()):
                await self._serve()
        except GaveUp:
            pass  # `_leave` below
        except (OinetdError, OSError) as error:
            code = self._failed(error)
        finally:
            if self._taker is not None:
                (self._administration.own_files if self._taker.finished else self._leave)()
            await self._forwarder.stop()
            await self._administration.close()
            if self._pid_file is not None:
                self._pid_file.release()
        return code

    def _failed(self, error: OinetdError | OSError) -> int:
        self.failure = str(error) if isinstance(error, ConfigError) else f"oinetd: {error}"
        if self._taker is not None and not self._serving:
            self._taker.failed(exit_code(error), self.failure)
            self._leave()
            self.failure = ""  # the old process tells it
        return exit_code(error)

    def _leave(self) -> None:
        """Another process has the files of this one."""
        if self._pid_file is not None:
            self._pid_file.leave()
            self._pid_file = None
        self._administration.leave_files()
        if self._forwarder is not None and self._forwarder.started:
            self._forwarder.moves.leave()

    # Start

    async def _start(self) -> None:
        assert self._forwarder is not None
        await self._forwarder.start()
        if self._taker is not None:
            self._forwarder.restore_servers(self._taker.facts.get("servers", ()), counters=False)
            last = await self._taker.take(self._forwarder.moves)
            self._forwarder.restore_servers(last.get("servers", ()), counters=True)
            self._forwarder.settle_in(reopen=bool(last.get("reopen")))
            self._reload_wanted = bool(last.get("reload"))
            if last.get("stop"):
                self._stop.set()
            if not self._options.foreground:
                self._process_log.to_syslog()
            self._administration.start(self._forwarder)
        if self._pid_file is not None:
            self._pid_file.write()
        if self._handover is not None:
            self._process_log.to_syslog()
            if not self._handover.ready():
                logger.info("parent process has exited: stopping")
                self._stop.set()

    def _absolute(self, config: Config) -> Config:
        return with_absolute_paths(config, self._options, self._base)

    # Serve

    async def _serve(self) -> None:
        """Serve until the first stop signal, then drain."""
        assert self._forwarder is not None
        forwarder = self._forwarder
        self._administration.ready()
        self._manager.ready(self._status())
        self._manager.store(self._forwarder.stored())
        self._tick()
        self._serving = True
        self._watch.follow(forwarder.config)
        self._reload_if_wanted()
        await self._stop.wait()
        self._serving = False
        self._watch.close()
        if self._upgrading is not None and not self._upgrading.done():
            self._upgrading.cancel()
            await asyncio.wait({self._upgrading})
        if self._replaced:
            self._leave()
            await self._administration.flush()
        self._administration.draining()
        if self._reloading is not None:
            self._reloading.cancel()
            await asyncio.wait({self._reloading})
        left = len(forwarder.sessions())
        timeout_s = forwarder.config.drain_timeout_s
        word = f"draining {number_of(left, 'session')}, timeout {timeout_s:g} s" if left else "no open sessions"
        logger.info("%s: %s", "replaced" if self._replaced else "stopping", word)
        if not self._replaced:
            self._manager.stopping(f"Stopping: {word}")
        if not await unless(self._stop_now, forwarder.drain(timeout_s)):
            logger.info("second stop signal: closing all sessions now")

    def _tick(self) -> None:
        if self._manager.watchdog_s:
            self._manager.alive()
            asyncio.get_running_loop().call_later(self._manager.watchdog_s, self._tick)

    def _status(self) -> str:
        assert self._forwarder is not None
        return f"Forwarding from {number_of(len(self._forwarder.addresses), 'address')}"

    # Signals

    def _handle_signals(self) -> None:
        handle_signals({
            signal.SIGTERM: self._on_stop,
            signal.SIGINT: self._on_stop,
            signal.SIGHUP: self._on_reload,
            signal.SIGUSR1: self._on_reopen,
            signal.SIGUSR2: self._administration.log_status,
        })  # fmt: skip
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (*HELD_SIGNALS, *STOP_SIGNALS))

    def _on_stop(self) -> None:
        if not self._replacement.keep_stop():
            (self._stop_now if self._stop.is_set() else self._stop).set()

    def _on_reload(self) -> None:
        # First and always: the log file may have been renamed, to be compressed soon.
        self._on_reopen()
        self._want_reload()

    def _want_reload(self) -> None:
        self._reload_wanted = True
        self._reload_if_wanted()

    def _reload_if_wanted(self) -> None:
        """Start a reload if one is wanted, none is running, and the process serves."""
        if self._reload_wanted and self._serving and self._reloading is None:
            self._reloading = asyncio.get_running_loop().create_task(self._reload())

    def _on_reopen(self) -> None:
        if self._forwarder is not None:
            self._forwarder.reopen_log()

    # Upgrade

    async def _upgrade(self, program: str, dry_run: bool) -> Mapping[str, Any]:
        """Let a new process take everything over; this one ends then. Raises `UpgradeFailed`."""
        if self._upgrading is not None:
            raise UpgradeFailed("another upgrade is under way")
        self._upgrading = asyncio.ensure_future(self._replace(program, dry_run))
        return await asyncio.shield(self._upgrading)  # it goes on if nobody waits for the answer any more

    async def _replace(self, program: str, dry_run: bool) -> Mapping[str, Any]:
        assert self._forwarder is not None
        self._serving = False  # a reload waits, and is done by the new process or after a failure
        try:
            if self._reloading is not None:
                await asyncio.wait({self._reloading})
            report = await self._replacement.run(
                self._forwarder, self._pid_file, program=program, dry_run=dry_run, reload=lambda: self._reload_wanted
            )
        except BaseException as error:
            logger.error("upgrade failed, this process goes on: %s", error)
            self._goes_on()
            if isinstance(error, OSError):  # no descriptor, say
                raise UpgradeFailed(f"{error}; free what is short and try again") from error
            raise
        if dry_run:
            self._goes_on()
        else:
            self._replaced = True
            self._stop.set()
        return report_document(report)

    def _goes_on(self) -> None:
        """The upgrade is over, and this process serves."""
        self._upgrading = None
        if self._replacement.take_stop():
            self._stop.set()
        self._serving = not self._stop.is_set()
        self._reload_if_wanted()

    # Reload

    async def _reload(self) -> None:
        """Reload once for all SIGHUPs so far; SIGHUPs that come meanwhile cause one more reload together."""
        try:
            while self._reload_wanted:
                self._reload_wanted = False
                self._manager.reloading()
                self._manager.ready(await self._reload_once())
        finally:
            self._reloading = None

    async def _reload_once(self) -> str:
        """Apply the file as it is now, or change nothing; returns the new status."""
        waiting = self._administration.reload_begins()
        try:
            # In a thread: a network disk may be slow.
            config = self._absolute(await asyncio.to_thread(self._options.load))
            async with self._administration.change(config):
                await self._put_in_force(config)
        except (OinetdError, OSError) as error:
            self._administration.reload_ends(waiting, error)
            logger.error("reload failed, configuration unchanged: %s", error)
            self._watch.failed(error)
            return f"{self._status()}; the last reload failed: {error}"
        except Exception as error:
            # A bug in oinetd. The old configuration is still in force, so the process goes on.
            self._administration.reload_ends(waiting, error)
            logger.exception("reload failed: internal error")
            return f"{self._status()}; the last reload failed: {error!r}"
        self._watch.follow(config)
        self._administration.reload_ends(waiting, None)
        logger.info("reloaded %s", self._options.conf_file or "the lines of the command line")
        return self._status()

    async def _put_in_force(self, config: Config) -> None:
        assert self._forwarder is not None
        with exchanged(self._pid_file, config.pid_file) as pid_file:
            await self._forwarder.reload(config)
        self._pid_file = pid_file
        self._manager.store(self._forwarder.stored())
