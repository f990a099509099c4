"""What a forwarder can be asked: where it listens, who is connected, what was moved, how its names and servers are."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING

from oinetd.core.lane import Listener
from oinetd.core.record import SessionRecord
from oinetd.core.registry import Registry, Stats
from oinetd.core.stats import ReactorStats
from oinetd.lanes.choose import Lanes
from oinetd.lanes.limits import Limits
from oinetd.model import Rule
from oinetd.net.ports import BoundAddress, PortKey
from oinetd.net.sockets import bound_address
from oinetd.observe.rules import RuleState, rule_states
from oinetd.reload import Reload
from oinetd.upstream.destination import DestinationState
from oinetd.upstream.group import UpstreamStatus
from oinetd.upstream.prospect import Prospect

if TYPE_CHECKING:
    from oinetd.observe.metrics import Collector, Measured

__all__ = ["Inspection"]


class Inspection:
    """The part of a `Forwarder` that changes nothing."""

    _lanes: Lanes
    _limits: Limits
    _listeners: dict[PortKey, Listener]
    _registry: Registry
    _reload: Reload
    _stopped: asyncio.Event | None

    @property
    def addresses(self) -> tuple[BoundAddress, ...]:
        """Where it listens, with the ports that the kernel chose for port 0."""
        bound = []
        for listener in self._listeners.values():
            address = bound_address(listener.sock)
            bound.append(BoundAddress(listener.service.route, address.host, address.port))
        return tuple(bound)

    def sessions(self) -> list[SessionRecord]:
        """The live sessions, oldest first, with their counts of this moment and `ending` None."""
        return self._lanes.sessions() if self._stopped is not None else []

    def session_batches(self, size: int = 256) -> Iterator[list[SessionRecord]]:
        """As `sessions`, in no order and in lists of at most `size`: other work of the loop can be done in between."""
        return self._lanes.session_batches(size) if self._stopped is not None else iter(())

    def reactors(self) -> list[ReactorStats]:
        """The native threads; none if nothing needs them."""
        return self._lanes.reactor_stats() if self._stopped is not None else []

    def rules(self) -> list[RuleState]:
        """How each rule is served, where it listens, what it has moved."""
        return self.overview()[1]

    def overview(self) -> tuple[Stats, list[RuleState]]:
        """`stats` and `rules` of the same moment, for less than both cost."""
        stats = self.stats()
        return stats, self._states(stats)

    def _states(self, stats: Stats) -> list[RuleState]:
        served = [(one.route.rule, each.sock) for each in self._listeners.values() for one in each.service.each]
        return rule_states(stats, self._reload.lanes_of if self._stopped is not None else {}, served)

    def stats(self) -> Stats:
        """The counters since the start."""
        if self._stopped is None:
            return self._registry.stats()
        return self._limits.completed(self._registry.stats(self._lanes.totals()))

    def collector(self) -> Collector:
        """Its metrics for a registry of prometheus-client. Collect on the thread of the forwarder's loop."""
        from oinetd.observe.metrics import Collector  # few programs want metrics, and this takes 50 ms

        return Collector(self._measured)

    def _measured(self) -> Measured:
        from oinetd.observe.metrics import Measured

        stats = self.stats()
        return Measured(
            stats,
            lambda: self._states(stats),
            lambda: self._lanes.histograms() if self._stopped is not None else {},
            self.destinations(),
            self.upstreams(),
            self.reactors(),
        )

    def destinations(self) -> list[DestinationState]:
        """The names that destinations and source addresses have, each once, and what they resolve to."""
        known = self._reload.destinations if self._stopped is not None else None
        return known.states() if known is not None else []

    def upstreams(self) -> tuple[UpstreamStatus, ...]:
        """The groups of servers in force, with the state of each server."""
        groups = self._reload.groups if self._stopped is not None else None
        return groups.statuses() if groups is not None else ()

    def servers_of(self, rule: Rule, client: str = "") -> tuple[UpstreamStatus | None, tuple[Prospect, ...]]:
        """The group of a rule in force, and which of its servers a client at this address would get now, and why."""
        groups = self._reload.groups if self._stopped is not None else None
        return groups.servers_of(rule, client) if groups is not None else (None, ())
