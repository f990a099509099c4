"""Forwarding loops in a configuration: destinations that lead back to the listener of their own rule.

No name is resolved and the machine is not asked. `localhost` means the loopback addresses (RFC 6761, 6.3). An address
that a rule binds, or uses as its source address, belongs to this machine, so the wildcards `0.0.0.0` and `::` listen
on it, too.

The search has two steps. First, the nodes are rules, with an edge to each rule that listens on the destination. Then
only rules on a cycle of this graph are searched port by port, because two port ranges may overlap without a loop.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from oinetd.config.address import Host, parse_host
from oinetd.config.graph import cycle_through, strong_components
from oinetd.model import Endpoint, Protocol, Rule

__all__ = ["Loop", "find_loops"]

PORTS_MAX = 1 << 20
"""The number of ports to search. No process can open more listeners."""

NAMED_MAX = 8
"""The number of rules in a message; a longer cycle is cut."""

_LOOPBACK4 = bytes([127, 0, 0, 1])
_LOOPBACK6 = bytes(15) + b"\1"

_Node = tuple[int, int]
"""A rule's index and the offset of a port in its range."""


class Loop(NamedTuple):
    """A cycle: the indexes of its rules, beginning with the last one in the text, and the destination of that one."""

    rules: tuple[int, ...]
    connect: Endpoint

    def message(self, places: Sequence[object]) -> str:
        """The message; `places` has the file and line of each of `rules`."""
        if len(self.rules) == 1:
            return f"the destination {self.connect} is the rule's own listener"
        named = [str(place) for place in places[1:NAMED_MAX]]
        if len(places) > NAMED_MAX:
            named.append(f"{len(places) - NAMED_MAX} more")
        return f"the destination {self.connect} leads back to this rule, through {', '.join(named)}"


def find_loops(rules: Sequence[Rule]) -> Iterator[Loop]:
    """The loops of a configuration without conflicts: one for each group of rules that lead to each other."""
    listeners = _Listeners(rules)
    onward = [sorted({other for other, _ in listeners.receivers(rule)}) for rule in rules]
    for group in strong_components(range(len(rules)), onward.__getitem__):
        if len(group) > 1 or group[0] in onward[group[0]]:
            yield from _by_port(rules, listeners, frozenset(group))


def _by_port(rules: Sequence[Rule], listeners: _Listeners, group: frozenset[int]) -> Iterator[Loop]:
    """The loops among rules that are on a cycle if ports are ignored."""
    onward: dict[_Node, list[_Node]] = {}
    for index in sorted(group):
        rule = rules[index]
        if len(onward) + len(rule.bind.ports) > PORTS_MAX:
            break
        for offset in range(len(rule.bind.ports)):
            onward[index, offset] = []
        for destination in rule.destinations:
            for other, ports in listeners.receivers_of(rule, destination):
                if other in group:
                    for port in ports:
                        onward[index, port - destination.port].append((other, port - rules[other].bind.port))

    def following(node: _Node) -> Iterable[_Node]:
        return onward.get(node, ())

    found: dict[tuple[int, ...], list[int]] = {}
    for nodes in strong_components(onward, following):
        last = max(nodes)
        cycle = cycle_through(last, following, frozenset(nodes))
        if cycle:
            found.setdefault(tuple(index for index, _ in cycle), []).append(last[1])
    for cycle_rules, offsets in sorted(found.items()):
        connect = rules[cycle_rules[0]].connect
        first, end = (min(offsets), max(offsets)) if connect.port else (0, 0)
        yield Loop(cycle_rules, Endpoint(connect.host, connect.port + first, connect.protocol, connect.port + end))


class _Listeners:
    """The listeners: for each bound address its sorted ranges of ports, which do not overlap."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._held: dict[tuple[Protocol, Host], list[tuple[int, int, int]]] = {}  # last port, first port, rule
        self._ours = {_LOOPBACK6}
        for index, rule in enumerate(rules):
            bind = rule.bind
            host = parse_host(bind.host).unmapped
            for address in (host, *_localhost(host)) if bind.port or bind.is_unix else ():
                self._held.setdefault((bind.protocol, address), []).append((bind.last_port, bind.port, index))
            source = parse_host(rule.options.source_host).unmapped if rule.options.source_host else host
            self._ours.update(shown.packed for shown in (host, source) if shown.packed and not shown.wildcard)
        for held in self._held.values():
            held.sort()
        self._ipv4_ports = {
            protocol: sorted(
                (bind.port, bind.last_port)
                for bind in (rule.bind for rule in rules)
                if bind.protocol is protocol and ":" not in bind.host
            )
            for protocol in Protocol
        }

    def receivers(self, rule: Rule) -> Iterator[tuple[int, range]]:
        """The rules that listen on the destinations of `rule`, each with its ports there."""
        for destination in rule.destinations:
            yield from self.receivers_of(rule, destination)

    def receivers_of(self, rule: Rule, destination: Endpoint) -> Iterator[tuple[int, range]]:
        """The rules that listen on a destination of `rule`, each with its ports there."""
        protocol, ports = destination.protocol, destination.ports
        for host in _targets(rule, destination):
            yield from self._on(protocol, host, ports)
            size = len(host.packed)
            if not size or not (host.packed in self._ours or (size == 4 and host.packed[0] == 127)):
                continue
            yield from self._on(protocol, Host(bytes(size)), ports)
            if size == 4:
                # `::` also accepts IPv4 on a port that no rule binds for IPv4.
                for other, part in self._on(protocol, Host(bytes(16)), ports):
                    yield from ((other, left) for left in _without(part, self._ipv4_ports[protocol]))

    def _on(self, protocol: Protocol, host: Host, ports: range) -> Iterator[tuple[int, range]]:
        held = self._held.get((protocol, host), [])
        for last, first, index in held[bisect_left(held, (ports[0],)) :]:
            if first > ports[-1]:
                break
            yield index, range(max(first, ports[0]), min(last, ports[-1]) + 1)


def _localhost(host: Host) -> tuple[Host, ...]:
    """The loopback addresses if the name is `localhost`, else none."""
    return (Host(_LOOPBACK4), Host(_LOOPBACK6)) if host.name == "localhost" else ()


def _targets(rule: Rule, destination: Endpoint) -> Iterator[Host]:
    """The hosts that a connection to a destination of the rule reaches: addresses, or the name itself."""
    host = parse_host(destination.host).unmapped
    source = parse_host(rule.options.source_host).unmapped if rule.options.source_host else Host(b"")
    if host.name:
        yield host
        yield from (each for each in _localhost(host) if len(source.packed) in (0, len(each.packed)))
    elif not host.wildcard:
        yield host
    elif len(host.packed) == 4:
        # To the kernel, a connect to 0.0.0.0 is one to the socket's own address, or to the loopback address.
        yield source if len(source.packed) == 4 and not source.wildcard else Host(_LOOPBACK4)
    else:
        yield Host(_LOOPBACK6)


def _without(ports: range, taken: Sequence[tuple[int, int]]) -> Iterator[range]:
    """The parts of `ports` that are in none of the sorted ranges `taken`."""
    first = ports[0]
    for low, high in taken:
        if low > ports[-1]:
            break
        if first < low:
            yield range(first, low)
        first = max(first, high + 1)
    if first <= ports[-1]:
        yield range(first, ports[-1] + 1)
