"""The state of a file by its metadata, to find out later whether it has changed."""

from __future__ import annotations

import os
from glob import glob, has_magic
from typing import NamedTuple, TypeAlias

__all__ = ["FileSource", "State", "look", "state_of"]

State: TypeAlias = tuple[int, int, int, int] | tuple[str, ...] | None
"""Device, inode, time of the last change (ns) and size of a file; the names that a pattern has; or nothing."""


class FileSource(NamedTuple):
    """A file, or a pattern of names, that something was read from, as it was then."""

    path: str
    state: State


def state_of(found: os.stat_result) -> State:
    """What is compared of a file."""
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def look(path: str) -> State:
    """How the file looks now, or which names the pattern has; None if there is no file."""
    if has_magic(path):
        return tuple(sorted(glob(path)))
    try:
        return state_of(os.stat(path))
    except (OSError, ValueError):
        return None
