"""The counters of a forwarder, in all and for each rule."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from oinetd.core.record import Ending
from oinetd.model import Rule

__all__ = ["ReactorStats", "RuleStats", "Stats"]


@dataclass(slots=True)
class RuleStats:
    """The counters of one rule since it was first served; `bytes_*` are those of ended and live sessions together.

    `accepted` counts every connection taken from the queue, `refused` those that access, limits or `admit` turned
    away, `failed` those whose upstream leg could not be made. `endings` counts the ends by kind. Datagrams are those of
    the sides that are UDP; lost are those of refused clients, too, and forged are those of the lost whose source
    address cannot be true. `full` says that a limit is reached and the next client waits for a place, `times_full` how
    often that began. `rate_waits` counts the connections that waited for their turn by `rate`.
    """

    live: int = 0
    accepted: int = 0
    refused: int = 0
    failed: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    endings: Counter[Ending] = field(default_factory=Counter)
    datagrams_up: int = 0
    datagrams_down: int = 0
    datagrams_lost: int = 0
    datagrams_forged: int = 0
    full: bool = False
    times_full: int = 0
    rate_waits: int = 0


@dataclass(frozen=True, slots=True)
class Stats:
    """A snapshot: the totals, and the counters of each rule, also of those that a reload took away.

    `room` is how many connections there is room for, 0 without a bound.
    """

    live: int
    accepted: int
    refused: int
    failed: int
    bytes_up: int
    bytes_down: int
    rules: dict[Rule, RuleStats]
    datagrams_up: int = 0
    datagrams_down: int = 0
    datagrams_lost: int = 0
    datagrams_forged: int = 0
    full: bool = False
    times_full: int = 0
    room: int = 0


class ReactorStats(NamedTuple):
    """A native thread, by the number that the kernel has for it: the sessions on it, how many it gave to others, and
    whether it polls before it sleeps: `off`, `on`, or `paused` because others compute there."""

    thread: int
    sessions: int
    moved: int
    polling: str
