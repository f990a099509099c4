"""What both lanes count of a server, and what they have to know of it to choose. One object for each server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from oinetd.upstream.balance import FULL_WEIGHT, stride

__all__ = ["PATIENCE_MIN_MS", "PATIENCE_MS", "Load", "LocalLoad", "NewLoad"]

PATIENCE_MIN_MS: Final = 100
"""The least time until a connect is overdue: RFC 8305 recommends no less between two connects."""

PATIENCE_MS: Final = 250
"""The same if no connect to the server has succeeded yet."""

PATIENCE_TIMES: Final = 4
"""A connect is overdue after this multiple of what connects took of late."""

TOOK_SHARE: Final = 8
"""A shorter connect lowers what connects took of late by so much of the difference; a longer one counts at once."""


class Load(Protocol):
    """The counts of a server; `oinetd._fastpath.Server`, which the reactors share, is one.

    `state` is the place in `State`. `weight` is from 0 to 256. `max_connections` 0 is no bound. `slow_since_ms` is when
    a slow start began, 0 is none; `passed` is how far it has come in the round of `roundrobin`; `failures` are connects
    that failed in a row, `failed_ms` is when the last one did.
    """

    state: int
    weight: int
    max_connections: int
    slow_since_ms: int
    passed: int
    failures: int
    failed_ms: int

    @property
    def tag(self) -> int: ...
    @property
    def live(self) -> int: ...
    @property
    def selected(self) -> int: ...
    @property
    def failed(self) -> int: ...
    def enter(self) -> bool:
        """Select it for a session; False if it is full."""
        ...

    def force(self) -> None:
        """Count a session that another process has given to it."""
        ...

    def count_on(self, selected: int, failed: int) -> None:
        """Add what another process has counted."""
        ...

    def leave(self) -> None:
        """A session that selected it has ended, or tries another one."""
        ...

    def note_failed(self, now_ms: int) -> int:
        """A connect failed; returns how many failed in a row."""
        ...

    def note_worked(self) -> None:
        """A connect succeeded."""
        ...

    def took(self, took_ms: int) -> None:
        """It took a connection after this time."""
        ...

    @property
    def took_ms(self) -> int | None:
        """What connects took of late; None if none has been made."""
        ...

    @property
    def patience_ms(self) -> int:
        """After which time a connect to it is overdue."""
        ...

    @property
    def overdue(self) -> int:
        """Connects that are overdue since one succeeded."""
        ...

    def is_silent(self, limit: int) -> bool:
        """Whether the overdue connects would eject it if they failed, which takes `limit` in a row; 0 is never."""
        ...

    def wait(self, limit: int) -> int:
        """Count a connect as overdue that may wait on; the mark for `wait_over`, or 0 if enough wait already."""
        ...

    def wait_over(self, mark: int) -> None:
        """An overdue connect has ended."""
        ...

    def calm(self) -> None:
        """Report it when it works again after the next failure."""
        ...


NewLoad = Callable[[int], Load]
"""Makes the load of a server from its tag."""


class LocalLoad:
    """A `Load` of one thread."""

    __slots__ = (
        "_mark",
        "failed",
        "failed_ms",
        "failures",
        "live",
        "max_connections",
        "overdue",
        "passed",
        "selected",
        "slow_since_ms",
        "state",
        "tag",
        "took_ms",
        "weight",
    )

    def __init__(self, tag: int) -> None:
        self.tag = tag
        self.state = 0
        self.weight = 1
        self.max_connections = 0
        self.slow_since_ms = 0
        self.passed = stride(FULL_WEIGHT) // 2
        self.failures = 0
        self.failed_ms = 0
        self.live = 0
        self.overdue = 0
        self._mark = 1
        self.took_ms: int | None = None
        self.selected = 0
        self.failed = 0

    def enter(self) -> bool:
        if self.max_connections and self.live >= self.max_connections:
            return False
        self.live += 1
        self.selected += 1
        return True

    def force(self) -> None:
        self.live += 1

    def count_on(self, selected: int, failed: int) -> None:
        self.selected += selected
        self.failed += failed

    def leave(self) -> None:
        assert self.live > 0
        self.live -= 1

    def note_failed(self, now_ms: int) -> int:
        self.failed += 1
        self.failures += 1
        self.failed_ms = now_ms
        return self.failures

    def note_worked(self) -> None:
        self.failures = 0
        if self.overdue:
            self.overdue = 0
            self._mark += 1

    def took(self, took_ms: int) -> None:
        before = self.took_ms
        if before is not None and took_ms < before:
            took_ms = before - -(-(before - took_ms) // TOOK_SHARE)
        self.took_ms = took_ms

    @property
    def patience_ms(self) -> int:
        if self.took_ms is None:
            return PATIENCE_MS
        return max(PATIENCE_TIMES * self.took_ms, PATIENCE_MIN_MS)

    def is_silent(self, limit: int) -> bool:
        return self.overdue > 0 and 0 < limit <= self.overdue + self.failures

    def wait(self, limit: int) -> int:
        if self.overdue and self.overdue + self.failures >= limit:
            return 0
        self.overdue += 1
        return self._mark

    def wait_over(self, mark: int) -> None:
        if self.overdue and mark == self._mark:
            self.overdue -= 1

    def calm(self) -> None:
        """Nothing to do: only the reactors remember what was reported."""
