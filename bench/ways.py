"""How a connection reaches the server besides plainly: PROXY headers, a TLS server name, unix sockets.

What has to come before the hello of a connection is sent by the native client, and taken off and checked by the native
server: a connection whose header or hello did not come, or has another client's address, is a wrong sample.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from dataclasses import dataclass
from functools import cache

from bench.errors import BenchError

__all__ = ["NAMES", "PLAIN", "SERVER_NAME", "Way", "chosen_ways", "client_hello", "expectation", "proxy_header"]

SERVER_NAME = "bench.example.org"
PLAIN = "plain"
_UNIX = ("unix-tcp", "unix-unix")
NAMES = (PLAIN, "send-proxy", "accept-proxy", "sni", *_UNIX)


@dataclass(frozen=True, slots=True)
class Way:
    """`sends` is what the client sends first, `expects` what the server wants first: see `bench.server`."""

    name: str
    sends: bytes = b""
    expects: str = ""
    listen_unix: bool = False
    connect_unix: bool = False


def chosen_ways(names: list[str], client: str) -> list[Way]:
    """The ways of these names; `unix` is both of unix sockets, and `plain` is always there, for comparison.

    `client` is the address that servers see of plain connections. Raises `BenchError` if a name is none.
    """
    words = dict.fromkeys([PLAIN, *(word for name in names for word in (_UNIX if name == "unix" else (name,)))])
    for word in words:
        if word not in NAMES:
            raise BenchError(f"--with {word}: there are {', '.join(NAMES)}; unix is both of unix sockets")
    return [_way(word, client) for word in words]


def _way(name: str, client: str) -> Way:
    if name == "send-proxy":
        return Way(name, expects=expectation(client))
    if name == "accept-proxy":
        return Way(name, sends=proxy_header())
    if name == "sni":
        return Way(name, sends=client_hello(), expects=f"exact:{client_hello().hex()}")
    return Way(name, listen_unix=name in _UNIX, connect_unix=name == "unix-unix")


def expectation(client: str) -> str:
    """What a server is told that wants a PROXY header, of either version, with this address of the client."""
    return f"proxy:{(socket.inet_aton(client) + f'PROXY TCP4 {client} '.encode()).hex()}"


def proxy_header() -> bytes:
    """Version 2, of a client with an address that nobody has."""
    addresses = socket.inet_aton("192.0.2.7") + socket.inet_aton("198.51.100.1") + struct.pack("!HH", 40000, 443)
    return b"\r\n\r\n\0\r\nQUIT\n\x21\x11" + struct.pack("!H", len(addresses)) + addresses


@cache
def client_hello() -> bytes:
    """The first message of a TLS client, with SERVER_NAME: what OpenSSL sends."""
    outgoing = ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=SERVER_NAME)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()
