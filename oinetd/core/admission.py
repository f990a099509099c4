"""A gate: a counted limit of sessions, in all and for each source.

A place is taken before a connection is accepted, so that one for which there is no room stays in the accept queue.
A gate has two implementations. `LocalGate` is for one thread: each rule of the Python lane has one, and the process if
the extension is missing. `oinetd._fastpath.Gate` is for both lanes and all threads: the process has one for
connections and one for UDP sessions, and each rule of the native lane has one.
"""

from __future__ import annotations

import socket
from collections import Counter
from typing import Protocol

from oinetd.model import SourcePrefix
from oinetd.net.address import UNIX_CLIENT
from oinetd.net.descriptors import LocalBudget

__all__ = ["Gate", "LocalGate", "source_of"]

MAPPED_PREFIX = b"\0" * 10 + b"\xff\xff"
"""The first 12 bytes of an IPv4 address as an IPv6 socket shows it (RFC 4291, 2.5.5.2)."""
UNIX_MARK = b"\xffunx"
"""Stands before the user's number in place of an address: no client has a multicast address. As in
`_fastpath/base/address.pxd`."""


class Gate(Protocol):
    """A counted limit; a limit of 0 is no limit."""

    @property
    def live(self) -> int:
        """The number of sessions that have a place."""
        ...

    @property
    def live_max(self) -> int:
        """The limit of `live`."""
        ...

    @property
    def full(self) -> int:
        """How often there was no place to take."""
        ...

    @property
    def is_full(self) -> bool:
        """Whether there is no place to take now."""
        ...

    def calm(self) -> None:
        """Report it again when the gate is full the next time."""
        ...

    def set_limits(self, max_connections: int, max_per_source: int) -> None:
        """Change the limits; sessions that have a place keep it."""
        ...

    def enter(self) -> bool:
        """Take a place; False if all are taken."""
        ...

    def force(self) -> None:
        """Take a place whether there is one or not: for a session that another process let in."""
        ...

    def leave(self) -> None:
        """Give a place back."""
        ...

    @property
    def preamble_full(self) -> bool:
        """Whether half of the places have clients whose preamble is being read: no more than these may wait in it."""
        ...

    def enter_preamble(self) -> None:
        """The preamble of one more client is being read."""
        ...

    def leave_preamble(self) -> None:
        """It was read, or the client has gone."""
        ...

    def take_spare(self) -> bool:
        """Take one descriptor more than a session has; False if the next session would miss it."""
        ...

    def give_spare(self) -> None:
        """Give such a descriptor back."""
        ...

    def enter_source(self, host: str, prefix: SourcePrefix) -> bool:
        """Count one more session of a client's source; False if it has all it may have."""
        ...

    def leave_source(self, host: str, prefix: SourcePrefix) -> None:
        """Count one session less of a client's source; `prefix` is the one with which it was counted."""
        ...

    def next_id(self) -> int:
        """A number that no other session of this gate has."""
        ...

    def skip_ids(self, least: int) -> None:
        """Number the sessions to come from `least` on, at least."""
        ...


def source_of(host: str, prefix: SourcePrefix) -> tuple[int, int]:
    """The source that a client's numeric address belongs to: the bits of its prefix, and their number.

    An IPv4 client of an IPv6 socket counts as IPv4. Link-local addresses are sources of their own: they share one
    prefix on every link, so all hosts of a link would be one source. `unix:` and a number is a user at a unix
    socket. (`_fastpath/shared/source.pxd` does the same.)
    """
    if host.startswith(UNIX_CLIENT):
        packed = UNIX_MARK + int(host.removeprefix(UNIX_CLIENT)).to_bytes(4, "little") + bytes(8)
        return int.from_bytes(packed, "big") >> 64, 64
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
    """A `Gate` of one thread; each place takes `cost` descriptors from `budget`."""

    __slots__ = (
        "_budget",
        "_cost",
        "_last_id",
        "_max_per_source",
        "_preambles",
        "_sources",
        "full",
        "live",
        "live_max",
    )

    def __init__(self, budget: LocalBudget | None = None, cost: int = 0) -> None:
        self.live = 0
        self.live_max = 0
        self.full = 0
        self._budget = budget
        self._cost = cost
        self._max_per_source = 0
        self._last_id = 0
        self._preambles = 0
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

    def force(self) -> None:
        self.live += 1
        if self._budget is not None:
            self._budget.force(self._cost)

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

    @property
    def preamble_full(self) -> bool:
        rooms = [self.live_max] if self.live_max else []
        if self._budget is not None and self._budget.total and self._cost:
            rooms.append(self._budget.total // self._cost)
        return bool(rooms) and self._preambles >= max(1, min(rooms) // 2)

    def enter_preamble(self) -> None:
        self._preambles += 1

    def leave_preamble(self) -> None:
        assert self._preambles > 0
        self._preambles -= 1

    def take_spare(self) -> bool:
        return self._budget is None or self._budget.take(1, self._cost)

    def give_spare(self) -> None:
        if self._budget is not None:
            self._budget.give(1)

    def calm(self) -> None:
        """Nothing to do: only the gate of the reactors remembers that it was reported."""

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
        else:  # clients come and go by the million: nothing is kept of those that have gone
            self._sources.pop(source, None)

    def next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def skip_ids(self, least: int) -> None:
        self._last_id = max(self._last_id, least - 1)
