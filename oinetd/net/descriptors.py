"""How many descriptors sessions may have: one account for connections, UDP sessions and pipes of both lanes.

A connection takes two from the budget before it is accepted, a UDP session one, a pipe of the native lane two. What the
process needs for itself is kept back: reloads open files and sockets also when clients use everything else.
"""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass
from typing import Final, Protocol

__all__ = [
    "CONNECTION_DESCRIPTORS",
    "UDP_SESSION_DESCRIPTORS",
    "Budget",
    "Descriptors",
    "LocalBudget",
    "reactors_affordable",
]

CONNECTION_DESCRIPTORS: Final = 2
UDP_SESSION_DESCRIPTORS: Final = 1
KEPT_SHARE: Final = 16
KEPT_MIN: Final = 8
KEPT_MAX: Final = 64
"""Kept back for reloads, logs and the program around: a sixteenth of the limit, within these bounds."""
KEPT_FOR_NAMES_MAX: Final = 32
"""Lookups have a socket each, and so many run at a time (`oinetd.net.resolver`)."""
REACTOR_SHARE: Final = 16
"""Reactors take two descriptors each, and without a number in the configuration an eighth of all together at most."""


class Budget(Protocol):
    """Descriptors that sessions may have; `total` 0 is no bound."""

    total: int

    @property
    def used(self) -> int: ...
    @property
    def pipes(self) -> int: ...


class LocalBudget:
    """A budget of one thread, for a process without the extension."""

    __slots__ = ("pipes", "total", "used")

    def __init__(self) -> None:
        self.total = 0
        self.used = 0
        self.pipes = 0

    def take(self, cost: int) -> bool:
        """Take descriptors; False where there are not so many."""
        if self.total and self.used + cost > self.total:
            return False
        self.used += cost
        return True

    def give(self, cost: int) -> None:
        """Give descriptors back."""
        assert self.used >= cost
        self.used -= cost


@dataclass(slots=True)
class Descriptors:
    """The account of one forwarder, in `budget`. `measure` goes first, before anybody has a session."""

    budget: Budget
    limit: int = 0
    kept: int = 0
    taken: int = 0
    _base: int = -1

    def measure(self, listeners: int, reactors: int, names: int) -> None:
        """Set the budget to what the limit leaves beside what is open; a reload does so with its own numbers.

        `listeners` and `reactors` are those that are there now, `names` is how many are to be looked up. The rest
        is counted once, at the first call, when no session can be among it.
        """
        own = listeners + (2 * reactors + 1 if reactors else 0)
        if self._base < 0:
            self._base = max(0, _open_descriptors() - own)
        self.taken = self._base + own
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft == resource.RLIM_INFINITY:
            self.limit = self.kept = self.budget.total = 0
            return
        self.limit = soft
        share = soft // KEPT_SHARE
        self.kept = min(max(share, KEPT_MIN), KEPT_MAX) + min(names, share, KEPT_FOR_NAMES_MAX)
        self.budget.total = max(CONNECTION_DESCRIPTORS, soft - self.taken - self.kept)

    @property
    def connections(self) -> int:
        """How many connections there is room for; 0 is no bound."""
        return self.budget.total // CONNECTION_DESCRIPTORS

    @property
    def udp_sessions(self) -> int:
        """How many UDP sessions there may be: half of the descriptors, so that they never take all; 0 is no bound."""
        return self.budget.total // 2 // UDP_SESSION_DESCRIPTORS

    def at_most(self, asked_for: int, possible: int) -> int:
        """The lower of two bounds, of which 0 is none."""
        return min(asked_for, possible) if asked_for and possible else asked_for or possible

    def room(self, max_connections: int) -> str:
        """What there is room for, in a sentence; `max_connections` is what the configuration allows, 0 for all."""
        if not self.limit:
            return f"room for {max_connections or 'any number of'} connections (no limit of descriptors)"
        room = self.at_most(max_connections, self.connections)
        return (
            f"room for {room} connections (limit of {self.limit} descriptors: {self.taken} in use, {self.kept} kept "
            "for reloads, logs and lookups, two for each connection)"
        )


def reactors_affordable(cores: int) -> int:
    """As many reactors as there are cores, unless the limit of descriptors is so low that sessions would miss them."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return max(1, cores)
    return max(1, min(cores, soft // REACTOR_SHARE))


def _open_descriptors() -> int:
    """How many descriptors this process has open."""
    try:
        return len(os.listdir("/proc/self/fd")) - 1  # the folder's own is among them
    except OSError:  # no /proc: ask for each
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return sum(_is_open(fd) for fd in range(min(soft, 65536) if soft != resource.RLIM_INFINITY else 65536))


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
