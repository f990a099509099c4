"""Control groups of a run, version 1 or 2: they count CPU time and kernel memory of a subject.

A group counts the use of its processes in nanoseconds, with children and ended threads. If no group can be made (no
root, a container), `bench.account` adds up the process tree instead.
"""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path

from bench.identity import RunName
from bench.programs import wait_until

__all__ = ["CpuTimes", "Group", "group_roots"]

_MOUNTS = Path("/proc/self/mounts")


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Processor seconds; user and system are less exact than the total on version 1 (they are counted in ticks)."""

    total_s: float
    user_s: float
    system_s: float


@dataclass(frozen=True, slots=True)
class Roots:
    """Where groups are made. Version 1 has a tree for each controller, version 2 one (`cpu == memory`)."""

    version: int
    cpu: Path
    memory: Path | None


def group_roots(mounts: str | None = None) -> Roots | None:
    """The mounted trees that can count processor time; None if there are none. `mounts` is /proc/self/mounts."""
    unified: Path | None = None
    trees: dict[str, Path] = {}
    for line in (mounts if mounts is not None else _MOUNTS.read_text()).splitlines():
        _, path, kind, options, *_ = line.split()
        if kind == "cgroup2":
            unified = Path(path)
        elif kind == "cgroup":
            for option in options.split(","):
                trees.setdefault(option, Path(path))
    if "cpuacct" in trees:
        return Roots(1, trees["cpuacct"], trees.get("memory"))
    if unified is not None:
        return Roots(2, unified, unified)
    return None


class Group:
    """One control group in every tree that serves; `close` ends its processes' membership and removes it."""

    def __init__(self, roots: Roots, name: str) -> None:
        """Make the group. Raises OSError if that is not allowed."""
        self.roots = roots
        self.cpu = roots.cpu / name
        self.cpu.mkdir()
        self.memory: Path | None = None
        if roots.version == 2:
            self.memory = self.cpu if (self.cpu / "memory.stat").exists() else None
        elif roots.memory is not None:
            with contextlib.suppress(OSError):
                path = roots.memory / name
                path.mkdir()
                self.memory = path
                _count_sockets(path)

    @classmethod
    def make(cls, run: RunName, purpose: str) -> Group | None:
        """A group of this run, None if the machine or our rights do not allow one."""
        roots = group_roots()
        if roots is None:
            return None
        try:
            return cls(roots, f"{run}-{purpose}")
        except OSError:
            return None

    @property
    def directories(self) -> list[Path]:
        """The trees that a process joins by writing its pid to `cgroup.procs`."""
        return sorted({path for path in (self.cpu, self.memory) if path is not None})

    def pids(self) -> list[int]:
        return [int(word) for word in (self.cpu / "cgroup.procs").read_text().split()]

    def cpu_times(self) -> CpuTimes:
        if self.roots.version == 1:
            total, user, system = (
                int((self.cpu / f"cpuacct.usage{part}").read_text()) / 1e9 for part in ("", "_user", "_sys")
            )
            return CpuTimes(total, user, system)
        stat = _pairs(self.cpu / "cpu.stat")
        return CpuTimes(*(stat[f"{part}_usec"] / 1e6 for part in ("usage", "user", "system")))

    def kernel_bytes(self) -> int | None:
        """What the kernel holds for the group (sockets, buffers, pipes); None if it does not count that."""
        if self.memory is None:
            return None
        with contextlib.suppress(OSError, KeyError):
            if self.roots.version == 1:
                parts = ("memory.kmem.usage_in_bytes", "memory.kmem.tcp.usage_in_bytes")
                return sum(int((self.memory / part).read_text()) for part in parts)
            stat = _pairs(self.memory / "memory.stat")
            return stat["kernel"] + stat["sock"]
        return None

    def close(self) -> None:
        """Remove the group. What still runs in it is a program that a signal kept us from noting down: it is killed."""
        with contextlib.suppress(OSError):
            for pid in self.pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for path in self.directories:
            remove_group(path)


def _count_sockets(memory: Path) -> None:
    """Version 1 counts socket buffers only from when a limit was first set; this one limits nothing."""
    with contextlib.suppress(OSError):
        (memory / "memory.kmem.tcp.limit_in_bytes").write_text(str(1 << 60))


def remove_group(path: Path) -> None:
    """Remove an empty group; one that keeps a process after some seconds stays and is found by `clean`."""

    def gone() -> bool:
        with contextlib.suppress(OSError):
            os.rmdir(path)
        return not path.exists()

    wait_until(gone, 5.0, f"the control group {path} is still in use")


def _pairs(path: Path) -> dict[str, int]:
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) == 2}
