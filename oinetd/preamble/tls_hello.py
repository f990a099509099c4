"""The first message of a TLS client: which server it wants, and which protocols it speaks.

Nothing is decrypted or answered. The parser is pure: it is given all bytes from the first one, puts records together,
and says what the hello wants, that it needs more, or that it can never be one. What is no TLS handshake at all is not
invalid: it wants no server by name. The names are routing hints: a client may write what it likes.
(RFC 8446 sections 4.1.2, 4.2 and 5.1; RFC 6066 section 3; RFC 7301)
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from typing import Final

from oinetd.preamble.progress import Fault, Invalid, NeedMore

__all__ = ["HELLO_WIRE_BYTES_MAX", "NAME_CHARS_MAX", "Hello", "HelloReader", "feed", "is_server_name"]

HANDSHAKE: Final = 22
CLIENT_HELLO: Final = 1
RECORD_HEAD_BYTES: Final = 5
RECORD_BYTES_MAX: Final = 1 << 14
MESSAGE_HEAD_BYTES: Final = 4
MESSAGE_BYTES_MAX: Final = 1 << 14
"""Of the message with its head; hellos with post-quantum keys have about 2 KB."""
HELLO_WIRE_BYTES_MAX: Final = 1 << 16
"""Of the records that carry the message, with their heads."""
NAME_CHARS_MAX: Final = 253

SERVER_NAME: Final = 0
PROTOCOLS: Final = 16

_NAME = re.compile(rb"[A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Hello:
    """What a client wants: the name of a server in lower case, empty if it names none, and protocols by preference."""

    server_name: str = ""
    protocols: tuple[bytes, ...] = ()


NO_HELLO: Final = Hello()
"""The client does not begin with a hello."""


def feed(data: bytes) -> NeedMore | Hello | Invalid:
    """The hello at the beginning of `data`."""
    return HelloReader().feed(data)


class HelloReader:
    """Reads the hello of one connection again and again, as it gets longer: each whole record is looked at once."""

    __slots__ = ("_at", "_message", "_need")

    def __init__(self) -> None:
        self._message = bytearray()
        self._need = MESSAGE_HEAD_BYTES
        self._at = 0
        """Where the first record begins that was not whole."""

    def feed(self, data: bytes) -> NeedMore | Hello | Invalid:
        """As `feed`; `data` begins with what it was before."""
        if not data:
            return NeedMore(1)
        data = data[:HELLO_WIRE_BYTES_MAX]
        message, need = self._message, self._need
        while len(message) < need:
            at = self._at
            head = data[at : at + RECORD_HEAD_BYTES]
            if not _is_record(head):
                if (fault := _record_fault(head, at)) is not None:
                    # A first byte of something else is a client that speaks something else.
                    return NO_HELLO if fault == Invalid(Fault.RECORD, 0) else fault
                return _more(at + RECORD_HEAD_BYTES + need - len(message))
            begin = at + RECORD_HEAD_BYTES
            end = begin + (head[3] << 8 | head[4])
            whole = len(message)
            message += data[begin:end]
            if message and message[0] != CLIENT_HELLO:
                return NO_HELLO
            if len(message) >= MESSAGE_HEAD_BYTES:
                need = MESSAGE_HEAD_BYTES + int.from_bytes(message[1:4], "big")
                if need > MESSAGE_BYTES_MAX:
                    return Invalid(Fault.HELLO_TOO_LONG, begin)
            if len(data) < end and len(message) < need:
                missing, in_record = need - len(message), end - len(data)
                del message[whole:]  # what there is of this record is read again
                total = len(data) + missing if missing <= in_record else end + RECORD_HEAD_BYTES + missing - in_record
                return _more(total)
            self._at, self._need = end, need
        return _hello(bytes(message[MESSAGE_HEAD_BYTES:need]))


def _more(total: int) -> NeedMore | Invalid:
    return NeedMore(total) if total <= HELLO_WIRE_BYTES_MAX else Invalid(Fault.HELLO_TOO_LONG, HELLO_WIRE_BYTES_MAX)


def _is_record(head: bytes) -> bool:
    """Whether this is the whole head of a record as it may be."""
    return (
        len(head) == RECORD_HEAD_BYTES
        and head[0] == HANDSHAKE
        and head[1] == 3
        and 0 < (head[3] << 8 | head[4]) <= RECORD_BYTES_MAX
    )


def _record_fault(head: bytes, at: int) -> Invalid | None:
    """What is wrong with the head of the record at `at`, as far as it has come."""
    if head and head[0] != HANDSHAKE:
        return Invalid(Fault.RECORD, at)
    if len(head) > 1 and head[1] != 3:
        return Invalid(Fault.RECORD, at + 1)
    if len(head) == RECORD_HEAD_BYTES:
        return Invalid(Fault.RECORD, at + 3)
    return None


class _Broken(Exception):
    """The message is broken; its argument is the fault."""


class _Reader:
    """Takes a message apart."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, size: int, fault: Fault = Fault.HELLO) -> bytes:
        if size > self.left:
            raise _Broken(fault)
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, size: int, fault: Fault = Fault.HELLO) -> int:
        return int.from_bytes(self.take(size, fault), "big")

    def vector(self, size: int, fault: Fault = Fault.HELLO) -> bytes:
        """Bytes with their number, of `size` bytes, before them."""
        return self.take(self.number(size, fault), fault)


def _hello(body: bytes) -> Hello | Invalid:
    try:
        return _parse(_Reader(body))
    except _Broken as broken:
        fault = broken.args[0]
        assert isinstance(fault, Fault)
        return Invalid(fault, 0)


def _parse(reader: _Reader) -> Hello:
    reader.take(2 + 32)  # version, random
    if len(reader.vector(1)) > 32:
        raise _Broken(Fault.HELLO)
    ciphers = reader.vector(2)
    if not ciphers or len(ciphers) % 2 or not reader.vector(1):
        raise _Broken(Fault.HELLO)
    if not reader.left:  # a hello without extensions, from before TLS 1.2
        return Hello()
    extensions = _Reader(reader.vector(2))
    if reader.left:
        raise _Broken(Fault.HELLO)
    seen: set[int] = set()
    name, protocols = "", tuple[bytes, ...]()
    while extensions.left:
        kind, value = extensions.number(2), extensions.vector(2)
        if kind in seen:
            raise _Broken(Fault.EXTENSION_TWICE)
        seen.add(kind)
        if kind == SERVER_NAME:
            name = _server_name(_Reader(value))
        elif kind == PROTOCOLS:
            protocols = _protocols(_Reader(value))
    return Hello(name, protocols)


def _server_name(reader: _Reader) -> str:
    names = _Reader(reader.vector(2, Fault.SERVER_NAME))
    if reader.left or not names.left:
        raise _Broken(Fault.SERVER_NAME)
    found: bytes | None = None
    while names.left:
        kind, name = names.number(1, Fault.SERVER_NAME), names.vector(2, Fault.SERVER_NAME)
        if kind != 0:
            continue
        if found is not None:
            raise _Broken(Fault.SERVER_NAME)
        found = name
    return _normal(found or b"")


def _normal(name: bytes) -> str:
    """A server name in lower case without the dot at its end; empty for the literal of an address."""
    name = name.removesuffix(b".")
    if not name or _is_address(name):
        return ""
    if not is_server_name(name):
        raise _Broken(Fault.SERVER_NAME)
    return name.decode("ascii").lower()


def is_server_name(name: bytes) -> bool:
    """Whether it has only characters of a server name, and no more than one may have."""
    return len(name) <= NAME_CHARS_MAX and _NAME.fullmatch(name) is not None


def _is_address(name: bytes) -> bool:
    family = socket.AF_INET6 if b":" in name else socket.AF_INET
    try:
        socket.inet_pton(family, name.decode("ascii"))
    except (OSError, ValueError):
        return False
    return True


def _protocols(reader: _Reader) -> tuple[bytes, ...]:
    names = _Reader(reader.vector(2, Fault.PROTOCOLS))
    if reader.left or not names.left:
        raise _Broken(Fault.PROTOCOLS)
    found = []
    while names.left:
        name = names.vector(1, Fault.PROTOCOLS)
        if not name:
            raise _Broken(Fault.PROTOCOLS)
        found.append(name)
    return tuple(found)
