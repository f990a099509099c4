"""`oinetd upgrade` in the daemon: what the old process gives besides sessions, and what the new one does with it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import stat
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

from oinetd.forwarder import Forwarder
from oinetd.model import Config
from oinetd.net.passed import passed_listener
from oinetd.observe.text import number_of
from oinetd.process.administration import Administration
from oinetd.process.invocation import Options
from oinetd.process.pidfile import PidFile
from oinetd.process.privileges import has_ambient, keep_to_oneself, passed_on
from oinetd.process.service_manager import ServiceManager
from oinetd.upgrade.give import Giver, Report, UpgradeFailed, child_environment, is_trusted
from oinetd.upgrade.take import Taker

__all__ = ["Replacement", "adopt_files", "new_command", "report_document"]

logger = logging.getLogger("oinetd")

CONNECT_MARGIN_S: Final = 1.0
"""Sessions that are connecting are waited for this much longer than their connect-timeout."""
CONNECT_WAIT_MAX_S: Final = 60.0
"""And no longer than this: the new process hears nothing meanwhile, and must not take this one for dead."""

PID_FILE: Final = "pid "
ADMIN: Final = "admin "
LOG: Final = "log "
"""Beginnings of the names of files; the rest is the path."""


def new_command(options: Options, words: list[str], base: str, program: str = "") -> list[str]:
    """The command of the new process: the interpreter as it was started, or another `program`, with the same words.

    The new process starts in the root directory, so paths in the words become absolute.
    """
    command = [program] if program else [sys.executable, "-I", "-m", "oinetd"]
    if options.conf_file:
        words = _with_path(words, "-c", "--conf-file", os.path.join(base, options.conf_file))
    if options.pid_file:
        words = _with_path(words, "-p", "--pidfile", os.path.join(base, options.pid_file))
    return [*command, *words]


def _with_path(words: list[str], short: str, long: str, path: str) -> list[str]:
    """The words with this path for an option, in place of what they say of it, or at the end.

    What is hidden among several letters (`-fc FILE`) stays, and the one at the end counts.
    """
    kept: list[str] = []
    said = False
    left = list(words)
    while left:
        word = left.pop(0)
        apart = word in (short, long) and bool(left)
        if not apart and not word.startswith(f"{long}=") and (word == short or not word.startswith(short)):
            kept.append(word)
            continue
        if apart:
            left.pop(0)
        kept += () if said else (short, path)
        said = True
    return kept if said else [*kept, short, path]


class Replacement:
    """Replaces this process by a new one, once at a time. `words` are those of the command line."""

    def __init__(
        self, options: Options, base: str, words: list[str], manager: ServiceManager, administration: Administration
    ) -> None:
        self._options = options
        self._base = base
        self._words = words
        self._manager = manager
        self._administration = administration
        self._giver: Giver | None = None
        self._stop_kept = False

    def keep_stop(self) -> bool:
        """A stop signal has come; True if the new process is ready and gets it, once."""
        if self._giver is None or not self._giver.ready or self._stop_kept:
            return False
        self._stop_kept = True
        return True

    def take_stop(self) -> bool:
        """Whether a stop signal was kept for a new process that did not take over."""
        kept, self._stop_kept = self._stop_kept, False
        return kept

    async def run(
        self,
        forwarder: Forwarder,
        pid_file: PidFile | None,
        *,
        program: str = "",
        dry_run: bool = False,
        reload: Callable[[], bool] = lambda: False,
    ) -> Report:
        """Hand everything to a new process, at the end also whether a `reload` is wanted, and a stop.

        Raises `UpgradeFailed`, and then everything is as it was.
        """
        if program and (reason := is_trusted(program, os.geteuid())):
            raise UpgradeFailed(f"{program}: {reason}", 77)
        files = {ADMIN + name: sock.fileno() for name, sock in self._administration.shared().items()}
        if pid_file is not None:
            files[PID_FILE + pid_file.path] = pid_file.fileno()
        reopened = forwarder.log_reopened
        try:
            await asyncio.to_thread(forwarder.flush_log)
        except RuntimeError:
            raise UpgradeFailed("no thread can be started") from None
        facts = self._facts(forwarder, dry_run)
        log = forwarder.log_descriptor()
        if log >= 0:
            files[LOG + forwarder.config.log.file] = log
        self._giver = Giver(
            forwarder.moves,
            new_command(self._options, self._words, self._base, program),
            {**child_environment(os.environ), **self._manager.environment},
            files,
            facts,
            forwarder.config.upgrade_timeout_s or None,
            connect_wait_s(forwarder.config),
            settling(forwarder.flush_log),
            forwarder.inherited,
            passed_on,
        )
        told: list[bool] = []

        def signals() -> Mapping[str, Any]:
            return {"reload": reload(), "reopen": forwarder.log_reopened != reopened}

        def last() -> Mapping[str, Any]:
            told.append(self._stop_kept)
            return {**signals(), "stop": self._stop_kept, "servers": forwarder.server_documents()}

        try:
            report = await self._giver.run(dry_run=dry_run, last=last, late=signals, done=self._manager.replaced_by)
        finally:
            self._giver = None
            if log >= 0:
                os.close(log)
        if self._stop_kept and told == [False]:  # it came between the last frame and its answer
            os.kill(report.pid, signal.SIGTERM)
        if dry_run:
            return report
        logger.info(
            "upgrade: process %d serves; %s moved, %d stay here%s",
            report.pid,
            number_of(report.moved, "session"),
            report.staying,
            f", {report.declined} of them because it declined" if report.declined else "",
        )
        return report

    def _facts(self, forwarder: Forwarder, dry_run: bool) -> dict[str, Any]:
        """What the new process is told besides. Raises `UpgradeFailed`."""
        try:
            ambient = has_ambient()
        except OSError as error:  # no descriptor or memory
            raise UpgradeFailed(f"cannot find out which rights this process has: {error.strerror}") from None
        return {
            "base": self._base,
            "servers": forwarder.server_documents(),
            "stored": self._manager.stored,
            "dry_run": dry_run,
            "ambient": ambient,
        }


def connect_wait_s(config: Config) -> float:
    """How long sessions that are connecting are waited for."""
    limits = (config.settings_of(rule).connect_timeout_s for rule in config.rules)
    return min(max(limits, default=0.0) + CONNECT_MARGIN_S, CONNECT_WAIT_MAX_S)


def settling(flush: Callable[[], bool]) -> Callable[[], None]:
    """`flush` as long as it succeeds: a log that cannot be written is waited for once, not with each batch."""
    writes = True

    def settle() -> None:
        nonlocal writes
        writes = writes and flush()

    return settle


def adopt_files(
    taker: Taker, pid_file: PidFile | None, administration: Administration, log_file: str
) -> tuple[bool, int]:
    """Use the files of the old process; whether the pid file is one of them, and the descriptor of the log, or -1.

    And what this process starts is not to have the capabilities that it was started with: it has one thread yet.
    """
    if not taker.facts.get("ambient", True):
        keep_to_oneself()
    sockets = {name.removeprefix(ADMIN): fd for name, fd in taker.files.items() if name.startswith(ADMIN)}
    administration.adopt({name: sock for name, fd in sockets.items() if (sock := passed_listener(fd)) is not None})
    adopted, log = False, -1
    for name, fd in taker.files.items():
        if name.startswith(PID_FILE):
            if pid_file is not None and name == PID_FILE + pid_file.path and stat.S_ISREG(os.fstat(fd).st_mode):
                pid_file.adopt(fd)
                adopted = True
            else:
                os.close(fd)
        elif log_file and name == LOG + log_file and not stat.S_ISSOCK(os.fstat(fd).st_mode):
            log = fd
        elif not name.startswith(ADMIN):
            os.close(fd)
    return adopted, log


def report_document(report: Report) -> Mapping[str, Any]:
    """What the admin interface answers."""
    return {
        "pid": report.pid,
        "moved": report.moved,
        "staying": report.staying,
        "declined": report.declined,
        "duration_s": round(report.duration_s, 3),
        "moving_s": round(report.moving_s, 3),
        "dry_run": report.dry_run,
    }
