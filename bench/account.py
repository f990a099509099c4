"""Resource use of a set of processes: CPU time, context switches, migrations, memory with the kernel's share."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import psutil

from bench.cgroup import CpuTimes, Group

if TYPE_CHECKING:
    from bench.isolation import Isolation

__all__ = ["Account", "Memory", "Switches", "Watch", "machine_busy_s"]


@dataclass(frozen=True, slots=True)
class Switches:
    """Counts since each thread began, by thread: `(voluntary, involuntary, migrations)`; migrations −1 if unknown."""

    threads: dict[int, tuple[int, int, int]]

    def since(self, earlier: Switches) -> tuple[int, int | None] | None:
        """Context switches and migrations from `earlier` to now; None if a thread ended and took its count along."""
        if not self.threads or not earlier.threads.keys() <= self.threads.keys():
            return None
        switches = migrations = 0
        known = True
        for thread, (voluntary, involuntary, moved) in self.threads.items():
            before = earlier.threads.get(thread, (0, 0, 0))
            switches += voluntary + involuntary - before[0] - before[1]
            migrations += moved - before[2]
            known = known and moved >= 0
        return switches, migrations if known else None


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes: `pss` of the processes, `kernel` for their sockets, pipes and buffers; None if not counted.

    `private` are pages that no other process has: what others map and let go does not move it.
    """

    pss: int
    kernel: int | None
    private: int = 0


class Account:
    """The resource use of one subject: of its control group if there is one, else of its process tree.

    The tree misses children that ended and were not waited for. `source` is which of the two it is.
    """

    def __init__(
        self, group: Group | None, roots: Callable[[], Iterable[int]], isolation: Isolation | None = None
    ) -> None:
        """`roots` returns the pids of the started programs; it is used without a control group and namespaces."""
        self.group = group
        self.isolation = isolation
        self._roots = roots
        self.source = f"cgroup v{group.roots.version}" if group else "process tree"

    def pids(self) -> list[int]:
        if self.isolation is not None:
            return self.isolation.pids()
        if self.group is not None:
            return self.group.pids()
        found = []
        for pid in self._roots():
            with contextlib.suppress(psutil.Error):
                root = psutil.Process(pid)
                found += [root.pid, *(child.pid for child in root.children(recursive=True))]
        return found

    def cpu_times(self) -> CpuTimes:
        if self.group is not None:
            return self.group.cpu_times()
        user = system = 0.0
        for pid in self.pids():
            with contextlib.suppress(psutil.Error):
                times = psutil.Process(pid).cpu_times()
                user += times.user + times.children_user
                system += times.system + times.children_system
        return CpuTimes(user + system, user, system)

    def switches(self) -> Switches:
        threads = {}
        for pid in self.pids():
            with contextlib.suppress(OSError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    with contextlib.suppress(OSError):
                        threads[int(task.name)] = _thread_switches(task)
        return Switches(threads)

    def memory(self) -> Memory:
        pss = private = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                smaps = Path(f"/proc/{pid}/smaps_rollup").read_text()
                pss += read_smaps(smaps, "Pss")
                private += read_smaps(smaps, "Private_Clean", "Private_Dirty")
        return Memory(pss, self.group.kernel_bytes() if self.group else None, private)


def read_smaps(smaps: str, *names: str) -> int:
    """The sum in bytes of some lines of `/proc/PID/smaps_rollup`; 0 for a process that is ending."""
    return sum(int(line.split()[1]) * 1024 for line in smaps.splitlines() if line.partition(":")[0] in names)


def _thread_switches(task: Path) -> tuple[int, int, int]:
    counts = {}
    for line in (task / "status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.endswith("_switches"):
            counts[name] = int(value)
    migrations = -1
    with contextlib.suppress(OSError):  # a kernel without scheduler statistics has no such file
        for line in (task / "sched").read_text().splitlines():
            if line.startswith("se.nr_migrations"):
                migrations = int(line.rpartition(":")[2])
    return counts["voluntary_ctxt_switches"], counts["nonvoluntary_ctxt_switches"], migrations


def machine_busy_s() -> float:
    """Processor seconds that the whole machine has spent on anything but idling, since boot."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


@dataclass
class Watch:
    """Samples an account while a load runs, in a thread: memory, and the switches of threads that end with the load.

    A thread's counts are gone when it ends, so the switches are those between the first and the last sample, given
    per second.
    """

    account: Account
    interval_s: float = 0.1
    memory: list[Memory] = field(default_factory=list)
    elsewhere: dict[str, None] = field(default_factory=dict)
    """What was seen of the subject in other control groups: such a process may be over before the load is."""
    _switches: list[tuple[float, Switches]] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run, name="bench-watch")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        assert self._thread is not None
        self._thread.join()

    def _run(self) -> None:
        while not self._over.is_set():
            self._switches.append((time.monotonic(), self.account.switches()))
            self.memory.append(self.account.memory())
            if self.account.isolation is not None:
                self.elsewhere |= dict.fromkeys(self.account.isolation.left_group())
            self._over.wait(self.interval_s)

    def rates(self) -> tuple[float | None, float | None]:
        """Context switches and migrations per second, None if they are not known."""
        for first_at, first in self._switches:
            for last_at, last in reversed(self._switches):
                counted = last.since(first)
                if counted is not None and last_at - first_at >= self.interval_s and first.threads:
                    switches, migrations = counted
                    elapsed = last_at - first_at
                    return switches / elapsed, None if migrations is None else migrations / elapsed
        return None, None

    def memory_values(self) -> dict[str, float | None]:
        """Average and peak of the processes' PSS, and the kernel's share, in bytes."""
        pss = [sample.pss for sample in self.memory]
        kernel = [sample.kernel for sample in self.memory if sample.kernel is not None]
        return {
            "pss_mean_bytes": sum(pss) / len(pss) if pss else None,
            "pss_peak_bytes": max(pss, default=None),
            "kernel_mean_bytes": sum(kernel) / len(kernel) if kernel else None,
            "kernel_peak_bytes": max(kernel, default=None),
        }
