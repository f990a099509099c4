"""How many cores this process may use: its affinity, and the quota of its control group (version 1 or 2)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from oinetd.net.descriptors import reactors_affordable

__all__ = ["polling_us", "reactors_for", "usable_cores"]

SPIN_US: Final = 50
"""Longest polling before sleep; see `_fastpath/reactor/reactor.pxd`."""


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
