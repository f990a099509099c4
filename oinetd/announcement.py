"""What is said of listeners that come and go: one line for a range of ports, however many they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from oinetd.model import Endpoint, Route
from oinetd.sockets import Address

__all__ = ["listening", "no_longer"]


def listening(served: Iterable[tuple[Route, Address, str]]) -> Iterator[str]:
    """A line for each run of ports of one rule: where it listens, where its connections go, and how it is served."""
    rules: dict[tuple[int, str, str], list[tuple[Address, Endpoint]]] = {}
    for route, address, how in served:
        rules.setdefault((id(route.rule), address.host, how), []).append((address, route.connect))
    for (_, _, how), pairs in rules.items():
        connects = dict(pairs)
        for run in _runs(connects):
            first, last = connects[run[0]], connects[run[-1]]
            yield f"listening on {_span(run)}, forwarding to {replace(first, last_port=last.port)} ({how})"


def no_longer(addresses: Iterable[Address]) -> Iterator[str]:
    """A line for each run of ports where nobody listens any more."""
    hosts: dict[str, list[Address]] = {}
    for address in addresses:
        hosts.setdefault(address.host, []).append(address)
    for each in hosts.values():
        for run in _runs(each):
            yield f"no longer listening on {_span(run)}"


def _runs(addresses: Iterable[Address]) -> Iterator[list[Address]]:
    """Addresses of one host, cut where a port does not follow the one before."""
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
