"""Who may be inside: a count with bounds, in all and for each client address.

A place is taken before a connection is accepted, so that one that has no room stays in the kernel's queue. This is the
gate of a process without the extension, and of each rule of the Python lane; `oinetd._fastpath.Permits` is the same
for both lanes and all threads.
"""

from __future__ import annotations

from collections import Counter
from typing import Protocol

__all__ = ["Gate", "LocalGate"]


class Gate(Protocol):
    """What both kinds of gate answer; a bound of 0 is no bound."""

    @property
    def live(self) -> int:
        """Who is inside."""
        ...

    def set_limits(self, max_connections: int, max_per_source: int) -> None:
        """Change the bounds; who is inside stays."""
        ...

    def enter(self) -> bool:
        """Take a place; False where all are taken."""
        ...

    def leave(self) -> None:
        """Give a place back."""
        ...

    def enter_source(self, host: str) -> bool:
        """Count one more connection of a client address; False where it has all it may have."""
        ...

    def leave_source(self, host: str) -> None:
        """Count one connection of a client address less."""
        ...

    def next_id(self) -> int:
        """A number that no other session of this gate has."""
        ...


class LocalGate:
    """A gate of one thread."""

    __slots__ = ("_last_id", "_max", "_max_per_source", "_sources", "live")

    def __init__(self) -> None:
        self.live = 0
        self._max = 0
        self._max_per_source = 0
        self._last_id = 0
        self._sources: Counter[str] = Counter()

    def set_limits(self, max_connections: int, max_per_source: int) -> None:
        self._max = max_connections
        self._max_per_source = max_per_source

    def enter(self) -> bool:
        if self._max and self.live >= self._max:
            return False
        self.live += 1
        return True

    def leave(self) -> None:
        assert self.live > 0
        self.live -= 1

    def enter_source(self, host: str) -> bool:
        if self._max_per_source and self._sources[host] >= self._max_per_source:
            return False
        self._sources[host] += 1
        return True

    def leave_source(self, host: str) -> None:
        left = self._sources[host] - 1
        if left > 0:
            self._sources[host] = left
        else:  # clients come and go by the million: nothing is kept of those who have gone
            self._sources.pop(host, None)

    def next_id(self) -> int:
        self._last_id += 1
        return self._last_id
