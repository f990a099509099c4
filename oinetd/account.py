"""Who is connected now, who may still come, and what each rule has moved: one place for the whole process.

Nothing here touches a socket. Listeners ask before they accept, sessions enter and leave, and whoever waits for room
is called when there is some.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from oinetd.engine import Meter
from oinetd.gate import Gate, LocalGate
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
    """The counters of one rule, and the gate of its sessions in the Python lane.

    A rule is known by its `identity`: a reload that changes its destination or options goes on counting here.
    """

    __slots__ = ("gate", "rule", "stats")

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.stats = RuleStats()
        self.gate = LocalGate()


@dataclass(slots=True, eq=False)
class Live:
    """A session of the Python lane that has not ended: its record, its counters, and the way to end it.

    `gates` are those in which its source address is counted, `since` is when it began, in seconds of the monotonic
    clock.
    """

    record: SessionRecord
    rule: RuleAccount
    kill: Callable[[], object]
    meter: Meter = field(default_factory=Meter)
    gates: tuple[Gate, ...] = ()
    since: float = field(default_factory=time.monotonic)

    def snapshot(self) -> SessionRecord:
        """The record as it would read if the session ended now, but for the ending."""
        return replace(
            self.record,
            bytes_up=self.meter.bytes_up,
            bytes_down=self.meter.bytes_down,
            duration_s=time.monotonic() - self.since,
        )


class Account:
    """Live sessions, limits, and counters, over the process's `gate`, which both lanes go through."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.live: dict[int, Live] = {}
        self._native_live = 0
        self._max_per_source = 0
        self._rules: dict[Endpoint | Rule, RuleAccount] = {}
        self._waiting: dict[Callable[[], object], None] = {}

    @property
    def anybody(self) -> bool:
        """Whether somebody is connected, or has ended and is not accounted for yet."""
        return bool(self.gate.live or self.live or self._native_live)

    def set_limits(self, max_connections: int, max_per_source: int) -> None:
        """Bound the sessions of the process; 0 is no bound."""
        self._max_per_source = max_per_source
        self.gate.set_limits(max_connections, max_per_source)

    def of(self, rule: Rule) -> RuleAccount:
        """The account of `rule`, which is from now on what is said of its `identity`."""
        account = self._rules.get(rule.identity)
        if account is None:
            account = self._rules[rule.identity] = RuleAccount(rule)
        account.rule = rule
        account.gate.set_limits(rule.options.max_connections or 0, rule.options.max_connections_per_source or 0)
        return account

    def take_place(self, rule: RuleAccount) -> bool:
        """A place for one more connection of `rule`, to be taken before it is accepted; False where there is none."""
        if not rule.gate.enter():
            return False
        if self.gate.enter():
            return True
        rule.gate.leave()
        return False

    def give_back(self, rule: RuleAccount) -> None:
        """Give a place back for which there was no connection."""
        rule.gate.leave()
        self.gate.leave()

    def admit_source(self, live: Live) -> bool:
        """Count the session for its source address; False where that has all it may have, here or of its rule."""
        client = live.record.client
        # Only those that are bounded now: what was not counted on the way in must not be on the way out.
        gates: list[Gate] = [self.gate] if self._max_per_source else []
        if live.rule.rule.options.max_connections_per_source:
            gates.append(live.rule.gate)
        for passed, gate in enumerate(gates):
            if not gate.enter_source(client):
                for each in gates[:passed]:
                    each.leave_source(client)
                return False
        live.gates = tuple(gates)
        return True

    def when_room(self, call: Callable[[], object]) -> None:
        """Call once, when the next session has ended."""
        self._waiting[call] = None

    def forget_waiting(self, call: Callable[[], object]) -> None:
        """Take a `when_room` back."""
        self._waiting.pop(call, None)

    def enter(self, live: Live) -> None:
        """A session of the Python lane begins, in a place that was taken."""
        self.live[live.record.id] = live
        live.rule.stats.live += 1
        live.rule.stats.accepted += 1

    def leave(self, live: Live) -> None:
        """It has ended, with `ending` set in its record, and gives its place back."""
        del self.live[live.record.id]
        live.rule.stats.live -= 1
        self._count(live.rule.stats, live.record)
        for gate in live.gates:
            gate.leave_source(live.record.client)
        self.give_back(live.rule)
        self._make_room()

    def native_opened(self, record: SessionRecord) -> None:
        """The native lane has admitted a session; the gates are its own business."""
        stats = self._rules[record.route.rule.identity].stats
        stats.live += 1
        stats.accepted += 1
        self._native_live += 1

    def native_closed(self, record: SessionRecord) -> None:
        """A session of the native lane has ended, or was refused."""
        stats = self._rules[record.route.rule.identity].stats
        if record.ending in _REFUSALS:
            stats.accepted += 1
        else:
            stats.live -= 1
            self._native_live -= 1
        self._count(stats, record)
        self._make_room()

    @staticmethod
    def _count(stats: RuleStats, record: SessionRecord) -> None:
        assert record.ending is not None
        stats.bytes_up += record.bytes_up
        stats.bytes_down += record.bytes_down
        stats.endings[record.ending] += 1
        if record.ending in _REFUSALS:
            stats.refused += 1
        elif not record.ending.connected:
            stats.failed += 1

    def _make_room(self) -> None:
        if self._waiting:
            # All of them: the room may be one that the first in line cannot use.
            waiting, self._waiting = self._waiting, {}
            for call in waiting:
                call()

    def sessions(self) -> Iterator[SessionRecord]:
        """The live sessions, oldest first."""
        return (live.snapshot() for live in tuple(self.live.values()))

    def stats(self, native: Iterable[SessionRecord] = ()) -> Stats:
        """A snapshot of all counters, with the live sessions, those of the native lane given."""
        rules = {
            bind: replace(account.stats, endings=Counter(account.stats.endings))
            for bind, account in self._rules.items()
        }
        for record in (*self.sessions(), *native):
            stats = rules[record.route.rule.identity]
            stats.bytes_up += record.bytes_up
            stats.bytes_down += record.bytes_down
        every = rules.values()
        return Stats(
            live=sum(stats.live for stats in every),
            accepted=sum(stats.accepted for stats in every),
            refused=sum(stats.refused for stats in every),
            failed=sum(stats.failed for stats in every),
            bytes_up=sum(stats.bytes_up for stats in every),
            bytes_down=sum(stats.bytes_down for stats in every),
            rules={account.rule: rules[bind] for bind, account in self._rules.items()},
        )
