"""Headers and hellos for the tests of the parsers, made byte by byte and not by the writers that are tested."""

from __future__ import annotations

import ssl
import struct
from collections.abc import Iterable, Iterator

from oinetd.preamble.crc32c import crc32c

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
INET = bytes([192, 0, 2, 7, 198, 51, 100, 9]) + struct.pack("!HH", 40000, 443)
INET6 = bytes.fromhex("20010db8000000000000000000000007 20010db8000000000000000000000009") + struct.pack("!HH", 1, 2)
UNIX = b"/from".ljust(108, b"\0") + b"/to".ljust(108, b"\0")


def binary(body: bytes = INET, *, command: int = 0x21, family: int = 0x11, length: int | None = None) -> bytes:
    """A header of version 2."""
    size = len(body) if length is None else length
    return SIGNATURE + bytes([command, family]) + struct.pack("!H", size) + body


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


def with_checksum(body: bytes) -> bytes:
    """A header of version 2 with a checksum behind `body`."""
    header = binary(body + tlv(3, bytes(4)))
    return header[:-4] + struct.pack("!I", crc32c(header))


def extension(kind: int, value: bytes) -> bytes:
    return struct.pack("!HH", kind, len(value)) + value


def server_name(*names: bytes, kind: int = 0) -> bytes:
    entries = b"".join(struct.pack("!BH", kind, len(name)) + name for name in names)
    return extension(0, struct.pack("!H", len(entries)) + entries)


def protocols(*names: bytes) -> bytes:
    entries = b"".join(bytes([len(name)]) + name for name in names)
    return extension(16, struct.pack("!H", len(entries)) + entries)


def hello(*extensions: bytes, ciphers: bytes = b"\x13\x01", session: bytes = b"") -> bytes:
    """The handshake message of a client, without a record around it."""
    found = b"".join(extensions)
    body = b"\x03\x03" + bytes(32) + bytes([len(session)]) + session + struct.pack("!H", len(ciphers)) + ciphers
    body += b"\x01\x00" + struct.pack("!H", len(found)) + found
    return b"\x01" + len(body).to_bytes(3, "big") + body


def records(message: bytes, size: int = 16384) -> bytes:
    """A message in records of at most `size` bytes."""
    parts = (message[at : at + size] for at in range(0, len(message), size))
    return b"".join(b"\x16\x03\x01" + struct.pack("!H", len(part)) + part for part in parts)


def real_hello(name: str | None, alpn: Iterable[str] = ()) -> bytes:
    """What the TLS library of this Python sends."""
    context = ssl.create_default_context()
    context.check_hostname = False
    if alpn:
        context.set_alpn_protocols(list(alpn))
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError


def prefixes(data: bytes) -> Iterator[bytes]:
    """What there is after each byte but the last."""
    yield from (data[:size] for size in range(len(data)))
