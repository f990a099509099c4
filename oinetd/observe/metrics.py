"""Metrics for Prometheus: a collector that makes all of them from one snapshot of the counters.

Labels are rules, names and kinds, never clients: their number is bounded by the configuration.
"""

from __future__ import annotations

import itertools
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector as CollectorBase

from oinetd.core.histogram import CONNECT_BOUNDS_S, DURATION_BOUNDS_S, HistogramCounts
from oinetd.core.record import Ending
from oinetd.core.registry import Stats
from oinetd.core.stats import ReactorStats
from oinetd.model import Endpoint, Protocol, Rule
from oinetd.observe.machine import descriptor_limit, descriptors_open, reactor_times
from oinetd.observe.rules import RuleState
from oinetd.observe.text import inert
from oinetd.upstream.destination import DestinationState
from oinetd.upstream.group import UpstreamStatus

__all__ = ["Collector", "Measured"]

ALWAYS: Final = (Ending.CLIENT_CLOSED, Ending.UPSTREAM_CLOSED, Ending.CONNECT_FAILED, Ending.CONNECT_TIMEOUT)
"""Endings that are there before they happen, so that a rate sees the first one."""

Families = Iterable[Metric]


@dataclass(frozen=True, slots=True)
class Measured:
    """One snapshot; what takes a while is asked for when it is needed, so that others have their turn in between.

    `times` gives durations and connect times by the `identity` of rules.
    """

    stats: Stats
    rules: Callable[[], list[RuleState]]
    times: Callable[[], Mapping[Endpoint | Rule, tuple[HistogramCounts, HistogramCounts]]]
    names: list[DestinationState]
    groups: tuple[UpstreamStatus, ...] = ()
    reactors: Sequence[ReactorStats] = ()


class Collector(CollectorBase):
    """Metrics of one forwarder, and those of `more`."""

    def __init__(self, measure: Callable[[], Measured], more: Callable[[], Families] = tuple) -> None:
        self._measure = measure
        self._more = more

    def with_more(self, more: Callable[[], Families]) -> Collector:
        """The same with further metrics."""
        return Collector(self._measure, more)

    def describe(self) -> Families:
        """Nothing: a registry would have to collect to learn the names."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All metrics of this moment."""
        found = self._measure()
        yield _gauge("build_info", "Always 1; the labels say what runs.", (("version", "python"),)).of(
            (_version(), platform.python_version()), 1
        )
        times = found.times()
        yield from _of_process(found)
        states = found.rules()
        yield from _of_servers(found)
        yield from _of_rules(states)
        yield from _of_times(states, times)
        yield from self._more()


def _version() -> str:
    # The package is above this module, and always loaded.
    return str(getattr(sys.modules["oinetd"], "__version__", ""))


class _Family:
    """A metric family that is filled in one expression."""

    def __init__(self, family: GaugeMetricFamily | CounterMetricFamily) -> None:
        self.family = family

    def of(self, labels: tuple[str, ...], value: float) -> Metric:
        self.family.add_metric([inert(label) for label in labels], value)
        return self.family


def _gauge(name: str, text: str, labels: Iterable[tuple[str, ...]] = ((),)) -> _Family:
    (names,) = labels
    return _Family(GaugeMetricFamily(f"oinetd_{name}", text, labels=names))


def _counter(name: str, text: str, labels: Iterable[tuple[str, ...]] = ((),)) -> _Family:
    (names,) = labels
    return _Family(CounterMetricFamily(f"oinetd_{name}", text, labels=names))


def _of_rules(states: list[RuleState]) -> Iterator[Metric]:
    rule = (("rule",),)
    way = (("rule", "direction"),)
    live = _gauge("live_sessions", "Sessions now.", rule)
    accepted = _counter("accepted", "Clients that were taken from the accept queue, or began a UDP session.", rule)
    ended = _counter("sessions", "Sessions that ended, and clients that were refused, by how.", (("rule", "ending"),))
    moved = _counter("bytes", "Bytes forwarded: up from clients, down to clients.", way)
    datagrams = _counter("datagrams", "Datagrams forwarded.", way)
    lost = _counter("datagrams_lost", "Datagrams that could not be forwarded.", rule)
    queued = _gauge("accept_queue_length", "Clients in the accept queues of the first 64 ports of the rule.", rule)
    full = _gauge("rule_full", "1 if a limit is reached and clients wait.", rule)
    times_full = _counter("rule_became_full", "How often a limit was reached.", rule)
    waits = _counter("rule_rate_waits", "Connections that waited for their turn by the rate of the rule.", rule)
    lanes = _gauge("rule_info", "Always 1; the lane that serves the rule.", (("rule", "lane"),))
    for state in states:
        name, counts = state.name, state.counts
        live.of((name,), counts.live)
        accepted.of((name,), counts.accepted)
        for ending in (*ALWAYS, *(each for each in counts.endings if each not in ALWAYS)):
            ended.of((name, ending.value), counts.endings[ending])
        moved.of((name, "up"), counts.bytes_up)
        moved.of((name, "down"), counts.bytes_down)
        if Protocol.UDP in (state.rule.bind.protocol, state.rule.connect.protocol):
            datagrams.of((name, "up"), counts.datagrams_up)
            datagrams.of((name, "down"), counts.datagrams_down)
            lost.of((name,), counts.datagrams_lost)
        if state.in_force:
            queued.of((name,), state.queued)
            lanes.of((name, state.lane), 1)
        full.of((name,), counts.full)
        times_full.of((name,), counts.times_full)
        waits.of((name,), counts.rate_waits)
    for each in (live, accepted, ended, moved, datagrams, lost, queued, full, times_full, waits, lanes):
        yield each.family


def _of_times(
    states: list[RuleState], times: Mapping[Endpoint | Rule, tuple[HistogramCounts, HistogramCounts]]
) -> Iterator[Metric]:
    """One family after the other: each takes as long as all the others of the rules."""
    for name, text, bounds, which in (
        ("session_duration", "How long sessions lasted.", DURATION_BOUNDS_S, 0),
        ("connect_duration", "From the accept to the connection with the server.", CONNECT_BOUNDS_S, 1),
    ):
        family = HistogramMetricFamily(f"oinetd_{name}_seconds", text, labels=("rule",))
        names = [*map(str, bounds), "+Inf"]
        for state in states:
            if (counted := times.get(state.rule.identity)) is not None:
                totals = itertools.accumulate(counted[which].counts)
                family.add_metric([inert(state.name)], list(zip(names, totals, strict=True)), counted[which].sum_s)
        yield family


def _of_servers(found: Measured) -> Iterator[Metric]:
    server = (("group", "server"),)
    up = _gauge("server_up", "1 if the server is used for new sessions.", server)
    live = _gauge("server_live_sessions", "Sessions of the server now.", server)
    weight = _gauge("server_weight", "The weight in force.", server)
    selected = _counter("server_selected", "How often the server was chosen.", server)
    failed = _counter("server_failed", "How often it was chosen and could not be reached.", server)
    checks = _counter("server_checks", "Health checks by their result.", (("group", "server", "result"),))
    changes = _counter("server_changes", "Changes of its state.", server)
    full = _gauge("group_full", "1 if every usable server is full and clients wait.", (("group",),))
    times_full = _counter("group_became_full", "How often every usable server became full.", (("group",),))
    down = _gauge("group_down", "1 if no server is usable.", (("group",),))
    times_down = _counter("group_became_down", "How often the last usable server was lost.", (("group",),))
    for group in found.groups:
        full.of((group.name,), group.full)
        times_full.of((group.name,), group.times_full)
        down.of((group.name,), group.down)
        times_down.of((group.name,), group.times_down)
    yield from (full.family, times_full.family, down.family, times_down.family)
    for each in (each for group in found.groups for each in group.servers):
        names = (each.group, each.name)
        up.of(names, each.state.value == "up")
        live.of(names, each.live)
        weight.of(names, each.weight)
        selected.of(names, each.selected)
        failed.of(names, each.failed)
        checks.of((*names, "passed"), each.checks_passed)
        checks.of((*names, "failed"), each.checks_failed)
        changes.of(names, each.changes)
    yield from (family.family for family in (up, live, weight, selected, failed, checks, changes))


def _of_process(found: Measured) -> Iterator[Metric]:
    yield _gauge("open_descriptors", "Open descriptors of the process.").of((), descriptors_open())
    yield _gauge("max_descriptors", "The limit of descriptors, 0 if there is none.").of((), descriptor_limit())
    yield _gauge("connections_room", "Connections that there is room for, 0 if there is no bound.").of(
        (), found.stats.room
    )
    yield _gauge("full", "1 if a limit of the process is reached and clients wait.").of((), found.stats.full)
    running = _counter("reactor_cpu_seconds", "CPU time of the native threads.", (("reactor",),))
    waiting = _counter("reactor_wait_seconds", "Time that native threads were ready without a core.", (("reactor",),))
    for number, times in enumerate(reactor_times()):
        running.of((str(number),), times.running_s)
        waiting.of((str(number),), times.waiting_s)
    polling = _gauge("reactor_polling", "1 if a native thread may poll before it sleeps.", (("reactor",),))
    for number, each_reactor in enumerate(found.reactors):
        polling.of((str(number),), each_reactor.polling == "on")
    addresses = _gauge("name_addresses", "Addresses of a name in the configuration, 0 if unresolved.", (("name",),))
    for each in found.names:
        addresses.of((each.host,), len(each.addresses))
    yield from (running.family, waiting.family, polling.family, addresses.family)
