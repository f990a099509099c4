"""The process log: the logger `oinetd` on standard error, or in the system log.

Logging never blocks once the process serves: a thread writes to standard error (a terminal can be stopped), and another
one to the system log when its queue is full. During the start, messages are written directly: a thread that exists
already would keep its privileges when the process drops them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Mapping
from typing import Final

from oinetd.observe.systemlog import SystemLog
from oinetd.observe.writer import LineWriter

__all__ = ["LEVELS", "ProcessLog"]

LEVELS: Final = ("debug", "info", "warning", "error")

STDERR_FD: Final = 2
SYSLOG_ADDRESS: Final = "/dev/log"
SYSLOG_FACILITY: Final = 3
"""LOG_DAEMON."""

SYSLOG_BYTES_MAX: Final = 2048
"""One datagram: every system log accepts this size, and some truncate longer messages."""


class ProcessLog:
    """The handler of the loggers `oinetd` and `asyncio`; one object for the life of the process."""

    def __init__(self, level: str, environ: Mapping[str, str], *, as_json: bool = False) -> None:
        self._as_json = as_json
        self._stderr = StderrHandler(environ, as_json=as_json)
        self._handler: logging.Handler = self._stderr
        for name in _NAMES:
            logger = logging.getLogger(name)
            logger.setLevel(level.upper())
            logger.propagate = False
            logger.addHandler(self._handler)

    def write_in_background(self) -> None:
        """From now on a thread writes to standard error."""
        self._stderr.write_in_background()

    def to_syslog(self) -> None:
        """From now on messages go to the system log; for a process without a terminal."""
        self._replace(SyslogHandler(SYSLOG_ADDRESS, as_json=self._as_json))

    def close(self) -> None:
        """Write what is queued, and restore the loggers."""
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
    """Lines on standard error: with the priority if it is the journal, with the time if no service manager adds it."""

    def __init__(self, environ: Mapping[str, str], *, as_json: bool = False) -> None:
        super().__init__()
        self._writer: LineWriter | None = None
        self._prefixed = _is_journal(environ.get("JOURNAL_STREAM", ""))
        # A service manager adds the time itself.
        managed = self._prefixed or bool(environ.get("NOTIFY_SOCKET") or environ.get("INVOCATION_ID"))
        self.setFormatter(JsonFormatter() if as_json else _Formatter("" if managed else "%(asctime)s "))

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
        with contextlib.suppress(OSError):  # There is no other place to report it.
            while line:
                line = line[os.write(STDERR_FD, line) :]

    def write_in_background(self) -> None:
        if self._writer is None:
            # Its failures go to standard error as well: when writing works again, and how many lines were lost.
            self._writer = LineWriter(STDERR_FD, lambda text: self._write(logging.WARNING, f"warning: {text}"))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        super().close()


class SyslogHandler(logging.Handler):
    """Datagrams to the system log. A missing or slow system log never blocks the process (see `systemlog`)."""

    def __init__(self, address: str, *, as_json: bool = False) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter() if as_json else _Formatter(""))
        self._log = SystemLog(address, f"{_head(logging.WARNING)}warning: ".encode())

    def emit(self, record: logging.LogRecord) -> None:
        head = _head(record.levelno)
        for line in self.format(record).split("\n"):
            self._log.send((head + line).encode(errors="backslashreplace")[:SYSLOG_BYTES_MAX])

    def close(self) -> None:
        self._log.close()
        super().close()


def _head(level: int) -> str:
    """The head of a message in the system log."""
    return f"<{SYSLOG_FACILITY * 8 + _priority(level)}>oinetd[{os.getpid()}]: "


class _Formatter(logging.Formatter):
    """Adds the level to warnings and errors; `before` is the beginning of the line."""

    def __init__(self, before: str) -> None:
        super().__init__(before + "%(word)s%(message)s", "%Y-%m-%d %H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.word = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        return super().formatMessage(record)


class JsonFormatter(logging.Formatter):
    """One JSON object for each message: time, level, message, and a traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        local = time.localtime(record.created)
        at, zone = time.strftime("%Y-%m-%dT%H:%M:%S", local), time.strftime("%z", local)
        found = {
            "time": f"{at}.{int(record.msecs):03d}{zone[:3]}:{zone[3:]}",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            found["traceback"] = self.formatException(record.exc_info)
        return json.dumps(found)


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
    """Whether standard error is the journal: JOURNAL_STREAM then has its device and inode."""
    try:
        status = os.fstat(STDERR_FD)
    except OSError:
        return False
    return stream == f"{status.st_dev}:{status.st_ino}"
