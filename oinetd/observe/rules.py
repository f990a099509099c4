"""The state of each rule: its lane, its counters, its accept queues."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from oinetd.core.registry import RuleStats, Stats
from oinetd.model import Endpoint, Protocol, Rule
from oinetd.net.sockets import bound_address
from oinetd.observe.machine import accept_queue

__all__ = ["RuleNames", "RuleState", "rule_states"]

LISTENERS_MAX: Final = 64
"""The number of ports of one rule that are listed, and whose accept queues are read."""


@dataclass(frozen=True, slots=True)
class RuleState:
    """A rule that is or was in force. `lane` and `why` are empty if a reload removed it.

    `listening` are its first addresses, `ports` is the number of all, and `queued` the number of clients in the accept
    queues of the first.
    """

    name: str
    rule: Rule
    counts: RuleStats
    lane: str = ""
    why: str = ""
    listening: tuple[str, ...] = ()
    ports: int = 0
    queued: int = 0

    @property
    def in_force(self) -> bool:
        return bool(self.lane)


class RuleNames:
    """A unique name for each rule that was ever served; rules with equal words (port 0) are numbered."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._names: dict[Endpoint | Rule, str] = {}
        self._known: dict[int, tuple[Rule, str]] = {}
        seen: dict[str, int] = {}
        for rule in rules:
            count = seen[rule.name] = seen.get(rule.name, 0) + 1
            self._names[rule.identity] = rule.name if count == 1 else f"{rule.name}#{count}"

    def of(self, rule: Rule) -> str:
        """The name. Cached by id: the hash of a rule reads all of it."""
        known = self._known.get(id(rule))
        if known is None:
            known = self._known[id(rule)] = (rule, self._names.get(rule.identity, rule.name))
        return known[1]


def rule_states(
    stats: Stats,
    lanes: Mapping[Endpoint | Rule, tuple[str, str]],
    listeners: Iterable[tuple[Rule, socket.socket]],
) -> list[RuleState]:
    """The states; `lanes` has lane and reason by the `identity` of rules in force."""
    sockets: dict[Endpoint | Rule, list[socket.socket]] = {}
    for rule, sock in listeners:
        sockets.setdefault(rule.identity, []).append(sock)
    names = RuleNames(stats.rules)
    states = []
    for rule, counts in stats.rules.items():
        lane, why = lanes.get(rule.identity, ("", ""))
        own = sockets.get(rule.identity, [])
        bound = [bound_address(sock) for sock in own[:LISTENERS_MAX]]
        tcp = rule.bind.protocol is Protocol.TCP and not rule.bind.is_unix
        queued = sum(accept_queue(sock)[0] for sock in own[:LISTENERS_MAX]) if tcp else 0
        listening = tuple(map(str, bound))
        states.append(RuleState(names.of(rule), rule, counts, lane, why, listening, len(own), queued))
    return states
