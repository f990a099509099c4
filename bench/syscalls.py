"""`strace -c`: which system calls a running program makes.

Its shares of time are misleading for a forwarder: more than half is often `epoll_wait`, which sleeps and costs nothing.
So waiting calls are listed separately, and the figure to compare is the number of calls per unit of work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.tools import need

__all__ = ["WAITING", "Syscall", "parse_syscalls", "strace_command"]

WAITING = frozenset({
    "clock_nanosleep", "epoll_pwait", "epoll_pwait2", "epoll_wait", "futex", "nanosleep", "pause", "poll", "ppoll",
    "pselect6", "restart_syscall", "rt_sigtimedwait", "select", "wait4", "waitid",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Syscall:
    """`seconds` is the time strace saw in the call, its own cost included."""

    name: str
    calls: int
    errors: int
    seconds: float

    @property
    def waits(self) -> bool:
        return self.name in WAITING


def strace_command(pids: Sequence[int], seconds: float, output: str) -> list[str]:
    """Count the calls of the programs and their children for `seconds`, into the file `output`."""
    attach = [word for pid in pids for word in ("-p", str(pid))]
    # strace writes its table when it is interrupted.
    return ["timeout", "-s", "INT", f"{seconds:g}", need("strace"), "-f", "-c", "-o", output, *attach]


def parse_syscalls(text: str) -> list[Syscall]:
    """The rows of the table, the most frequent call first."""
    rows = []
    for line in text.splitlines():
        words = line.split()
        if len(words) not in (5, 6) or words[-1] in ("syscall", "total") or words[0].startswith("-"):
            continue
        try:
            errors = int(words[4]) if len(words) == 6 else 0
            rows.append(Syscall(words[-1], int(words[3]), errors, float(words[1])))
        except ValueError:
            continue  # strace's remarks about processes that come and go
    return sorted(rows, key=lambda row: -row.calls)
