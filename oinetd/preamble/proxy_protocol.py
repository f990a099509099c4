"""The PROXY protocol, versions 1 and 2: the header with which a proxy tells a server who the client is.

The parser is pure: it is given all bytes from the first one, and says how many the header has, that it needs more, or
that they can never be a header. It never guesses whether there is a header; whoever calls it expects one.
(haproxy.org/download/3.0/doc/proxy-protocol.txt)
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from oinetd.preamble.crc32c import crc32c
from oinetd.preamble.progress import Fault, Invalid, NeedMore

__all__ = ["AUTHORITY", "CRC32C", "NOOP", "UNIQUE_ID", "Header", "Party", "Tlv", "feed", "feed_datagram"]

SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
LINE_BEGINNING: Final = b"PROXY "
LINE_BYTES_MIN: Final = len(b"PROXY UNKNOWN\r\n")
LINE_BYTES_MAX: Final = 107
FIXED_BYTES: Final = 16
"""Of version 2: signature, version and command, family, length."""
HEADER_BYTES_MAX: Final = 4096
UNIQUE_ID_BYTES_MAX: Final = 128

LOCAL, PROXY = 0, 1
UNSPEC, INET, INET6, UNIX = range(4)
STREAM, DGRAM = 1, 2
ADDRESSES_BYTES: Final = {UNSPEC: 0, INET: 12, INET6: 36, UNIX: 216}

AUTHORITY: Final = 0x02
CRC32C: Final = 0x03
NOOP: Final = 0x04
UNIQUE_ID: Final = 0x05


class Party(NamedTuple):
    """One end of the connection that a header describes: a numeric address, and a port."""

    host: str
    port: int


class Tlv(NamedTuple):
    """One of the additional values of version 2."""

    type: int
    value: bytes


@dataclass(frozen=True, slots=True)
class Header:
    """A whole header of `length` bytes.

    `source` and `destination` are None if it names no internet addresses: LOCAL, UNKNOWN, an unspecified family, unix
    addresses. Then the ends are those of the connection itself.
    """

    length: int
    version: int
    source: Party | None = None
    destination: Party | None = None
    tlvs: tuple[Tlv, ...] = ()

    def value(self, kind: int) -> bytes:
        """The value of the first TLV of this type; empty if there is none."""
        return next((tlv.value for tlv in self.tlvs if tlv.type == kind), b"")


def feed(data: bytes) -> NeedMore | Header | Invalid:
    """The header at the beginning of `data`, of either version."""
    if not data:
        return NeedMore(LINE_BYTES_MIN)
    if data[:1] == LINE_BEGINNING[:1]:
        return _line(data)
    begun = min(len(data), len(SIGNATURE))
    for at in range(begun):
        if data[at] != SIGNATURE[at]:
            return Invalid(Fault.SIGNATURE, at)
    return _binary(data)


def feed_datagram(data: bytes) -> Header | Invalid:
    """The header of a datagram: version 2, for datagrams or LOCAL, and all of it in this datagram."""
    found = feed(data)
    if isinstance(found, NeedMore):
        return Invalid(Fault.DATAGRAM, len(data))
    if isinstance(found, Header) and (found.version != 2 or (data[12] & 0xF != LOCAL and data[13] & 0xF != DGRAM)):
        return Invalid(Fault.DATAGRAM, 13 if found.version == 2 else 0)
    return found


# Version 1


def _line(data: bytes) -> NeedMore | Header | Invalid:
    for at in range(min(len(data), len(LINE_BEGINNING))):
        if data[at] != LINE_BEGINNING[at]:
            return Invalid(Fault.SIGNATURE, at)
    end = next((at for at, byte in enumerate(data[: LINE_BYTES_MAX - 1]) if byte in b"\r\n"), -1)
    if end < 0:
        if len(data) >= LINE_BYTES_MAX - 1:
            return Invalid(Fault.LINE_TOO_LONG, LINE_BYTES_MAX - 1)
        return NeedMore(max(LINE_BYTES_MIN, len(data) + 1))
    if data[end] == 0x0A:
        return Invalid(Fault.LONE_LF, end)
    if len(data) == end + 1:
        return NeedMore(max(LINE_BYTES_MIN, end + 2))
    if data[end + 1] != 0x0A:
        return Invalid(Fault.LONE_CR, end)
    return _words(data[len(LINE_BEGINNING) : end], end + 2)


def _words(text: bytes, length: int) -> Header | Invalid:
    """The words of a line between its first blank and CRLF."""
    begin = len(LINE_BEGINNING)
    if text == b"UNKNOWN" or text.startswith(b"UNKNOWN "):
        return Header(length, 1)
    words = text.split(b" ")
    if words[0] not in (b"TCP4", b"TCP6") or len(words) != 5:
        return Invalid(Fault.WORDS, begin)
    family = socket.AF_INET if words[0] == b"TCP4" else socket.AF_INET6
    hosts, ports = [], []
    at = begin + 5
    for word in words[1:3]:
        host = _host(family, word)
        if host is None:
            return Invalid(Fault.ADDRESS, at)
        hosts.append(host)
        at += len(word) + 1
    for word in words[3:5]:
        port = _port(word)
        if port is None:
            return Invalid(Fault.PORT, at)
        ports.append(port)
        at += len(word) + 1
    return Header(length, 1, Party(hosts[0], ports[0]), Party(hosts[1], ports[1]))


def _host(family: int, word: bytes) -> str | None:
    try:
        return socket.inet_ntop(family, socket.inet_pton(family, word.decode("ascii")))
    except (OSError, ValueError):  # UnicodeDecodeError is one, and so is a NUL
        return None


def _port(word: bytes) -> int | None:
    if not word.isdigit() or len(word) > 5 or (word[0] == 0x30 and len(word) > 1):
        return None
    port = int(word)
    return port if port <= 65535 else None


# Version 2


def _binary(data: bytes) -> NeedMore | Header | Invalid:
    if len(data) > 12 and data[12] >> 4 != 2:
        return Invalid(Fault.VERSION, 12)
    if len(data) > 12 and data[12] & 0xF > PROXY:
        return Invalid(Fault.COMMAND, 12)
    local = len(data) > 12 and data[12] & 0xF == LOCAL
    if len(data) > 13 and not local and (data[13] >> 4 > UNIX or data[13] & 0xF > DGRAM):
        return Invalid(Fault.FAMILY, 13)
    if len(data) < FIXED_BYTES:
        return NeedMore(FIXED_BYTES)
    length = FIXED_BYTES + int.from_bytes(data[14:16], "big")
    if length > HEADER_BYTES_MAX:
        return Invalid(Fault.TOO_LONG, 14)
    family, transport = data[13] >> 4, data[13] & 0xF
    skipped = local or family == UNSPEC or not transport
    if not skipped and length < FIXED_BYTES + ADDRESSES_BYTES[family]:
        return Invalid(Fault.ADDRESSES_SHORT, 14)
    if len(data) < length:
        return NeedMore(length)
    if skipped:
        return Header(length, 2)
    return _contents(data[:length], family)


def _contents(header: bytes, family: int) -> Header | Invalid:
    """The addresses and TLVs of a whole header."""
    behind = FIXED_BYTES + ADDRESSES_BYTES[family]
    tlvs: list[Tlv] = []
    for at, tlv in _tlvs(header, behind):
        if tlv is None:
            return Invalid(Fault.TLV, at)
        if tlv.type == UNIQUE_ID and len(tlv.value) > UNIQUE_ID_BYTES_MAX:
            return Invalid(Fault.UNIQUE_ID, at)
        if tlv.type == CRC32C:
            if len(tlv.value) != 4:
                return Invalid(Fault.CHECKSUM_SIZE, at)
            value = at + 3
            if crc32c(header[:value] + bytes(4) + header[value + 4 :]) != int.from_bytes(tlv.value, "big"):
                return Invalid(Fault.CHECKSUM, at)
        tlvs.append(tlv)
    if family == UNIX:
        return Header(len(header), 2, None, None, tuple(tlvs))
    size, kind = (4, socket.AF_INET) if family == INET else (16, socket.AF_INET6)
    parties = []
    for number in range(2):
        host = header[FIXED_BYTES + number * size :][:size]
        port = header[FIXED_BYTES + 2 * size + 2 * number :][:2]
        parties.append(Party(socket.inet_ntop(kind, host), int.from_bytes(port, "big")))
    return Header(len(header), 2, parties[0], parties[1], tuple(tlvs))


def _tlvs(header: bytes, at: int) -> Iterator[tuple[int, Tlv | None]]:
    """Each TLV from `at` on with its place; None for one that ends behind the header."""
    while at < len(header):
        size = int.from_bytes(header[at + 1 : at + 3], "big")
        if at + 3 > len(header) or at + 3 + size > len(header):
            yield at, None
            return
        yield at, Tlv(header[at], header[at + 3 : at + 3 + size])
        at += 3 + size
