"""The limits of a forwarder in force: the gates of the process with their descriptors, and what is said of them."""

from __future__ import annotations

import logging
from dataclasses import replace

from oinetd.core.admission import Gate, LocalGate
from oinetd.core.capacity import Capacity, label_of
from oinetd.core.registry import Registry, Stats
from oinetd.lanes.native.plane import available, new_budget, new_gate
from oinetd.model import Config, Rule
from oinetd.net.descriptors import CONNECTION_DESCRIPTORS, UDP_SESSION_DESCRIPTORS, Descriptors, LocalBudget
from oinetd.net.sockets import is_numeric
from oinetd.servers import Check

__all__ = ["Limits"]

log = logging.getLogger("oinetd")

SEVERAL = 16


class Limits:
    """Makes the registry of a forwarder, and bounds it as configurations say. Its gates are good for reactors if there
    may be any."""

    def __init__(self) -> None:
        if available():
            local = LocalBudget()
            self.descriptors = Descriptors(local)
            gates: tuple[Gate, Gate] = (
                LocalGate(local, CONNECTION_DESCRIPTORS),
                LocalGate(local, UDP_SESSION_DESCRIPTORS),
            )
        else:
            budget = new_budget()
            self.descriptors = Descriptors(budget)
            gates = new_gate(budget, CONNECTION_DESCRIPTORS), new_gate(budget, UDP_SESSION_DESCRIPTORS)
        self.registry = Registry(*gates)
        self.registry.on_full = self.found_full
        self._capacity = Capacity()
        self._max_connections = 0
        self._said = ""

    def close(self) -> None:
        """Watch no more."""
        self._capacity.close()

    def apply(self, config: Config, listeners: int, reactors: int) -> None:
        """Put the limits of `config` in force, as far as the descriptors go, and say what there is room for."""
        hosts = {endpoint.address for rule in config.rules for endpoint in rule.destinations}
        names = {host for host in hosts if not is_numeric(host)}
        self.descriptors.measure(listeners, reactors, len(names), _checked(config))
        self._max_connections, possible = config.max_connections, self.descriptors.connections
        self.registry.set_limits(config.max_connections, config.max_connections_per_source, config.source_prefix)
        said = self.descriptors.room(config.max_connections)
        if said != self._said:
            self._said = said
            if possible and config.max_connections > possible:
                log.warning(
                    "max-connections %d: the limit of descriptors (`ulimit -n`) allows %d",
                    config.max_connections,
                    possible,
                )
            log.info("%s", said)

    def udp_sessions(self, config: Config) -> int:
        """The bound of UDP sessions, 0 for none."""
        return self.descriptors.at_most(config.max_udp_sessions, self.descriptors.udp_sessions)

    def found_full(self, rule: Rule | None, gate: Gate) -> None:
        """Clients have to wait at `gate`: that of a rule, or that of the process (None)."""
        if rule is not None:
            self._capacity.found_full(
                rule.identity, gate, label_of(rule), lambda: f"{gate.live} of {gate.live_max or gate.live}"
            )
        else:
            self._capacity.found_full(None, gate, "all rules", self._how_full)

    def _how_full(self) -> str:
        gate, budget = self.registry.gate, self.descriptors.budget
        if gate.live_max and gate.live >= gate.live_max:
            return f"{gate.live} of {gate.live_max}"
        return (
            f"{gate.live} connections and {self.registry.datagrams.live} UDP sessions have all {budget.total} "
            "descriptors that the limit leaves them; raise `ulimit -n` or LimitNOFILE"
        )

    def count_on(self, rule: Rule | None, times_full: int) -> None:
        """Add how often the limit of a rule, or that of the process (None), was reached in another process."""
        self._capacity.times[None if rule is None else rule.identity] += times_full

    def completed(self, stats: Stats) -> Stats:
        """`stats` with what is known of limits."""
        for rule, counts in stats.rules.items():
            counts.full = self._capacity.is_full(rule.identity)
            counts.times_full = self._capacity.times[rule.identity]
        return replace(
            stats,
            full=self._capacity.is_full(None),
            times_full=self._capacity.times[None],
            room=self.descriptors.at_most(self._max_connections, self.descriptors.connections),
        )


def _checked(config: Config) -> int:
    """How many servers are checked, about: what stands for several counts as some."""
    groups = {id(rule.upstream): rule.upstream for rule in config.rules if rule.upstream is not None}
    return sum(
        SEVERAL if server.stands_for_several(group.options) else 1
        for group in groups.values()
        if group.options.check is not Check.OFF
        for server in group.servers
    )
