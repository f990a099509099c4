"""The ways through oinetd that a run uses: rules of every kind, and what their clients say before their streams."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.preamble.samples import binary, hello, records, server_name

__all__ = [
    "DATAGRAM_WAYS",
    "FAR",
    "GROUPS",
    "HEADED",
    "HELLO_HERE",
    "HELLO_THERE",
    "MARK",
    "PLAIN",
    "PLAIN_WAYS",
    "SECOND",
    "TCP_PORTS",
    "WAYS",
    "DatagramWay",
    "Opening",
    "Way",
    "claimed",
    "configuration",
    "is_of_key",
]

PLAIN, HEADED, HELLO_HERE, HELLO_THERE, SECOND = 7000, 7010, 7011, 7012, 7002
"""Ports of the servers: of plain streams and datagrams, of streams and datagrams behind a PROXY header, of TLS hellos
with the name `here.test`, of other hellos, and of datagrams once more."""
FAR: Final = ("10.99.0.2", PLAIN)
"""A server of another machine: `original` goes to no address of its own."""
MARK: Final = 0x77
TCP_PROXY, UDP_PROXY = 0x11, 0x12
"""Family and protocol of a header of version 2."""


@dataclass(frozen=True, slots=True)
class Opening:
    """What a client sends before its key. `counted` is how much of it is in the count of bytes; `port` is the one that
    the log has, if it is not that of the client's socket."""

    data: bytes = b""
    counted: int = 0
    port: int = 0


def _nothing(_: int) -> Opening:
    return Opening()


@dataclass(frozen=True, slots=True)
class Way:
    """The lines of a rule, and where its clients connect to.

    With `by_source` a client's address says its key, so that the server can tell whether a header names the right
    client. A connection of a unix socket cannot be reset, on either side: its end says nothing.
    """

    lines: str
    address: tuple[str, int] | str
    opening: Callable[[int], Opening] = _nothing
    by_source: bool = False
    unix: bool = False

    @property
    def name(self) -> str:
        """The rule, for messages."""
        return self.lines.partition("\n")[0]


@dataclass(frozen=True, slots=True)
class DatagramWay:
    """The lines of a rule for UDP on `port`; with `headed` its clients say a header with each datagram."""

    lines: str
    port: int
    headed: bool = False


def claimed(key: int, net: int) -> str:
    """The address in 10.8.0.0/16 or 127.8.0.0/16 of the client of this key; that of 65,536 keys later has the same."""
    return f"{net}.8.{key >> 8 & 255}.{key & 255}"


def is_of_key(address: str, key: int) -> bool:
    """Whether this is an address of the client of this key."""
    return address in (claimed(key, 10), claimed(key, 127))


def _in_front(key: int) -> Opening:
    """A header of a proxy, of either version, that names an address of the key."""
    host, port = claimed(key, 10), 1024 + key % 60_000
    if key % 2:
        text = f"PROXY TCP4 {host} 198.51.100.9 {port} 443\r\n"
        return Opening(text.encode(), port=port)
    body = socket.inet_aton(host) + socket.inet_aton("198.51.100.9") + struct.pack("!HH", port, 443)
    return Opening(binary(body, family=TCP_PROXY), port=port)


def _hello(name: bytes) -> Callable[[int], Opening]:
    def opening(key: int) -> Opening:
        said = records(hello(server_name(name)), random.Random(key).choice((40, 16384)))
        return Opening(said, counted=len(said))

    return opening


PLAIN_WAYS: Final = (
    Way("127.0.0.1 7001 127.0.0.1 7000", ("127.0.0.1", 7001)),
    Way("127.0.0.1 7002 127.0.0.1 7000 [relay=splice]", ("127.0.0.1", 7002)),
    Way("127.0.0.1 7003 127.0.0.1 7000 [engine=python]", ("127.0.0.1", 7003)),
    Way("127.0.0.1 7004 flip.test 7000 [dns-refresh=1s]", ("127.0.0.1", 7004)),
)
WAYS: Final = (
    *PLAIN_WAYS,
    Way("127.0.0.1 7006 @web", ("127.0.0.1", 7006)),
    Way("127.0.0.1 7007 127.0.0.1 7010 [send-proxy, proxy-tlv=crc32c+unique-id]", ("127.0.0.1", 7007), by_source=True),
    Way(
        "127.0.0.1 7008 127.0.0.1 7010 [accept-proxy, send-proxy=v1]\ntrust 127.0.0.1",
        ("127.0.0.1", 7008),
        _in_front,
    ),
    Way(
        "127.0.0.1 7009 127.0.0.1 7010 [accept-proxy=optional, send-proxy, engine=python]\ntrust 127.0.0.1",
        ("127.0.0.1", 7009),
        _in_front,
    ),
    Way("127.0.0.1 7013 127.0.0.1 7011 [sni=here.test]", ("127.0.0.1", 7013), _hello(b"here.test")),
    Way("127.0.0.1 7013 127.0.0.1 7012", ("127.0.0.1", 7013), _hello(b"there.test")),
    Way(
        "127.0.0.1 7014 127.0.0.1 7000 [bandwidth=4M, bandwidth-per-source=20M, bandwidth-per-rule=6M, rate=200/s]",
        ("127.0.0.1", 7014),
    ),
    Way("127.0.0.1 7015 original [transparent, src=10.99.0.3, mark=0x77]\nallow *", FAR),
    Way("127.0.0.1 7016 unix:{apart}/back.sock", ("127.0.0.1", 7016), unix=True),
    Way("unix:{apart}/front.sock 127.0.0.1 7000", "{apart}/front.sock", unix=True),
)
TCP_PORTS: Final = tuple(sorted({way.address[1] for way in WAYS if isinstance(way.address, tuple)} - {PLAIN} | {7015}))
"""Where oinetd listens."""
DATAGRAM_WAYS: Final = (
    DatagramWay("127.0.0.1 7005/udp 127.0.0.1 7000/udp [timeout=2]", 7005),
    DatagramWay("127.0.0.1 7021/udp 127.0.0.1 7000/udp [timeout=2, engine=python]", 7021),
    DatagramWay("127.0.0.1 7022/udp @echo [timeout=2]", 7022),
    DatagramWay("127.0.0.1 7023/udp 127.0.0.1 7010/udp [timeout=2, send-proxy]", 7023),
    DatagramWay("127.0.0.1 7024/udp 127.0.0.1 7000/udp [timeout=2, accept-proxy]\ntrust 127.0.0.1", 7024, headed=True),
)
GROUPS: Final = """\
upstream web 127.0.0.2 7000 [max-connections={most}]
upstream web file:{folder}/web.servers
upstream web [balance={balance}, check=tcp, check-interval=500ms, check-fast=200ms, check-down=1s, allow-special]
upstream echo 127.0.0.1 7000/udp
upstream echo 127.0.0.1 7002/udp
upstream echo [check=send, check-send=ping, check-interval=500ms]
"""
_BALANCES: Final = ("leastconn", "roundrobin", "source", "random", "first")


def configuration(variant: int, folder: Path) -> str:
    """All rules and groups; each variant is a little different from the one before."""
    ways: list[Way | DatagramWay] = [*WAYS, *DATAGRAM_WAYS]
    order = ways if variant % 2 else ways[::-1]
    groups = GROUPS.format(folder=folder, balance=_BALANCES[variant % len(_BALANCES)], most=1 + variant % 3)
    rules = "".join(f"{way.lines}\n" for way in order).format(apart=folder / "apart")
    return f"max-connections {5000 + variant % 7}\n{groups}{rules}"
