"""Health of a server: two state machines, each a table. They have no clock and no socket; the caller reports events.

- `CheckState` is HAProxy's: a counter from 0 to rise + fall - 1; the server is up from `rise` on. While it is down, a
  success counts up, and at `rise` to the top. While it is up, a failure counts down, and below `rise` to 0.
- `PassiveState` depends on the connects of clients: failures in a row eject the server for a time. After this time, one
  failure ejects it again for twice the time. One success resets everything.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from functools import lru_cache
from typing import Final, NamedTuple

__all__ = [
    "EJECTED_MAX_S",
    "PASSIVE_NEXT",
    "UNCHECKED",
    "CheckState",
    "PassiveEvent",
    "PassiveState",
    "Standing",
    "check_table",
]

EJECTED_MAX_S: Final = 300.0
"""The longest ejection."""

UNCHECKED: Final = -1
"""The counter of a server that has not been checked yet."""


@lru_cache(maxsize=64)
def check_table(rise: int, fall: int) -> Mapping[int, tuple[int, int]]:
    """The next value of the counter after a success and after a failure, for each value."""
    top = rise + fall - 1
    table = {UNCHECKED: (top, 0)}
    for health in range(top + 1):
        better = health + 1 if health + 1 < rise else top
        worse = health - 1 if health > rise else 0
        table[health] = (better, worse)
    return table


class CheckState(NamedTuple):
    """The counter of one server and the thresholds of its group."""

    rise: int
    fall: int
    health: int = UNCHECKED

    @classmethod
    def up(cls, rise: int, fall: int) -> CheckState:
        """A server that is up for good."""
        return cls(rise, fall, rise + fall - 1)

    @property
    def top(self) -> int:
        return self.rise + self.fall - 1

    @property
    def is_checked(self) -> bool:
        return self.health != UNCHECKED

    @property
    def is_up(self) -> bool:
        """Whether the checks allow its use; a server that was not checked yet is not up."""
        return self.health >= self.rise

    @property
    def in_transition(self) -> bool:
        """Whether it is between up and down for good: it is checked at `check-fast`."""
        return self.health not in (0, self.top)

    def passed(self) -> CheckState:
        """After a check that succeeded."""
        return self._replace(health=check_table(self.rise, self.fall)[self.health][0])

    def failed(self) -> CheckState:
        """After a check that failed."""
        return self._replace(health=check_table(self.rise, self.fall)[self.health][1])

    def with_thresholds(self, rise: int, fall: int) -> CheckState:
        """The same state if a reload changes the thresholds: up stays up, down stays down."""
        if (rise, fall) == (self.rise, self.fall):
            return self
        health = self.health
        if self.is_checked:
            health = rise + fall - 1 if self.is_up else 0
        return CheckState(rise, fall, health)


class Standing(enum.Enum):
    """The state of a server by the connects of clients."""

    TRUSTED = enum.auto()
    EJECTED = enum.auto()
    ON_TRIAL = enum.auto()
    """The ejection is over and no connect has succeeded since."""


class PassiveEvent(enum.Enum):
    """An event of a server."""

    WORKED = enum.auto()
    FAILED = enum.auto()
    """A connect failed; the failures in a row are below the limit."""
    FAILED_TOO_OFTEN = enum.auto()
    """A connect failed; the failures in a row reach the limit."""
    TIME_OVER = enum.auto()
    """The time of the ejection is over."""


_S, _E = Standing, PassiveEvent
PASSIVE_NEXT: Final[Mapping[tuple[Standing, PassiveEvent], Standing]] = {
    (_S.TRUSTED, _E.WORKED): _S.TRUSTED,
    (_S.TRUSTED, _E.FAILED): _S.TRUSTED,
    (_S.TRUSTED, _E.FAILED_TOO_OFTEN): _S.EJECTED,
    (_S.TRUSTED, _E.TIME_OVER): _S.TRUSTED,
    (_S.EJECTED, _E.WORKED): _S.TRUSTED,
    (_S.EJECTED, _E.FAILED): _S.EJECTED,
    (_S.EJECTED, _E.FAILED_TOO_OFTEN): _S.EJECTED,
    (_S.EJECTED, _E.TIME_OVER): _S.ON_TRIAL,
    (_S.ON_TRIAL, _E.WORKED): _S.TRUSTED,
    (_S.ON_TRIAL, _E.FAILED): _S.EJECTED,
    (_S.ON_TRIAL, _E.FAILED_TOO_OFTEN): _S.EJECTED,
    (_S.ON_TRIAL, _E.TIME_OVER): _S.ON_TRIAL,
}
"""The standing after an event. A server that is ejected again is ejected for twice the time."""


class PassiveState(NamedTuple):
    """The standing of a server, its failures in a row, the time of its next ejection, and when the present one ends."""

    standing: Standing = Standing.TRUSTED
    failures: int = 0
    hold_s: float = 0.0
    until: float = 0.0

    def worked(self) -> PassiveState:
        """A connect or a check succeeded: everything is reset."""
        return PassiveState()

    def failed(self, now: float, limit: int, first_s: float, *, may_eject: bool = True) -> PassiveState:
        """A connect failed at the time `now`; `limit` failures in a row eject for `first_s`.

        Without `may_eject`, for the last usable server of a group, failures are only counted.
        """
        failures = self.failures + 1
        event = PassiveEvent.FAILED_TOO_OFTEN if failures >= limit else PassiveEvent.FAILED
        standing = PASSIVE_NEXT[self.standing, event]
        if standing is not Standing.EJECTED or self.standing is Standing.EJECTED or not may_eject:
            return self._replace(failures=failures)
        hold_s = min(2 * self.hold_s, EJECTED_MAX_S) if self.hold_s else first_s
        return PassiveState(Standing.EJECTED, failures, hold_s, now + hold_s)

    def time_passed(self, now: float) -> PassiveState:
        """The state at the time `now`."""
        if self.standing is not Standing.EJECTED or now < self.until:
            return self
        return self._replace(standing=PASSIVE_NEXT[self.standing, PassiveEvent.TIME_OVER])
