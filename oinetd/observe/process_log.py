"""What the operator gets to read: the logger `oinetd` on standard error, or in the system log.

Nothing here waits once the process serves: standard error has a thread of its own then (a terminal can be stopped), and
so has the system log if it does not take a message at once. Before, the messages of the start are written at once: a
thread would not give up its privileges together with the process.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping
from typing import Final

from oinetd.observe.systemlog import SystemLog
from oinetd.observe.writer import LineWriter

__all__ = ["LEVELS", "Messages"]

LEVELS: Final = ("debug", "info", "warning", "error")

STDERR_FD: Final = 2
SYSLOG_ADDRESS: Final = "/dev/log"
SYSLOG_FACILITY: Final = 3
"""LOG_DAEMON."""

SYSLOG_BYTES_MAX: Final = 2048
"""One datagram: every system log takes as much, some cut off what is longer."""


class Messages:
    """Where the messages of the loggers `oinetd` and `asyncio` go; one object for the life of the process."""

    def __init__(self, level: str, environ: Mapping[str, str]) -> None:
        self._stderr = StderrHandler(environ)
        self._handler: logging.Handler = self._stderr
        for name in _NAMES:
            logger = logging.getLogger(name)
            logger.setLevel(level.upper())
            logger.propagate = False
            logger.addHandler(self._handler)

    def write_in_background(self) -> None:
        """From here on standard error has a thread, and nobody waits for it."""
        self._stderr.write_in_background()

    def to_syslog(self) -> None:
        """From here on the messages go to the system log; for a process without a terminal."""
        self._replace(SyslogHandler(SYSLOG_ADDRESS))

    def close(self) -> None:
        """Let what is on its way arrive, and leave the loggers as they were found."""
        self._replace(None)
        for name in _NAMES:
            logging.getLogger(name).propagate = True

    def _replace(self, handler: logging.Handler | None) -> None:
        for name in _NAMES:
            logging.getLogger(name).removeHandler(self._handler)
            if handler is not None:
                logging.getLogger(name).addHandler(handler)
        self._handler.close()
        if handler is not None:
            self._handler = handler


_NAMES: Final = ("oinetd", "asyncio")


class StderrHandler(logging.Handler):
    """Lines on standard error: with the time where a person reads them, with the priority where the journal does."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        super().__init__()
        self._writer: LineWriter | None = None
        self._prefixed = _is_journal(environ.get("JOURNAL_STREAM", ""))
        # A service manager puts the time before every line itself.
        managed = self._prefixed or bool(environ.get("NOTIFY_SOCKET") or environ.get("INVOCATION_ID"))
        self.setFormatter(_Formatter("" if managed else "%(asctime)s "))

    def emit(self, record: logging.LogRecord) -> None:
        self._write(record.levelno, self.format(record))

    def _write(self, level: int, text: str) -> None:
        if self._prefixed:
            prefix = f"<{_priority(level)}>"
            text = "\n".join(prefix + line for line in text.split("\n"))
        line = f"{text}\n".encode(errors="backslashreplace")
        if self._writer is not None:
            self._writer.write(line)
            return
        with contextlib.suppress(OSError):  # There is nobody left to tell.
            while line:
                line = line[os.write(STDERR_FD, line) :]

    def write_in_background(self) -> None:
        if self._writer is None:
            # Its own troubles are told here, too: when it takes lines again, and how many were lost.
            self._writer = LineWriter(STDERR_FD, lambda text: self._write(logging.WARNING, f"warning: {text}"))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        super().close()


class SyslogHandler(logging.Handler):
    """Datagrams to the system log; one that is not there, or does not keep up, never stops us (see `systemlog`)."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self.setFormatter(_Formatter(""))
        self._log = SystemLog(address, f"{_head(logging.WARNING)}warning: ".encode())

    def emit(self, record: logging.LogRecord) -> None:
        head = _head(record.levelno)
        for line in self.format(record).split("\n"):
            self._log.send((head + line).encode(errors="backslashreplace")[:SYSLOG_BYTES_MAX])

    def close(self) -> None:
        self._log.close()
        super().close()


def _head(level: int) -> str:
    """What stands before the text in the system log."""
    return f"<{SYSLOG_FACILITY * 8 + _priority(level)}>oinetd[{os.getpid()}]: "


class _Formatter(logging.Formatter):
    """Warnings and errors say that they are; `before` stands at the beginning of the line."""

    def __init__(self, before: str) -> None:
        super().__init__(before + "%(word)s%(message)s", "%Y-%m-%d %H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.word = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        return super().formatMessage(record)


def _priority(level: int) -> int:
    """The priority of syslog(3) for a level of logging."""
    if level >= logging.CRITICAL:
        return 2
    if level >= logging.ERROR:
        return 3
    if level >= logging.WARNING:
        return 4
    return 6 if level >= logging.INFO else 7


def _is_journal(stream: str) -> bool:
    """Whether standard error is the journal's, which then has its device and inode in JOURNAL_STREAM."""
    try:
        status = os.fstat(STDERR_FD)
    except OSError:
        return False
    return stream == f"{status.st_dev}:{status.st_ino}"
