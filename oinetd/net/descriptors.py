"""The budget of descriptors for sessions: connections, UDP sessions and pipes of both lanes.

A connection takes two before it is accepted, a UDP session one, a pipe of the native lane two. Some are reserved for
the process itself: a reload must be able to open files and sockets when clients use all others.
"""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass
from typing import Final, Protocol

__all__ = [
    "CHECKS_MAX",
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
"""Reserved for reloads, logs and the embedding program: a sixteenth of the limit, within these bounds."""
KEPT_FOR_NAMES_MAX: Final = 32
"""Each lookup has a socket; this is the number of lookups at a time (`oinetd.net.resolver`)."""
CHECKS_MAX: Final = 256
"""Checks of servers at a time, each with a socket; a sixteenth of the limit if that is less."""
REACTOR_SHARE: Final = 16
"""A reactor takes two descriptors. Without `threads`, all reactors together take at most an eighth of the limit."""


class Budget(Protocol):
    """The descriptors for sessions; `total` 0 means no limit."""

    total: int

    @property
    def used(self) -> int: ...
    @property
    def pipes(self) -> int: ...


class LocalBudget:
    """A budget for one thread, for a process without the extension."""

    __slots__ = ("pipes", "total", "used")

    def __init__(self) -> None:
        self.total = 0
        self.used = 0
        self.pipes = 0

    def take(self, cost: int, spared: int = 0) -> bool:
        """Take descriptors, if `spared` of them are left then; False if they are not."""
        if self.total and self.used + cost + spared > self.total:
            return False
        self.used += cost
        return True

    def force(self, cost: int) -> None:
        """Take descriptors, whether they are left or not."""
        self.used += cost

    def give(self, cost: int) -> None:
        """Give descriptors back."""
        assert self.used >= cost
        self.used -= cost


@dataclass(slots=True)
class Descriptors:
    """The descriptors of one forwarder. Call `measure` first, before any session exists."""

    budget: Budget
    limit: int = 0
    kept: int = 0
    taken: int = 0
    checks: int = 1
    _base: int = -1

    def measure(self, listeners: int, reactors: int, names: int, checked: int = 0) -> None:
        """Set the budget to the descriptor limit minus what is open and reserved. A reload calls it again.

        `listeners` and `reactors` are the present numbers, `names` is the number of names to resolve, and `checked`
        that of servers to check, `checks` of them at a time. All other open descriptors are counted once, at the first
        call, while there is no session.
        """
        own = listeners + (2 * reactors + 1 if reactors else 0)
        if self._base < 0:
            self._base = max(0, _open_descriptors() - own)
        self.taken = self._base + own
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.checks = max(1, min(checked, CHECKS_MAX))
        if soft == resource.RLIM_INFINITY:
            self.limit = self.kept = self.budget.total = 0
            return
        self.limit = soft
        share = soft // KEPT_SHARE
        self.checks = max(1, min(self.checks, share))
        self.kept = min(max(share, KEPT_MIN), KEPT_MAX) + min(names, share, KEPT_FOR_NAMES_MAX)
        self.kept += self.checks if checked else 0
        self.budget.total = max(CONNECTION_DESCRIPTORS, soft - self.taken - self.kept)

    @property
    def connections(self) -> int:
        """The number of connections that the budget allows; 0 means no limit."""
        return self.budget.total // CONNECTION_DESCRIPTORS

    @property
    def udp_sessions(self) -> int:
        """The number of UDP sessions that the budget allows, half of the descriptors; 0 means no limit."""
        return self.budget.total // 2 // UDP_SESSION_DESCRIPTORS

    def at_most(self, asked_for: int, possible: int) -> int:
        """The lower of two limits; 0 means no limit."""
        return min(asked_for, possible) if asked_for and possible else asked_for or possible

    def room(self, max_connections: int) -> str:
        """The capacity as a sentence; `max_connections` is the configured limit, 0 for none."""
        if not self.limit:
            return f"room for {max_connections or 'any number of'} connections (no descriptor limit)"
        room = self.at_most(max_connections, self.connections)
        return (
            f"room for {room} connections (descriptor limit {self.limit}: {self.taken} in use, {self.kept} reserved "
            "for reloads, logs, lookups and checks, 2 per connection)"
        )


def reactors_affordable(cores: int) -> int:
    """The number of reactors for `cores`: fewer than cores if the descriptor limit is low."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return max(1, cores)
    return max(1, min(cores, soft // REACTOR_SHARE))


def _open_descriptors() -> int:
    """The number of open descriptors of this process."""
    try:
        return len(os.listdir("/proc/self/fd")) - 1  # without that of the listing itself
    except OSError:  # no /proc: try each
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return sum(_is_open(fd) for fd in range(min(soft, 65536) if soft != resource.RLIM_INFINITY else 65536))


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
