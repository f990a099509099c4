"""The sessions of a running forwarder: for each, the bytes on its client leg and on its upstream leg.

The packets do not show which upstream connection belongs to which client. They are paired by what a relay cannot
change: the upstream connection is later, and both streams have the same first bytes and the same length. If several
clients match, the last one before the upstream connection is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bench.capture.streams import Stream

__all__ = ["Connection", "Session", "connections_to", "pair"]

CANDIDATES_MAX = 512
"""Clients that are waiting for their upstream connection at one time, and are compared."""


@dataclass(frozen=True, slots=True)
class Connection:
    """Both directions of one connection; `back` is None if nothing came back."""

    forth: Stream
    back: Stream | None

    @property
    def ended(self) -> bool:
        """Both directions from the SYN to the FIN."""
        return all(each is not None and each.begun and each.ended for each in (self.forth, self.back))

    @property
    def reset(self) -> bool:
        return self.forth.reset or (self.back is not None and self.back.reset)

    @property
    def missed(self) -> int:
        """Bytes that went by unseen."""
        return sum(end - start for each in (self.forth, self.back) if each is not None for start, end in each.gaps)

    @property
    def sizes(self) -> tuple[int, int]:
        return self.forth.extent, self.back.extent if self.back is not None else 0


@dataclass(frozen=True, slots=True)
class Session:
    """A client's connection, and the one the forwarder made for it; None if it was not seen."""

    client: Connection
    upstream: Connection | None

    @property
    def verdict(self) -> str:
        """`agree`, `differ`, or why neither can be said: `no upstream`, `reset`, `open`."""
        if self.upstream is None:
            return "no upstream"
        if self.client.reset or self.upstream.reset:
            return "reset"
        if not (self.client.ended and self.upstream.ended):
            return "open"
        return "agree" if self.client.sizes == self.upstream.sizes else "differ"

    @property
    def missed(self) -> int:
        return self.client.missed + (self.upstream.missed if self.upstream is not None else 0)


def connections_to(streams: Sequence[Stream], ports: Iterable[int]) -> list[Connection]:
    """The connections to one of `ports` whose beginning was seen, in the order in which they began."""
    wanted = set(ports)
    found = []
    for stream in streams:
        if stream.target_port in wanted and stream.begun:
            back = streams[stream.opposite] if stream.opposite is not None else None
            found.append(Connection(stream, back))
    return sorted(found, key=lambda each: each.forth.first_ns)


def pair(streams: Sequence[Stream], routes: Mapping[int, int]) -> list[Session]:
    """The sessions of a forwarder; `routes` gives the upstream port for each port that it listens on."""
    partner: dict[int, Connection] = {}
    clients = connections_to(streams, routes)
    waiting = dict(enumerate(clients))
    for upstream in connections_to(streams, routes.values()):
        fitting = [
            (_fit(waiting[number], upstream), number)
            for number in waiting
            if routes[waiting[number].forth.target_port] == upstream.forth.target_port
            and waiting[number].forth.first_ns <= upstream.forth.first_ns
        ][-CANDIDATES_MAX:]
        if fitting:
            _, number = max(fitting)
            partner[number] = upstream
            del waiting[number]
    return [Session(client, partner.get(number)) for number, client in enumerate(clients)]


def _fit(client: Connection, upstream: Connection) -> tuple[int, int]:
    same_heads = _same_head(client.forth, upstream.forth) and _same_head(client.back, upstream.back)
    return same_heads, client.sizes == upstream.sizes


def _same_head(one: Stream | None, other: Stream | None) -> bool:
    if one is None or other is None:
        return True
    length = min(len(one.head), len(other.head))
    return one.head[:length] == other.head[:length]
