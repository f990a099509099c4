"""Log lines about listeners that were opened or closed: one line for each range of ports."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from oinetd.model import Endpoint, Protocol, Route, Rule
from oinetd.net.ports import PortKey
from oinetd.net.sockets import Address

__all__ = ["listening", "no_longer"]


def listening(served: Iterable[tuple[Route, Address, str]]) -> Iterator[str]:
    """A line for each run of ports of one rule: its addresses, its destination, and how it is served."""
    rules: dict[tuple[int, str, str, str, str], list[tuple[Address, Endpoint]]] = {}
    for route, address, how in served:
        key = (id(route.rule), address.host, _suffix(route.bind.protocol), _names(route.rule), how)
        rules.setdefault(key, []).append((address, route.connect))
    for (_, _, suffix, names, how), pairs in rules.items():
        connects = dict(pairs)
        for run in _runs(connects):
            first, last = connects[run[0]], connects[run[-1]]
            to = replace(first, last_port=last.port)
            yield f"listening on {_span(run)}{suffix}, forwarding to {to}{names} ({how})"


def no_longer(ports: Iterable[PortKey]) -> Iterator[str]:
    """A line for each run of ports whose listeners were closed."""
    hosts: dict[tuple[str, Protocol], list[Address]] = {}
    for port in ports:
        hosts.setdefault((port.address.host, port.protocol), []).append(port.address)
    for (_, protocol), addresses in hosts.items():
        for run in _runs(addresses):
            yield f"no longer listening on {_span(run)}{_suffix(protocol)}"


def _names(rule: Rule) -> str:
    """What a TLS client of this rule wants; other rules may share its listener."""
    said = (("sni", rule.options.sni), ("alpn", rule.options.alpn))
    return "".join(f" for {option}={'+'.join(wanted)}" for option, wanted in said if wanted)


def _suffix(protocol: Protocol) -> str:
    return "/udp" if protocol is Protocol.UDP else ""


def _runs(addresses: Iterable[Address]) -> Iterator[list[Address]]:
    """Split the addresses of one host into runs of consecutive ports."""
    run: list[Address] = []
    for address in addresses:
        if run and address.port != run[-1].port + 1:
            yield run
            run = []
        run.append(address)
    if run:
        yield run


def _span(run: list[Address]) -> str:
    return str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1].port}"
