"""Layer 1: counters of the whole machine and of the service, by `perf stat`."""

from __future__ import annotations

from pathlib import Path

from bench.lab.layer import EVERYWHERE, Figures, Layer, Target, read_window, window
from bench.lab.perf import Perf
from bench.lab.tracing import available_events

__all__ = ["CALLS", "LAYER", "parse_stat"]

HARDWARE = ("cycles", "instructions", "branches", "branch-misses", "ref-cycles", "cache-misses")
SOFTWARE = ("cpu-clock", "task-clock", "context-switches", "cpu-migrations", "page-faults")
CALLS = (
    "accept", "accept4", "bind", "brk", "clock_nanosleep", "close", "connect", "dup3", "epoll_create1", "epoll_ctl",
    "epoll_pwait", "epoll_pwait2", "epoll_wait", "eventfd2", "fcntl", "futex", "getpeername", "getrandom",
    "getsockname", "getsockopt", "gettid", "io_uring_enter", "ioctl", "listen", "madvise", "mmap", "mprotect",
    "munmap", "nanosleep", "openat", "pipe2", "poll", "ppoll", "pselect6", "read", "readv", "recvfrom", "recvmmsg",
    "recvmsg", "rt_sigprocmask", "sched_yield", "select", "sendfile64", "sendmmsg", "sendmsg", "sendto", "setsockopt",
    "shutdown", "socket", "splice", "tee", "timerfd_settime", "tgkill", "vmsplice", "write", "writev",
)  # fmt: skip
"""The system calls of forwarders; what a service calls besides is in the sum of all."""

ALL_CALLS = "raw_syscalls:sys_enter"


def _events() -> list[str]:
    return available_events([*HARDWARE, *SOFTWARE, ALL_CALLS, *(f"syscalls:sys_enter_{call}" for call in CALLS)])


def collect(target: Target, directory: Path, seconds: float) -> None:
    events = _events()
    perfs = [
        Perf.counting(EVERYWHERE, events, directory / "system.csv"),
        Perf.counting(target.where(), events, directory / "service.csv"),
    ]
    with window(target, directory, seconds, perfs):
        pass


def parse_stat(text: str) -> dict[str, float | None]:
    """Counts by event, in the order of the file; None if perf says that it cannot count.

    A processor with two kinds of cores counts an event once for each kind; the kinds are added up.
    """
    counts: dict[str, float | None] = {}
    for line in text.splitlines():
        fields = line.split(",")
        if line.startswith("#") or len(fields) < 3:
            continue
        event = fields[2]
        if event.startswith("cpu_") and event.endswith("/"):
            event = event.split("/")[1]
        event = event.partition(":u")[0] if event.endswith(":u") else event
        try:
            value = float(fields[0])
        except ValueError:  # <not supported>, <not counted>
            counts.setdefault(event, None)
            continue
        counts[event] = (counts.get(event) or 0.0) + value
    return counts


def derive(directory: Path) -> Figures:
    seen = read_window(directory)
    figures: Figures = {}
    for scope in ("system", "service"):
        counts = parse_stat((directory / f"{scope}.csv").read_text())
        figures[scope] = {
            # A tracepoint that this kernel has not was not asked for.
            name: seen.each(counts.get(name), f"{scope}.csv")
            for name in (*HARDWARE, *SOFTWARE, ALL_CALLS, *(f"syscalls:sys_enter_{call}" for call in CALLS))
        }
        cycles, instructions = counts.get("cycles"), counts.get("instructions")
        figures[scope]["instructions per cycle"] = {
            "count": instructions / cycles if cycles and instructions is not None else None
        }
    figures["window"] = {
        "seconds": seen.passed.seconds,
        "gigabytes": seen.passed.gigabytes,
        "requests": seen.passed.requests,
        "cpu_s": seen.passed.cpu_s,
    }
    return figures


LAYER = Layer(1, "counters", collect, derive)
