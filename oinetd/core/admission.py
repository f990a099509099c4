"""Who may be inside: a count with bounds, in all and for each source.

A place is taken before a connection is accepted, so that one that has no room stays in the kernel's queue. This is the
gate of a process without the extension, and of each rule of the Python lane; `oinetd._fastpath.Permits` is the same
for both lanes and all threads.
"""

from __future__ import annotations

import socket
from collections import Counter
from typing import Protocol

from oinetd.model import SourcePrefix
from oinetd.net.descriptors import LocalBudget

__all__ = ["Gate", "LocalGate", "source_of"]

MAPPED_PREFIX = b"\0" * 10 + b"\xff\xff"
"""The first 12 bytes of an IPv4 address as an IPv6 socket shows it (RFC 4291, 2.5.5.2)."""


class Gate(Protocol):
    """What both kinds of gate answer; a bound of 0 is no bound."""

    @property
    def live(self) -> int:
        """Who is inside."""
        ...

    @property
    def live_max(self) -> int:
        """The bound; 0 is none."""
        ...

    @property
    def full(self) -> int:
        """How often somebody found no place."""
        ...

    @property
    def is_full(self) -> bool:
        """Whether the next one would find no place."""
        ...

    def calm(self) -> None:
        """That it is full is to be told again, the next time."""
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

    def enter_source(self, host: str, prefix: SourcePrefix) -> bool:
        """Count one more connection of a client's source; False where it has all it may have."""
        ...

    def leave_source(self, host: str, prefix: SourcePrefix) -> None:
        """Count one connection of a client's source less; `prefix` is that with which it was counted."""
        ...

    def next_id(self) -> int:
        """A number that no other session of this gate has."""
        ...


def source_of(host: str, prefix: SourcePrefix) -> tuple[int, int]:
    """The source that a client's numeric address belongs to: the bits of its prefix, and how many they are.

    An IPv4 client of an IPv6 socket counts as IPv4. Link-local addresses are sources of their own: they share one
    prefix on every link, and all hosts of a link would be one. (`_fastpath/shared/source.pxd` does the same.)
    """
    plain = host.partition("%")[0]
    if ":" in plain:
        packed = socket.inet_pton(socket.AF_INET6, plain)
    else:
        packed = MAPPED_PREFIX + socket.inet_pton(socket.AF_INET, plain)
    if packed.startswith(MAPPED_PREFIX):
        bits = 96 + prefix.ipv4
    else:
        bits = 128 if packed[0] == 0xFE and packed[1] & 0xC0 == 0x80 else prefix.ipv6
    return int.from_bytes(packed, "big") >> (128 - bits), bits


class LocalGate:
    """A gate of one thread; each place takes `cost` descriptors from `budget`."""

    __slots__ = ("_budget", "_cost", "_last_id", "_max_per_source", "_sources", "full", "live", "live_max")

    def __init__(self, budget: LocalBudget | None = None, cost: int = 0) -> None:
        self.live = 0
        self.live_max = 0
        self.full = 0
        self._budget = budget
        self._cost = cost
        self._max_per_source = 0
        self._last_id = 0
        self._sources: Counter[tuple[int, int]] = Counter()

    def set_limits(self, max_connections: int, max_per_source: int) -> None:
        self.live_max = max_connections
        self._max_per_source = max_per_source

    def enter(self) -> bool:
        if (self.live_max and self.live >= self.live_max) or (
            self._budget is not None and not self._budget.take(self._cost)
        ):
            self.full += 1
            return False
        self.live += 1
        return True

    def leave(self) -> None:
        assert self.live > 0
        self.live -= 1
        if self._budget is not None:
            self._budget.give(self._cost)

    @property
    def is_full(self) -> bool:
        budget = self._budget
        return bool(
            (self.live_max and self.live >= self.live_max)
            or (budget is not None and budget.total and budget.used + self._cost > budget.total)
        )

    def calm(self) -> None:
        """Nothing is remembered of having told."""

    def enter_source(self, host: str, prefix: SourcePrefix) -> bool:
        source = source_of(host, prefix)
        if self._max_per_source and self._sources[source] >= self._max_per_source:
            return False
        self._sources[source] += 1
        return True

    def leave_source(self, host: str, prefix: SourcePrefix) -> None:
        source = source_of(host, prefix)
        left = self._sources[source] - 1
        if left > 0:
            self._sources[source] = left
        else:  # clients come and go by the million: nothing is kept of those who have gone
            self._sources.pop(source, None)

    def next_id(self) -> int:
        self._last_id += 1
        return self._last_id
