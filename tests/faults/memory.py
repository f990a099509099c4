"""A control group for the daemon, whose memory can be made short while it runs, as in a container with a limit."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = ["Memory"]

ROOT: Final = Path("/sys/fs/cgroup")
OLD: Final = ROOT / "memory"
"""The hierarchy of memory alone, of version 1."""
NEVER: Final = "-1"


class Memory:
    """The group of this name, which is made here. Version 1 counts what sockets hold apart, version 2 with the rest.

    Whoever needs more than the limit waits until it is lifted, and is not killed: `memory.oom_control` of version 1,
    `memory.high` of version 2. So a limit is no death, and all invariants hold.
    """

    def __init__(self, name: str) -> None:
        self.old = OLD.is_dir()
        self.folder = (OLD if self.old else ROOT) / name
        self.folder.mkdir()
        self._plenty = False
        self._changes = threading.Lock()
        if self.old:
            self._say("memory.oom_control", "1")

    @staticmethod
    def possible() -> bool:
        """Whether there are control groups for memory that this process may make."""
        if not os.access(OLD if OLD.is_dir() else ROOT, os.W_OK):
            return False
        with contextlib.suppress(OSError):
            return OLD.is_dir() or "memory" in (ROOT / "cgroup.subtree_control").read_text().split()
        return False

    @property
    def words(self) -> str:
        """The shell command by which a process enters the group."""
        return f"echo 0 > {self.folder}/cgroup.procs"

    @property
    def _limits(self) -> dict[str, str]:
        """What can be limited, each with what tells how much of it is used."""
        if self.old:
            names = "memory.kmem.tcp.", "memory."
            return {f"{name}limit_in_bytes": f"{name}usage_in_bytes" for name in names}
        return {"memory.high": "memory.current"}

    @property
    def refused(self) -> int:
        """How often more was wanted than the limit."""
        if self.old:
            return sum(int((self.folder / f"{name}failcnt").read_text()) for name in ("memory.kmem.tcp.", "memory."))
        events = dict(line.split() for line in (self.folder / "memory.events").read_text().splitlines())
        return int(events["high"])

    def limit(self, more: int) -> None:
        """Let the group have so many bytes more than now, of sockets, and of everything."""
        with self._changes:
            for limit, used in self._limits.items() if not self._plenty else ():
                with contextlib.suppress(OSError):  # it has grown meanwhile, and nothing can be given back
                    self._say(limit, str(int((self.folder / used).read_text()) + more))

    def lift(self) -> None:
        """Let it have what it wants."""
        for limit in self._limits:
            self._say(limit, NEVER if self.old else "max")

    @contextlib.contextmanager
    def plenty(self) -> Iterator[None]:
        """No limit, nor does one begin meanwhile: for a daemon that starts, which without memory just ends."""
        with self._changes:
            self._plenty = True
            self.lift()
        try:
            yield
        finally:
            self._plenty = False

    def _say(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    @staticmethod
    def remove(name: str) -> None:
        """Remove the group of this name, in which nobody is any more."""
        for parent in (OLD, ROOT):
            with contextlib.suppress(OSError):
                (parent / name).rmdir()
