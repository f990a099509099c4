"""The name of one run of the bench, carried by everything it makes outside its own process.

Namespaces, control groups, directories and processes bear the name; it holds the owner's process id and start time,
so that leftovers of a killed run can be distinguished from what a running one uses.
"""

from __future__ import annotations

import itertools
import os
import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["MARKER", "RunName", "start_time"]

MARKER = "OINETD_BENCH_RUN"
"""The environment variable by which every process of a run is known."""

_SERIALS = itertools.count(1)
_FORM = re.compile(r"oibench-(\d+)-(\d+)-(\d+)")


def start_time(pid: int) -> int | None:
    """When the process started, in clock ticks after boot; None if there is none.

    With the process id it names a process for good: ids are used again, start times are not.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The second field, the command, may hold blanks and parentheses; what follows it is field 3.
    return int(stat.rpartition(")")[2].split()[19])


@dataclass(frozen=True, slots=True)
class RunName:
    """`oibench-PID-START-SERIAL`."""

    pid: int
    started: int
    serial: int

    @classmethod
    def new(cls) -> RunName:
        """A name that no other run has, in this process or another."""
        pid = os.getpid()
        return cls(pid, start_time(pid) or 0, next(_SERIALS))

    @classmethod
    def parse(cls, text: str) -> RunName | None:
        """The run that a name belongs to: the name itself, or one with a suffix such as `-client`."""
        found = _FORM.match(text)
        return cls(*(int(part) for part in found.groups())) if found else None

    @property
    def owner_alive(self) -> bool:
        return start_time(self.pid) == self.started

    def __str__(self) -> str:
        return f"oibench-{self.pid}-{self.started}-{self.serial}"
