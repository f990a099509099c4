"""The connection log in the system log or the journal: `logfile syslog`, `syslog:local3`, `journal`.

A line is one datagram. The thread that logs never waits (see `systemlog`).
"""

from __future__ import annotations

import os
import syslog
from typing import Final

from oinetd.observe.systemlog import SystemLog

__all__ = ["SystemLines", "is_system_log", "system_log_fault"]

SYSLOG: Final = "syslog"
JOURNAL: Final = "journal"
SYSLOG_ADDRESS: Final = "/dev/log"
JOURNAL_ADDRESS: Final = "/run/systemd/journal/socket"
SYSLOG_BYTES_MAX: Final = 2048
"""Every system log takes a datagram of this size; a longer line is cut."""

FACILITIES: Final = {
    name: getattr(syslog, f"LOG_{name.upper()}")
    for name in ("daemon", "user", "auth", "syslog", *(f"local{number}" for number in range(8)))
}


def is_system_log(file: str) -> bool:
    """Whether a `logfile` is the system log or the journal, and no file (a file of this name is `./syslog`)."""
    return file in (SYSLOG, JOURNAL) or file.startswith(SYSLOG + ":")


def system_log_fault(file: str) -> str:
    """What is wrong with a `logfile` that is a system log; empty if nothing is."""
    facility = file.partition(":")[2]
    if facility and facility not in FACILITIES:
        return f"there is no facility {facility!r}; known: {', '.join(FACILITIES)}"
    return ""


class SystemLines:
    """Sends lines, each as one message; a stand-in for a `LineWriter`."""

    def __init__(self, file: str) -> None:
        self._journal = file == JOURNAL
        facility = FACILITIES.get(file.partition(":")[2], syslog.LOG_DAEMON)
        self._head = f"<{facility | syslog.LOG_INFO}>oinetd[{os.getpid()}]: ".encode()
        if self._journal:
            self._head = b"SYSLOG_IDENTIFIER=oinetd\nPRIORITY=6\nMESSAGE="
            self._log = SystemLog(JOURNAL_ADDRESS, self._head + b"warning: ", b"\n")
        else:
            warning = f"<{facility | syslog.LOG_WARNING}>oinetd[{os.getpid()}]: warning: ".encode()
            self._log = SystemLog(SYSLOG_ADDRESS, warning)

    def write(self, line: bytes) -> None:
        """Send a line; it may be dropped and counted if the system log does not keep up."""
        message = self._head + line.rstrip(b"\n")
        self._log.send(message + b"\n" if self._journal else message[:SYSLOG_BYTES_MAX])

    def reopen(self) -> None:
        """Nothing to do: a restarted system log is found by itself."""

    def close(self) -> None:
        """Send what is queued, within two seconds."""
        self._log.close()
