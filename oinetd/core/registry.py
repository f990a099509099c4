"""The live sessions, the limits, and the counters of each rule.

Nothing here touches a socket. A listener takes a place before it accepts, and is called when there is room again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from oinetd.core.admission import Gate, LocalGate, source_of
from oinetd.core.away import Away
from oinetd.core.engine import CountedMeter, Engine, Leaving, Meter
from oinetd.core.histogram import HistogramCounts, SessionTimes
from oinetd.core.preamble import InvalidPreambles
from oinetd.core.record import Ending, SessionRecord, Totals
from oinetd.core.stats import RuleStats, Stats
from oinetd.core.throttle import RuleBuckets
from oinetd.model import SOURCE_PREFIX, Endpoint, Rule, SourcePrefix

if TYPE_CHECKING:
    from oinetd.core.lane import Departing

__all__ = ["Live", "Registry", "RuleEntry", "RuleStats", "Stats"]


class RuleEntry:
    """The counters of one rule, and the gate of its sessions in the Python lane.

    A rule is known by its `identity`: a reload that changes its destination or options goes on counting here.
    """

    __slots__ = ("buckets", "gate", "moved", "rule", "stats", "times")

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.stats = RuleStats()
        self.gate = LocalGate()
        self.times = SessionTimes()
        self.moved = Meter()  # by all its sessions in the Python lane
        self.buckets = RuleBuckets()


@dataclass(slots=True, eq=False)
class Live:
    """A session of the Python lane that has not ended: its record, its counters, and the way to end it.

    `gates` are those in which its source is counted, with the prefix `source_prefix`; `since` is when it began, in
    seconds of the monotonic clock. A UDP session (`datagrams`) has a place among those of its rule, and none among the
    connections of the process. `revoke` ends a connection that the access rules refuse now. `relaying` is the engine
    that relays it, and what makes it one that leaves for another process.
    """

    record: SessionRecord
    rule: RuleEntry
    kill: Callable[[], object]
    meter: Meter = field(init=False)
    gates: tuple[Gate, ...] = ()
    source_prefix: SourcePrefix = SOURCE_PREFIX
    since: float = field(default_factory=time.monotonic)
    datagrams: bool = False
    revoke: Callable[[], object] | None = None
    relaying: tuple[Engine, Callable[[Leaving], Departing]] | None = None

    def __post_init__(self) -> None:
        self.meter = CountedMeter(self.rule.moved)

    def snapshot(self) -> SessionRecord:
        """The record as it would read if the session ended now, but for the ending."""
        now = time.monotonic()
        self.note_upstream()
        return replace(
            self.record,
            bytes_up=self.meter.bytes_up,
            bytes_down=self.meter.bytes_down,
            datagrams_up=self.meter.datagrams_up,
            datagrams_down=self.meter.datagrams_down,
            datagrams_lost=self.meter.datagrams_lost,
            duration_s=now - self.since,
            idle_s=max(0.0, now - max(self.since, self.meter.moved_at)),
        )

    def complete(self, ending: Ending, code: int) -> None:
        """Put the end into the record, and what was moved."""
        record, meter = self.record, self.meter
        self.note_upstream()
        record.ending, record.errno = ending, code
        record.bytes_up, record.bytes_down = meter.bytes_up, meter.bytes_down
        record.datagrams_up, record.datagrams_down = meter.datagrams_up, meter.datagrams_down
        record.datagrams_lost = meter.datagrams_lost
        record.duration_s = time.monotonic() - self.since

    def note_upstream(self) -> None:
        """Put the address into the record to which the relay has gone."""
        if self.meter.upstream is not None:
            self.record.upstream, self.record.upstream_port = self.meter.upstream


class Registry:
    """Live sessions, limits, and counters, over the process's gates, which both lanes go through.

    `gate` is for connections, and numbers all sessions; `datagrams` is for UDP sessions. `on_full` is called when a
    client has to wait for a place: of its rule, or of the process (None).
    """

    def __init__(self, gate: Gate, datagrams: Gate) -> None:
        self.gate = gate
        self.datagrams = datagrams
        self.live: dict[int, Live] = {}
        self.away = Away()
        self.invalid_preambles = InvalidPreambles()
        self._max_per_source = 0
        self._source_prefix = SOURCE_PREFIX
        self._rules: dict[Endpoint | Rule, RuleEntry] = {}
        self._waiting: dict[Callable[[], object], None] = {}
        self.on_full: Callable[[Rule | None, Gate], object] = lambda rule, gate: None

    @property
    def busy(self) -> bool:
        """Whether a session lives."""
        return bool(self.gate.live or self.datagrams.live or self.live)

    @property
    def count(self) -> int:
        """How many sessions live, of both kinds and lanes."""
        return self.gate.live + self.datagrams.live

    def set_limits(
        self, max_connections: int, max_per_source: int, source_prefix: SourcePrefix = SOURCE_PREFIX
    ) -> None:
        """Bound the sessions of the process; 0 is no bound. `source_prefix` is also for the limits of rules."""
        self._max_per_source = max_per_source
        self._source_prefix = source_prefix
        self.gate.set_limits(max_connections, max_per_source)

    def of(self, rule: Rule) -> RuleEntry:
        """The entry of `rule`, which is from now on what is said of its `identity`."""
        entry = self._rules.get(rule.identity)
        if entry is None:
            entry = self._rules[rule.identity] = RuleEntry(rule)
        entry.rule = rule
        entry.gate.set_limits(rule.options.max_connections or 0, rule.options.max_connections_per_source or 0)
        return entry

    def rules(self) -> list[Rule]:
        """Every rule that was ever served, as it was said last."""
        return [entry.rule for entry in self._rules.values()]

    def take_place(self, rule: RuleEntry) -> bool:
        """A place for one more connection of `rule`, to be taken before it is accepted; False if there is none."""
        if not rule.gate.enter():
            self.on_full(rule.rule, rule.gate)
            return False
        if self.gate.enter():
            return True
        rule.gate.leave()
        self.on_full(None, self.gate)
        return False

    def give_back(self, rule: RuleEntry) -> None:
        """Give a place back for which there was no connection."""
        rule.gate.leave()
        self.gate.leave()

    def admit_source(self, live: Live, *, forced: bool = False) -> bool:
        """Count the session for its source address; False if that has all it may have, here or of its rule.

        `forced` lets it in all the same: another process did. It counts if there is room.
        """
        client, prefix = live.record.source, self._source_prefix
        buckets, source = live.rule.buckets, source_of(client, prefix)
        if not forced and not buckets.source_is_due(source):
            return False
        # Only those that are bounded now: what was not counted on the way in must not be on the way out.
        gates: list[Gate] = [self.gate] if self._max_per_source else []
        if live.rule.rule.options.max_connections_per_source:
            gates.append(live.rule.gate)
        if forced:
            gates = [gate for gate in gates if gate.enter_source(client, prefix)]
        for passed, gate in enumerate(() if forced else gates):
            if not gate.enter_source(client, prefix):
                for each in gates[:passed]:
                    each.leave_source(client, prefix)
                return False
        live.gates, live.source_prefix = tuple(gates), prefix
        live.meter.throttle = buckets.throttle(source)
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

    def adopt(self, live: Live) -> None:
        """A session of another process goes on in the Python lane, in a place that is taken for it in any case."""
        live.rule.gate.force()
        (self.datagrams if live.datagrams else self.gate).force()
        self.admit_source(live, forced=True)
        self.enter(live)

    def depart(self, live: Live) -> None:
        """It goes on in another process, which counts it."""
        del self.live[live.record.id]
        live.rule.stats.live -= 1
        live.rule.stats.accepted -= 1
        if live.datagrams:
            self.forget(live)
        else:
            self.dismiss_source(live)
            self.give_back(live.rule)

    def leave(self, live: Live) -> None:
        """It has ended, with `ending` set in its record, and gives its place back."""
        del self.live[live.record.id]
        live.rule.stats.live -= 1
        live.rule.times.count(live.record)
        self._count_end(live)
        if live.datagrams:
            self.forget(live)
            return
        self.dismiss_source(live)
        self.give_back(live.rule)
        self._make_room()

    def forget(self, live: Live) -> None:
        """Give back what a UDP session took on its way in."""
        self.dismiss_source(live)
        live.rule.gate.leave()
        self.datagrams.leave()

    def dismiss_source(self, live: Live) -> None:
        """Take `admit_source` back."""
        if live.meter.throttle is not None:
            live.meter.throttle.end()
            live.meter.throttle = None
        for gate in live.gates:
            gate.leave_source(live.record.source, live.source_prefix)
        live.gates = ()

    def turned_away(self, live: Live) -> None:
        """A UDP client got no session, with `ending` set in the record; it had no place."""
        live.rule.stats.accepted += 1
        self._count_end(live)

    def native_closed(self, record: SessionRecord) -> None:
        """A session of the native lane has ended, or was refused; the gates are its own business."""
        stats = self._rules[record.route.rule.identity].stats
        assert record.ending is not None
        stats.accepted += record.ending.refused
        self._count_ends(stats, record.ending, 1)
        self._make_room()

    def native_counted(self, rule: Rule, ending: Ending, count: int) -> None:
        """Sessions of the native lane have ended, or were refused, that are not reported one by one."""
        stats = self._rules[rule.identity].stats
        stats.accepted += count * ending.refused
        self._count_ends(stats, ending, count)
        self._make_room()

    def forged(self, rule: RuleEntry, datagrams: int) -> None:
        """Datagrams were dropped because their source address cannot be true."""
        rule.stats.datagrams_lost += datagrams
        rule.stats.datagrams_forged += datagrams

    def native_lost(self, rule: Endpoint | Rule, datagrams: int, forged: int) -> None:
        """The native lane has dropped datagrams of clients that have no session, some of them `forged`; the rule is
        given by its identity."""
        self._rules[rule].stats.datagrams_lost += datagrams
        self._rules[rule].stats.datagrams_forged += forged

    def histograms(self) -> dict[Endpoint | Rule, tuple[HistogramCounts, HistogramCounts]]:
        """How long the sessions of this registry lasted, and their connects took, by the `identity` of rules."""
        return {identity: entry.times.now for identity, entry in self._rules.items()}

    def _count_end(self, live: Live) -> None:
        assert live.record.ending is not None
        self._count_ends(live.rule.stats, live.record.ending, 1)

    @staticmethod
    def _count_moved(stats: RuleStats, moved: SessionRecord | Meter | Totals) -> None:
        stats.bytes_up += moved.bytes_up
        stats.bytes_down += moved.bytes_down
        stats.datagrams_up += moved.datagrams_up
        stats.datagrams_down += moved.datagrams_down
        stats.datagrams_lost += moved.datagrams_lost

    @staticmethod
    def _count_ends(stats: RuleStats, ending: Ending, count: int) -> None:
        stats.endings[ending] += count
        if ending.refused:
            stats.refused += count
        elif not ending.connected:
            stats.failed += count

    def _make_room(self) -> None:
        if self._waiting:
            # All of them: the room may be one that the first in line cannot use.
            waiting, self._waiting = self._waiting, {}
            for call in waiting:
                call()

    def sessions(self) -> Iterator[SessionRecord]:
        """The live sessions, oldest first."""
        return (live.snapshot() for live in tuple(self.live.values()))

    def stats(self, native: Mapping[Endpoint | Rule, Totals] | None = None) -> Stats:
        """A snapshot of all counters; `native` are the totals of the native lane, by the `identity` of rules."""
        rules = {
            bind: replace(entry.stats, endings=Counter(entry.stats.endings)) for bind, entry in self._rules.items()
        }
        for identity, totals in (native or {}).items():
            rules[identity].accepted += totals.admitted
            rules[identity].live += totals.live
            rules[identity].rate_waits += totals.rate_waits
            self._count_moved(rules[identity], totals)
        for identity, entry in self._rules.items():
            self._count_moved(rules[identity], entry.moved)
            rules[identity].rate_waits += entry.buckets.waits
        every = rules.values()
        return Stats(
            live=sum(stats.live for stats in every),
            accepted=sum(stats.accepted for stats in every),
            refused=sum(stats.refused for stats in every),
            failed=sum(stats.failed for stats in every),
            bytes_up=sum(stats.bytes_up for stats in every),
            bytes_down=sum(stats.bytes_down for stats in every),
            rules={entry.rule: rules[bind] for bind, entry in self._rules.items()},
            datagrams_up=sum(stats.datagrams_up for stats in every),
            datagrams_down=sum(stats.datagrams_down for stats in every),
            datagrams_lost=sum(stats.datagrams_lost for stats in every),
            datagrams_forged=sum(stats.datagrams_forged for stats in every),
        )
