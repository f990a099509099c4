"""Which server of a group is next, in the Python lane: pure functions. `_fastpath/shared/group.pxd` is their twin.

Each chooses among the servers that are `open` to the search: usable, with room, and not tried by it. All numbers are
whole, so that the reactors (`_fastpath/`) compute the same. A test compares the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

__all__ = ["FULL_WEIGHT", "STRIDE", "Weighed", "first", "least_loaded", "least_passed", "ramped", "stride", "two_draws"]

FULL_WEIGHT: Final = 1000
"""Weights are in thousandths, because a slow start divides them."""

RAMP_FROM: Final = FULL_WEIGHT // 10
"""A slow start begins with a tenth of the weight."""

STRIDE: Final = 1 << 36
"""The distance that a server of weight 0.001 moves on the circle of `roundrobin` when it is chosen."""


class Weighed(Protocol):
    """A server of a group, with what the choice depends on.

    `live` is the number of its sessions, including those that are still connecting. `weight` is in thousandths and
    above 0. `passed` is its position in the round; see `least_passed`.
    """

    @property
    def open(self) -> bool: ...
    @property
    def live(self) -> int: ...
    @property
    def weight(self) -> int: ...
    @property
    def passed(self) -> int: ...


def least_loaded(servers: Sequence[Weighed], start: int) -> int:
    """`leastconn`: the server with the lowest (live + 1) / weight; -1 if none is open.

    Of equal servers, the first from `start` on wins. `start` follows the last choice, so that ties rotate.
    """
    best, live, weight = -1, 0, 1
    size = len(servers)
    for step in range(size):
        at = (start + step) % size
        server = servers[at]
        if server.open and (best < 0 or (server.live + 1) * weight < live * server.weight):
            best, live, weight = at, server.live + 1, server.weight
    return best


def least_passed(servers: Sequence[Weighed]) -> int:
    """`roundrobin`: the open server with the lowest position, the first of equal ones; -1 if none is open.

    The chosen server advances by `stride(weight)`, so that in each round a server has as many turns as its weight. A
    server begins half a stride below zero. One that returns begins at the lowest position of the others
    (`Group._rejoin`). So turns are spread over the round, and a server never catches up on the time that it missed.
    """
    best, least = -1, 0
    for at, server in enumerate(servers):
        if server.open and (best < 0 or server.passed < least):
            best, least = at, server.passed
    return best


def stride(weight: int) -> int:
    """The distance by which a server of this weight advances when `roundrobin` chooses it."""
    return STRIDE // weight


def two_draws(servers: Sequence[Weighed], draw: int, start: int) -> int:
    """`random`: draws two different open servers with the 64 random bits of `draw`, and takes the less loaded one.

    -1 if none is open.
    """
    places = [at for at, server in enumerate(servers) if server.open]
    count = len(places)
    if count <= 2:
        return least_loaded(servers, start)
    one = (draw & 0xFFFFFFFF) * count >> 32
    other = (draw >> 32) * (count - 1) >> 32
    other += other >= one
    near, far = sorted((places[one], places[other]), key=lambda at: (at - start) % len(servers))
    a, b = servers[near], servers[far]
    return far if (b.live + 1) * a.weight < (a.live + 1) * b.weight else near


def first(servers: Sequence[Weighed]) -> int:
    """`first`: the first open server in the order of the configuration; -1 if none is open."""
    return next((at for at, server in enumerate(servers) if server.open), -1)


def ramped(weight: int, age_ms: int, ramp_ms: int) -> int:
    """The weight in thousandths of a server of `weight` that became usable `age_ms` ago, if a slow start takes
    `ramp_ms` (0 is none): it grows by the clock, from a tenth."""
    if age_ms >= ramp_ms:
        return weight * FULL_WEIGHT
    return weight * (RAMP_FROM + (FULL_WEIGHT - RAMP_FROM) * age_ms // ramp_ms)
