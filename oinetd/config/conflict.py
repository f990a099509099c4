"""Rules that cannot listen at the same time: the same address and port twice, or a wildcard and one of its addresses.

The kernel allows one listener on a port of an address, and none together with a wildcard of the same family. The two
wildcards `0.0.0.0` and `::` have different families and may share a port. Port 0 means any free port and never
conflicts. Two names may have the same address; this is found when the sockets are opened.

All searches are in sorted lists, so that ten thousand rules are checked quickly.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

from oinetd.config.address import Host, parse_host
from oinetd.config.rule import RuleLine
from oinetd.config.sharing import Shared
from oinetd.errors import Problem
from oinetd.model import Protocol

__all__ = ["conflicts"]


class _PortTable:
    """The rule of each port: ranges that do not overlap, sorted."""

    def __init__(self) -> None:
        self._firsts: list[int] = []
        self._held: list[tuple[int, int]] = []  # the range's last port, and the rule's index

    def holder(self, ports: range) -> int | None:
        """The index of a rule that has one of `ports`; None if no rule has."""
        at = bisect_right(self._firsts, ports[-1]) - 1
        if at >= 0 and self._held[at][0] >= ports[0]:
            return self._held[at][1]
        return None

    def add(self, ports: range, index: int) -> None:
        """Add a range that overlaps with no other."""
        at = bisect_right(self._firsts, ports[0])
        self._firsts.insert(at, ports[0])
        self._held.insert(at, (ports[-1], index))


def conflicts(rules: Sequence[RuleLine], listeners: list[Shared]) -> Iterator[tuple[int, Problem]]:
    """The index of each rule that conflicts with an earlier one, and the problem, with the line of the other.

    `listeners` gets those that rules share because of server names.
    """
    shared: dict[int, Shared] = {}
    tables: dict[tuple[Protocol, Host], _PortTable] = {}
    twice: set[int] = set()
    for index, rule in enumerate(rules):
        if rule.bind.port == 0 and not rule.bind.is_unix:
            continue
        table = tables.setdefault((rule.bind.protocol, _bound(rule)), _PortTable())
        holder = table.holder(rule.bind.ports)
        if holder is None:
            table.add(rule.bind.ports, index)
            shared[index] = Shared(index, rule)
            shared[index].add(index, rule)
            continue
        taken = holder if rule.bind.protocol is Protocol.UDP else shared[holder].add(index, rule)
        twice.add(index)
        if taken is not None:
            yield index, _twice(rule, rules[taken])
    listeners.extend(each for each in shared.values() if len(each.rules) > 1)
    yield from _beside_wildcards(rules, tables, twice)


def _beside_wildcards(
    rules: Sequence[RuleLine], tables: dict[tuple[Protocol, Host], _PortTable], twice: set[int]
) -> Iterator[tuple[int, Problem]]:
    reported: set[int] = set()
    for index, rule in enumerate(rules):
        host = _bound(rule)
        if index in twice or rule.bind.port == 0 or not host.packed or host.wildcard:
            continue
        table = tables.get((rule.bind.protocol, Host(bytes(len(host.packed)))))
        holder = table.holder(rule.bind.ports) if table is not None else None
        if holder is None:
            continue
        later, earlier = max(index, holder), min(index, holder)
        if later not in reported:
            reported.add(later)
            yield later, _beside(rules[later], rules[earlier])


def _bound(rule: RuleLine) -> Host:
    """The address that the rule binds; to the kernel, an IPv4-mapped address is the IPv4 address."""
    return parse_host(rule.bind.host).unmapped


def _ports(rule: RuleLine, other: RuleLine) -> str:
    """The ports of both rules, as text."""
    first = max(rule.bind.port, other.bind.port)
    last = min(rule.bind.last_port, other.bind.last_port)
    return f"port {first}" if first == last else f"ports {first}-{last}"


def _twice(rule: RuleLine, other: RuleLine) -> Problem:
    word = rule.bind_word
    if rule.bind.is_unix:
        return rule.line.problem(
            f"{rule.bind.host} is already used by {other.line}",
            word.column,
            word.width,
            "remove one of the two rules, or change its path",
        )
    return rule.line.problem(
        f"{rule.bind.host} {_ports(rule, other)} is already used by {other.line}",
        word.column,
        word.width,
        "remove one of the two rules, or change its port",
    )


def _beside(rule: RuleLine, other: RuleLine) -> Problem:
    word = rule.bind_word
    wildcard, specific = (rule, other) if _bound(rule).wildcard else (other, rule)
    return rule.line.problem(
        f"{rule.bind.host} {_ports(rule, other)} is already used by {other.line} on {other.bind.host}",
        word.column,
        word.width,
        f"{wildcard.bind.host} includes {specific.bind.host}, and the kernel allows only one of the two listeners",
    )
