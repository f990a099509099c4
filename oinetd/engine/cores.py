"""How many cores this process may use: its affinity, and the quota of its control group (version 1 or 2)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["usable_cores"]


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
