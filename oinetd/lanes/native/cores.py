"""How many cores this process may use: its affinity, and the quota of its control group (version 1 or 2)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from oinetd.net.descriptors import reactors_affordable

__all__ = ["polling_us", "reactors_for", "usable_cores"]

SPIN_US: Final = 50
"""Longest polling before sleep; see `_fastpath/reactor/busy_poll.pxd`.

64-byte round trips on one connection, two cores of a virtual machine, no pinning, medians of two to five rounds in one
run (DNAT in the kernel: p50 57 us; nginx 1.26: 70, 130, 32):

    polls for      0     3     8    15    25    50 us
    p50           72    67    66    65    70    46 us
    p99          158   127   112   126   136    85 us
    CPU           36    30    30    30    36    47 us

A wait is some 23 us: what polls for less sleeps in nearly all of them, what polls for 25 us does both. So it is a
choice between the latency of 50 and the processor time of 8. Where all have their cores given, sleeping costs what it
costs nginx: 16 and 17 us on one core for all, 44 and 43 if the server has another one, 66 and 67 if the forwarder has;
what polls for 50 us costs 13, 60 and 63 there.
"""


def reactors_for(threads: int) -> int:
    """How many reactors `threads` means; 0 is one for each core, if there are descriptors for them."""
    return threads or reactors_affordable(int(usable_cores()))


def polling_us(busy_poll_us: int) -> int:
    """How long a reactor may poll before it sleeps; below 0 it depends on the cores."""
    return busy_poll_us if busy_poll_us >= 0 else SPIN_US if usable_cores() >= 1 else 0


def usable_cores(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float:
    """Cores, of which a quota may leave a fraction; what cannot be read does not count."""
    cores = float(len(os.sched_getaffinity(0)))
    for folder, is_v2 in _groups(proc, root):
        # A group is held to the quota of every group above it, too.
        while True:
            quota = _quota_v2(folder) if is_v2 else _quota_v1(folder)
            if quota is not None:
                cores = min(cores, quota)
            if folder in (root, folder.parent):
                break
            folder = folder.parent
    return cores


def _groups(proc: Path, root: Path) -> Iterator[tuple[Path, bool]]:
    try:
        lines = proc.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield root / path.lstrip("/"), True
        elif "cpu" in controllers.split(","):
            yield root / "cpu" / path.lstrip("/"), False


def _quota_v2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_v1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
        return None if quota <= 0 else quota / period
    except (OSError, ValueError, ZeroDivisionError):
        return None
