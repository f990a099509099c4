"""`balance=source`: which server a client address leads to, on every machine and in every version.

A table of 65,537 entries has a server in each; the key of a client leads to one entry (Eisenbud and others, "Maglev: A
Fast and Reliable Software Network Load Balancer", 2016, section 3.4). A server that leaves moves its own clients and
hardly any others. Nothing in this file may ever change what it computes: the tests have golden vectors.
"""

from __future__ import annotations

import hashlib
import socket
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple, Protocol, TypeAlias

__all__ = [
    "KEY",
    "ROUND_MAX",
    "TABLE_SIZE",
    "Build",
    "Entries",
    "Turns",
    "client_key",
    "entry_of",
    "fill",
    "server_name",
    "siphash",
    "table_of",
    "turns_of",
]

TABLE_SIZE: Final = 65_537
"""A prime number, so that each step of a server's own order visits every entry."""

ROUND_MAX: Final = 6_553
"""The most entries that one round takes, a tenth of the table: the last round then distorts no share by much."""

KEY: Final = b"oinetd-maglev-01"
_NAME_KEY: Final = b"oinetd maglev 1"
_STEPS_AT_ONCE: Final = 16_384
"""Entries that are looked at between two pauses of `fill`: a millisecond or two."""
_MASK: Final = (1 << 64) - 1
_MAPPED: Final = b"\0" * 10 + b"\xff\xff"


def siphash(data: bytes, key: bytes = KEY) -> int:
    """SipHash-2-4 of `data` (Aumasson and Bernstein, 2012): 64 bits."""
    k0, k1 = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]
    whole = len(data) // 8 * 8
    words = [data[at : at + 8] for at in range(0, whole, 8)]
    words.append(data[whole:].ljust(7, b"\0") + bytes([len(data) & 0xFF]))
    for word in words:
        number = int.from_bytes(word, "little")
        v[3] ^= number
        _sip_rounds(v, 2)
        v[0] ^= number
    v[2] ^= 0xFF
    _sip_rounds(v, 4)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def _sip_rounds(v: list[int], count: int) -> None:
    v0, v1, v2, v3 = v
    for _ in range(count):
        v0 = (v0 + v1) & _MASK
        v1 = ((v1 << 13 | v1 >> 51) & _MASK) ^ v0
        v0 = (v0 << 32 | v0 >> 32) & _MASK
        v2 = (v2 + v3) & _MASK
        v3 = ((v3 << 16 | v3 >> 48) & _MASK) ^ v2
        v0 = (v0 + v3) & _MASK
        v3 = ((v3 << 21 | v3 >> 43) & _MASK) ^ v0
        v2 = (v2 + v1) & _MASK
        v1 = ((v1 << 17 | v1 >> 47) & _MASK) ^ v2
        v2 = (v2 << 32 | v2 >> 32) & _MASK
    v[:] = v0, v1, v2, v3


def client_key(host: str) -> bytes:
    """What of a client's numeric address counts: all of IPv4, as `::ffff:a.b.c.d`, and the first 64 bits of IPv6."""
    plain = host.partition("%")[0]
    if ":" not in plain:
        return _MAPPED + socket.inet_pton(socket.AF_INET, plain)
    packed = socket.inet_pton(socket.AF_INET6, plain)
    return packed if packed.startswith(_MAPPED) else packed[:8] + bytes(8)


def entry_of(host: str) -> int:
    """The entry of the table that a client's address leads to."""
    return siphash(client_key(host)) % TABLE_SIZE


def server_name(host: str, port: int) -> bytes:
    """The name by which a server is known in the table: `host:port` in lower case, IPv6 as RFC 5952 in brackets."""
    if host.startswith("unix:"):
        return host.encode("utf-8", "surrogateescape")
    plain = host[1:-1] if host.startswith("[") else host
    if plain == "0":
        plain = "0.0.0.0"
    address, percent, scope = plain.partition("%")
    if ":" in address:
        plain = f"[{_rfc5952(socket.inet_pton(socket.AF_INET6, address))}{percent}{scope}]"
    return f"{plain.lower()}:{port}".encode("utf-8", "surrogateescape")


def _rfc5952(packed: bytes) -> str:
    """The text of an IPv6 address. Not by the C library: libraries differ."""
    if packed.startswith(_MAPPED):
        return "::ffff:" + ".".join(str(byte) for byte in packed[12:])
    groups = [int.from_bytes(packed[at : at + 2], "big") for at in range(0, 16, 2)]
    first, length = 0, 0
    for start in range(8):
        run = next((at for at in range(start, 8) if groups[at]), 8) - start
        if run > max(1, length):
            first, length = start, run
    head, tail = ":".join(f"{group:x}" for group in groups[:first]), groups[first + length :]
    return f"{head}{'::' if length else ''}{':'.join(f'{group:x}' for group in tail)}"


class Turns(NamedTuple):
    """The servers in the order of their names: where each begins, its step, its entries a round, and its number."""

    places: array[int]
    steps: array[int]
    counts: array[int]
    numbers: array[int]


class Entries(Protocol):
    """A table: in Python an array, with the extension what the reactors share."""

    def __len__(self) -> int: ...
    def __getitem__(self, at: int, /) -> int: ...


Build: TypeAlias = "Callable[[Turns], Entries]"
"""Fills a table at once, for one server at least."""


def turns_of(servers: Sequence[tuple[bytes, int]], numbers: Sequence[int]) -> Turns:
    """What a table is filled from: `servers` have a name and a weight above 0, and `numbers` are their entries."""
    total = sum(weight for _, weight in servers)
    scale = (ROUND_MAX, total) if total > ROUND_MAX else (1, 1)
    turns = Turns(array("I"), array("I"), array("I"), array("h"))
    for number, (name, weight) in sorted(zip(numbers, servers, strict=True), key=lambda item: item[1][0]):
        digest = hashlib.blake2b(name, digest_size=16, key=_NAME_KEY).digest()
        turns.places.append(int.from_bytes(digest[:8], "little") % TABLE_SIZE)
        turns.steps.append(int.from_bytes(digest[8:], "little") % (TABLE_SIZE - 1) + 1)
        turns.counts.append(max(1, weight * scale[0] // scale[1]))
        turns.numbers.append(number)
    return turns


def fill(turns: Turns) -> Iterator[array[int] | None]:
    """Fill the table; pauses with None, the table comes last. An entry is the number of its server, -1 in all of them
    if there is none."""
    table = array("h", [-1]) * TABLE_SIZE
    if not turns.places:
        yield table
        return
    places, order = turns.places[:], range(len(turns.places))
    left, looked = TABLE_SIZE, 0
    while True:  # bounded: each round fills entries
        for at in order:
            number, place, step, count = turns.numbers[at], places[at], turns.steps[at], turns.counts[at]
            for _ in range(count):
                while table[place] >= 0:  # bounded: a free one is left, and the steps visit every entry
                    place += step
                    if place >= TABLE_SIZE:
                        place -= TABLE_SIZE
                    looked += 1
                table[place] = number
                left -= 1
                if not left:
                    yield table
                    return
            places[at] = place
            looked += count
            if looked >= _STEPS_AT_ONCE:
                looked = 0
                yield None


def table_of(servers: Sequence[tuple[bytes, int]]) -> array[int]:
    """The table for `servers`, at once: some tens of milliseconds."""
    *_, table = fill(turns_of(servers, range(len(servers))))
    assert table is not None
    return table
