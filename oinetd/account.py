"""Who is connected now, who may still come, and what each rule has moved: one place for the whole process.

Nothing here touches a socket. Listeners ask before they accept, sessions enter and leave, and whoever waits for room
is called when there is some.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from oinetd.engine import Meter
from oinetd.model import Endpoint, Rule
from oinetd.record import Ending, SessionRecord

__all__ = ["Account", "Live", "RuleAccount", "RuleStats", "Stats"]

_REFUSALS = frozenset({Ending.NOT_ALLOWED, Ending.DENIED, Ending.LIMITED})


@dataclass(slots=True)
class RuleStats:
    """The counters of one rule since it was first served; `bytes_*` are those of ended and live sessions together.

    `accepted` counts every connection taken from the queue, `refused` those that access, limits or `admit` turned
    away, `failed` those whose upstream leg could not be made. `endings` counts the ends by kind.
    """

    live: int = 0
    accepted: int = 0
    refused: int = 0
    failed: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    endings: Counter[Ending] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Stats:
    """A snapshot: the totals, and the counters of each rule, also of those that a reload took away."""

    live: int
    accepted: int
    refused: int
    failed: int
    bytes_up: int
    bytes_down: int
    rules: dict[Rule, RuleStats]


class RuleAccount:
    """The counters of one rule, and its live sessions by source address.

    A rule is known by what it binds: a reload that changes its destination or options goes on counting here.
    """

    __slots__ = ("rule", "sources", "stats")

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.stats = RuleStats()
        self.sources: Counter[str] = Counter()


@dataclass(slots=True, eq=False)
class Live:
    """A session that has not ended: its record, its counters, and the way to end it."""

    record: SessionRecord
    rule: RuleAccount
    kill: Callable[[], object]
    meter: Meter = field(default_factory=Meter)

    def snapshot(self, now: float) -> SessionRecord:
        """The record as it would read if the session ended now, but for the ending; `now` is Unix time in seconds."""
        return replace(
            self.record,
            bytes_up=self.meter.bytes_up,
            bytes_down=self.meter.bytes_down,
            duration_s=max(0.0, now - self.record.started),
        )


class Account:
    """Live sessions, limits, and counters. A limit of 0 is no limit."""

    def __init__(self) -> None:
        self.max_connections = 0
        self.max_per_source = 0
        self.live: dict[int, Live] = {}
        self._rules: dict[Endpoint, RuleAccount] = {}
        self._sources: Counter[str] = Counter()
        self._waiting: dict[Callable[[], object], None] = {}

    def of(self, rule: Rule) -> RuleAccount:
        """The account of `rule`, which is from now on what is said of its `bind`."""
        account = self._rules.get(rule.bind)
        if account is None:
            account = self._rules[rule.bind] = RuleAccount(rule)
        account.rule = rule
        return account

    def has_room(self, rule: RuleAccount) -> bool:
        """Whether one more connection of `rule` may be accepted."""
        if self.max_connections and len(self.live) >= self.max_connections:
            return False
        most = rule.rule.options.max_connections
        return not most or rule.stats.live < most

    def source_has_room(self, rule: RuleAccount, client: str) -> bool:
        """Whether `client`, already entered, keeps within what one source may have, in all and of `rule`."""
        if self.max_per_source and self._sources[client] > self.max_per_source:
            return False
        most = rule.rule.options.max_connections_per_source
        return not most or rule.sources[client] <= most

    def when_room(self, call: Callable[[], object]) -> None:
        """Call once, when the next session has ended."""
        self._waiting[call] = None

    def forget_waiting(self, call: Callable[[], object]) -> None:
        """Take a `when_room` back."""
        self._waiting.pop(call, None)

    def enter(self, live: Live) -> None:
        """A connection was accepted: from here on it counts."""
        rule, client = live.rule, live.record.client
        self.live[live.record.id] = live
        rule.stats.live += 1
        rule.stats.accepted += 1
        rule.sources[client] += 1
        self._sources[client] += 1

    def leave(self, live: Live) -> None:
        """A session has ended, with `ending` set in its record."""
        record, rule = live.record, live.rule
        assert record.ending is not None
        del self.live[record.id]
        stats = rule.stats
        stats.live -= 1
        stats.bytes_up += record.bytes_up
        stats.bytes_down += record.bytes_down
        stats.endings[record.ending] += 1
        if record.ending in _REFUSALS:
            stats.refused += 1
        elif not record.ending.connected:
            stats.failed += 1
        _less(rule.sources, record.client)
        _less(self._sources, record.client)
        if self._waiting:
            # All of them: the room may be one that the first in line cannot use.
            waiting, self._waiting = self._waiting, {}
            for call in waiting:
                call()

    def sessions(self, now: float) -> Iterator[SessionRecord]:
        """The live sessions, oldest first; `now` is Unix time in seconds."""
        return (live.snapshot(now) for live in tuple(self.live.values()))

    def stats(self) -> Stats:
        """A snapshot of all counters, live sessions included."""
        rules = {
            id(account): replace(account.stats, endings=Counter(account.stats.endings))
            for account in self._rules.values()
        }
        for live in self.live.values():
            stats = rules[id(live.rule)]
            stats.bytes_up += live.meter.bytes_up
            stats.bytes_down += live.meter.bytes_down
        every = rules.values()
        return Stats(
            live=len(self.live),
            accepted=sum(stats.accepted for stats in every),
            refused=sum(stats.refused for stats in every),
            failed=sum(stats.failed for stats in every),
            bytes_up=sum(stats.bytes_up for stats in every),
            bytes_down=sum(stats.bytes_down for stats in every),
            rules={account.rule: rules[id(account)] for account in self._rules.values()},
        )


def _less(sources: Counter[str], client: str) -> None:
    """Count one down, and forget what reaches nothing: clients come and go by the million."""
    left = sources[client] - 1
    if left > 0:
        sources[client] = left
    else:
        del sources[client]
