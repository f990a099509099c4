"""The kernel's tracepoints: where they are, and how the lab gets at them where nobody has mounted them."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.tools import available

__all__ = ["available_events", "mount_tracefs", "out_of_reach", "tracepoints", "with_tracefs"]

_PLACES = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))
_CLONE_NEWNS = 0x00020000


def tracepoints() -> list[Path]:
    """The folders of tracepoints that can be read; none where tracefs is out of reach."""
    return [place / "events" for place in _PLACES if (place / "events").is_dir()]


def out_of_reach() -> str:
    """Why there are no tracepoints, and none can be had by mounting tracefs; empty where there are, or can be."""
    if tracepoints():
        return ""
    if os.geteuid() != 0:
        return "tracepoints are for root: use sudo"
    if "tracefs" not in Path("/proc/filesystems").read_text().split():
        return "this kernel has no tracefs"
    if not available("mount") or not _PLACES[0].is_dir():
        return f"tracefs cannot be mounted: {_PLACES[0]} or the mount program is missing"
    return ""


def with_tracefs(command: Sequence[str]) -> list[str]:
    """`command`, with tracefs mounted in a mount namespace of its own where it is not mounted already."""
    if tracepoints():
        return list(command)
    script = f'mount -t tracefs tracefs {_PLACES[0]} && exec "$@"'
    return ["unshare", "--mount", "--", "sh", "-c", script, "sh", *command]


def mount_tracefs() -> str:
    """See that there are tracepoints: empty, or why there are none.

    tracefs is mounted in a mount namespace of this process, so that the machine's own tree stays as it is and nothing
    is to be undone. To be called before there are other threads.
    """
    if tracepoints():
        return ""
    if reason := out_of_reach():
        return reason
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS) != 0:
        return f"tracefs cannot be mounted: {os.strerror(ctypes.get_errno())}"
    for words in (["--make-rprivate", "/"], ["-t", "tracefs", "tracefs", str(_PLACES[0])]):
        done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return f"tracefs cannot be mounted: {done.stderr.strip()}"
    return ""


def available_events(names: Iterable[str]) -> list[str]:
    """Those of `names` that this kernel has; an event that is not a tracepoint (`cycles`) is left to perf."""
    roots = tracepoints()

    def there(name: str) -> bool:
        return ":" not in name or any((root / name.replace(":", "/")).is_dir() for root in roots)

    return list(filter(there, names))
