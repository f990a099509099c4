"""Headers of the PROXY protocol to send: the shortest that says who the client is, and where it connected to."""

from __future__ import annotations

import socket
from collections.abc import Iterable

from oinetd.preamble.crc32c import crc32c
from oinetd.preamble.proxy_protocol import (
    CRC32C,
    DGRAM,
    FIXED_BYTES,
    HEADER_BYTES_MAX,
    INET,
    INET6,
    LOCAL,
    NOOP,
    PROXY,
    SIGNATURE,
    STREAM,
    Party,
    Tlv,
)

__all__ = ["passed_on", "write_v1", "write_v2"]

_MAPPED = b"\0" * 10 + b"\xff\xff"
"""The first 12 bytes of an IPv4 address as an IPv6 socket shows it (RFC 4291, 2.5.5.2)."""


def write_v1(source: Party | None, destination: Party | None) -> bytes:
    """A line of version 1; without the two ends it is `PROXY UNKNOWN`."""
    if source is None or destination is None:
        return b"PROXY UNKNOWN\r\n"
    hosts = _hosts(source, destination)
    word, family = ("TCP4", socket.AF_INET) if len(hosts[0]) == 4 else ("TCP6", socket.AF_INET6)
    texts = " ".join(socket.inet_ntop(family, host) for host in hosts)
    return f"PROXY {word} {texts} {source.port} {destination.port}\r\n".encode()


def write_v2(
    source: Party | None,
    destination: Party | None,
    tlvs: Iterable[Tlv] = (),
    *,
    checksum: bool = False,
    datagram: bool = False,
) -> bytes:
    """A header of version 2; without the two ends it is LOCAL, and has no TLVs.

    TLVs that would make it longer than `HEADER_BYTES_MAX` are left out, the last ones first.
    """
    if source is None or destination is None:
        return SIGNATURE + bytes((2 << 4 | LOCAL, 0, 0, 0))
    hosts = _hosts(source, destination)
    family = INET if len(hosts[0]) == 4 else INET6
    body = b"".join(hosts) + source.port.to_bytes(2, "big") + destination.port.to_bytes(2, "big")
    room = HEADER_BYTES_MAX - FIXED_BYTES - len(body) - (7 if checksum else 0)
    for tlv in tlvs:
        room -= 3 + len(tlv.value)
        if room < 0:
            break
        body += bytes((tlv.type,)) + len(tlv.value).to_bytes(2, "big") + tlv.value
    if checksum:
        body += bytes((CRC32C, 0, 4, 0, 0, 0, 0))
    transport = DGRAM if datagram else STREAM
    header = SIGNATURE + bytes((2 << 4 | PROXY, family << 4 | transport)) + len(body).to_bytes(2, "big") + body
    return header[:-4] + crc32c(header).to_bytes(4, "big") if checksum else header


def passed_on(tlvs: Iterable[Tlv]) -> tuple[Tlv, ...]:
    """Those of an accepted header that may be sent on: a checksum is of that header, and NOOP only fills it up."""
    return tuple(tlv for tlv in tlvs if tlv.type not in (CRC32C, NOOP))


def _hosts(*parties: Party) -> list[bytes]:
    """The packed addresses, of one family: IPv4 if both are, as an IPv6 socket shows it or not; else IPv6."""
    packed = []
    for party in parties:
        host = party.host.partition("%")[0]
        if ":" in host:
            address = socket.inet_pton(socket.AF_INET6, host)
            packed.append(address[12:] if address.startswith(_MAPPED) else address)
        else:
            packed.append(socket.inet_pton(socket.AF_INET, host))
    if len({len(address) for address in packed}) > 1:
        packed = [address if len(address) == 16 else _MAPPED + address for address in packed]
    return packed
