"""What a parser says of the bytes that have come so far, apart from a result: more are needed, or they are invalid."""

from __future__ import annotations

import enum
from typing import NamedTuple

__all__ = ["Fault", "Invalid", "NeedMore"]


class Fault(enum.IntEnum):
    """Why bytes are refused. `_fastpath/preamble/fault.pxd` has the same numbers."""

    SIGNATURE = 1
    LINE_TOO_LONG = 2
    LONE_CR = 3
    LONE_LF = 4
    WORDS = 5
    ADDRESS = 6
    PORT = 7
    VERSION = 8
    COMMAND = 9
    FAMILY = 10
    TOO_LONG = 11
    ADDRESSES_SHORT = 12
    TLV = 13
    UNIQUE_ID = 14
    CHECKSUM_SIZE = 15
    CHECKSUM = 16
    DATAGRAM = 17
    RECORD = 18
    HELLO_TOO_LONG = 19
    HELLO = 20
    EXTENSION_TWICE = 21
    SERVER_NAME = 22
    PROTOCOLS = 23

    @property
    def text(self) -> str:
        """For a log line."""
        return _TEXTS[self]


_TEXTS = {
    Fault.SIGNATURE: "no PROXY header",
    Fault.LINE_TOO_LONG: "the line is longer than 107 bytes",
    Fault.LONE_CR: "CR without LF",
    Fault.LONE_LF: "LF without CR",
    Fault.WORDS: "not the words of a PROXY line",
    Fault.ADDRESS: "not an address of this family",
    Fault.PORT: "not a port from 0 to 65535",
    Fault.VERSION: "not version 2",
    Fault.COMMAND: "a command other than LOCAL and PROXY",
    Fault.FAMILY: "an unknown address family or transport",
    Fault.TOO_LONG: "the header is longer than 4096 bytes",
    Fault.ADDRESSES_SHORT: "the length is too short for the addresses",
    Fault.TLV: "a TLV ends behind the header",
    Fault.UNIQUE_ID: "a unique ID of more than 128 bytes",
    Fault.CHECKSUM_SIZE: "a checksum that has not 4 bytes",
    Fault.CHECKSUM: "the checksum does not match",
    Fault.DATAGRAM: "not a version 2 header for a datagram",
    Fault.RECORD: "not a TLS record of a handshake",
    Fault.HELLO_TOO_LONG: "the hello is too long",
    Fault.HELLO: "lengths in the hello do not match",
    Fault.EXTENSION_TWICE: "an extension occurs twice",
    Fault.SERVER_NAME: "the server name is not valid",
    Fault.PROTOCOLS: "the list of protocols is not valid",
}


class NeedMore(NamedTuple):
    """It is not complete. `total` is the fewest bytes, from the first one, with which it can be."""

    total: int


class Invalid(NamedTuple):
    """It can never be valid, whatever follows; `at` is the byte, from 0, that shows it."""

    fault: Fault
    at: int

    def __str__(self) -> str:
        return f"at byte {self.at}: {self.fault.text}"
