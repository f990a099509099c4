"""Datagrams that begin with a PROXY header: each is read by itself, and belongs to the client that its header names."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from oinetd.net.sockets import client_address
from oinetd.preamble.progress import Invalid
from oinetd.preamble.proxy_protocol import Header, feed_datagram

__all__ = ["Runs", "client_of", "identity_of", "take_headers"]

Runs = list[tuple[Header, list[bytes]]]
"""Payloads in the order in which they came, with the header that neighbours have in common."""


def take_headers(datagrams: Iterable[bytes]) -> tuple[Runs, list[Invalid]]:
    """The payloads behind valid headers, and what is wrong with each of the other datagrams."""
    runs: Runs = []
    faults: list[Invalid] = []
    for datagram in datagrams:
        found = feed_datagram(datagram)
        if isinstance(found, Invalid):
            faults.append(found)
            continue
        if not runs or runs[-1][0] != found:
            runs.append((found, []))
        runs[-1][1].append(datagram[found.length :])
    return runs, faults


def client_of(header: Header | None, peer: tuple[str, int]) -> tuple[str, int]:
    """Host and port of the client: those of the header, or of the peer if it names none."""
    return peer if header is None or header.source is None else client_address(header.source)


def identity_of(key: Hashable, header: Header | None, client: tuple[str, int]) -> Hashable:
    """What a listener finds a session by: the `key` of the peer, and the client if the peer writes headers."""
    return key if header is None else (key, client)
