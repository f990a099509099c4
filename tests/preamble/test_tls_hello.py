"""The parser of TLS hellos: every rule, and the same result however the bytes are cut."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oinetd.preamble import tls_hello
from oinetd.preamble.progress import Fault, Invalid, NeedMore
from oinetd.preamble.tls_hello import (
    HELLO_WIRE_BYTES_MAX,
    MESSAGE_BYTES_MAX,
    Hello,
    HelloReader,
    _is_record,
    feed,
)
from tests.preamble.samples import extension, hello, prefixes, protocols, real_hello, records, server_name

GREASE = extension(0x0A0A, b"") + extension(0xFAFA, b"\0")
ECH = extension(0xFE0D, b"\0\0\1\0\1" + bytes(32))
POST_QUANTUM = extension(51, bytes(1300))

VALID = [
    (hello(server_name(b"a.example.org")), Hello("a.example.org")),
    (hello(server_name(b"A.Example.ORG.")), Hello("a.example.org")),
    (hello(server_name(b"_x-1.example")), Hello("_x-1.example")),
    (hello(server_name(b"x" * 253)), Hello("x" * 253)),
    (hello(protocols(b"h2", b"http/1.1")), Hello("", (b"h2", b"http/1.1"))),
    (hello(GREASE, server_name(b"a.example"), ECH, protocols(b"\x0a\x0a", b"h2")),
     Hello("a.example", (b"\x0a\x0a", b"h2"))),
    (hello(POST_QUANTUM, server_name(b"a.example")), Hello("a.example")),
    (hello(server_name(b"")), Hello()),
    (hello(server_name(b".")), Hello()),
    (hello(server_name(b"192.0.2.1")), Hello()),
    (hello(server_name(b"2001:db8::1")), Hello()),
    (hello(server_name(b"a.example", kind=7)), Hello()),
    (hello(), Hello()),
    (hello(session=bytes(32)), Hello()),
    (hello(extension(0x1234, b"x"), server_name(b"a.example")), Hello("a.example")),
]  # fmt: skip


def without_extensions() -> bytes:
    body = b"\x03\x01" + bytes(32) + b"\0" + b"\0\2\0\5" + b"\1\0"
    return b"\1" + len(body).to_bytes(3, "big") + body


def cut(message: bytes, by: int) -> bytes:
    """A message whose length says so many bytes less."""
    body = message[4:-by]
    return b"\1" + len(body).to_bytes(3, "big") + body


BROKEN = [
    (hello(server_name(b"a.example"), server_name(b"a.example")), Fault.EXTENSION_TWICE),
    (hello(GREASE, GREASE), Fault.EXTENSION_TWICE),
    (hello(server_name(b"a\0b.example")), Fault.SERVER_NAME),
    (hello(server_name(b"a.example\0")), Fault.SERVER_NAME),
    (hello(server_name(b"a b")), Fault.SERVER_NAME),
    (hello(server_name(b"a/b")), Fault.SERVER_NAME),
    (hello(server_name("ä.example".encode())), Fault.SERVER_NAME),
    (hello(server_name(b"x" * 254)), Fault.SERVER_NAME),
    (hello(server_name(b"a..")), None),
    (hello(server_name(b"a", b"b")), Fault.SERVER_NAME),
    (hello(server_name()), Fault.SERVER_NAME),
    (hello(extension(0, b"")), Fault.SERVER_NAME),
    (hello(extension(0, b"\0\1\0")), Fault.SERVER_NAME),
    (hello(extension(0, b"\0\4\0\0\1aX")), Fault.SERVER_NAME),
    (hello(extension(0, b"\0\5\0\0\1")), Fault.SERVER_NAME),
    (hello(protocols()), Fault.PROTOCOLS),
    (hello(protocols(b"h2", b"")), Fault.PROTOCOLS),
    (hello(extension(16, b"\0\2\5h")), Fault.PROTOCOLS),
    (hello(extension(16, b"\0\2\1hX")), Fault.PROTOCOLS),
    (hello(session=bytes(33)), Fault.HELLO),
    (hello(ciphers=b"\1"), Fault.HELLO),
    (hello(ciphers=b""), Fault.HELLO),
    (cut(hello(server_name(b"a.example")), 1), Fault.HELLO),
    (cut(hello(), 2), None),
    (cut(hello(), 3), Fault.HELLO),
    (b"\1\0\0\0", Fault.HELLO),
]


@pytest.mark.parametrize(("message", "wanted"), VALID)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 100, 16384])
def test_a_valid_hello_in_records_of_any_size(message: bytes, wanted: Hello, size: int) -> None:
    wire = records(message, size)
    assert feed(wire) == wanted
    assert feed(wire + b"\x17\x03\x03rest") == wanted


@pytest.mark.parametrize(("message", "wanted"), VALID[:3])
@pytest.mark.parametrize("size", [1, 2, 5, 40, 16384])
def test_at_every_split_point_it_needs_more_and_never_too_much(message: bytes, wanted: Hello, size: int) -> None:
    wire = records(message, size)
    for part in prefixes(wire):
        found = feed(part)
        assert isinstance(found, NeedMore)
        assert len(part) < found.total <= len(wire)


@pytest.mark.parametrize(("message", "fault"), BROKEN)
@pytest.mark.parametrize("size", [1, 16384])
def test_a_broken_hello(message: bytes, fault: Fault | None, size: int) -> None:
    found = feed(records(message, size))
    if fault is None:
        assert isinstance(found, Hello)
    else:
        assert found == Invalid(fault, 0)


def test_a_hello_without_extensions() -> None:
    assert feed(records(without_extensions())) == Hello()


@pytest.mark.parametrize(
    "wire",
    [
        b"GET / HTTP/1.1",
        b"\x15\x03\x01\0\2\1\0",
        b"\x80\x2e\1\3\1",
        b"\0",
        b"SSH-2.0-x\r\n",
        records(b"\2\0\0\0"),
        records(b"\0"),
    ],
)
def test_what_is_no_hello_wants_no_server_by_name(wire: bytes) -> None:
    assert feed(wire) == Hello()
    assert feed(wire[:1]) in (Hello(), NeedMore(9 if wire[:1] == b"\x16" else 0))


@pytest.mark.parametrize(
    ("wire", "at"),
    [
        (b"\x16\x02", 1),
        (b"\x16\x03\x01\0\0", 3),
        (b"\x16\x03\x01\x40\x01", 3),
        (records(hello()[:10]) + b"\x17\x03\x01", 15),
        (records(hello()[:10]) + b"\x16\x04", 16),
    ],
)
def test_a_broken_record(wire: bytes, at: int) -> None:
    assert feed(wire) == Invalid(Fault.RECORD, at)
    for part in prefixes(wire):
        assert isinstance(feed(part), NeedMore) or feed(part) == Invalid(Fault.RECORD, at)


def test_a_message_has_a_bound() -> None:
    largest = hello(extension(21, bytes(MESSAGE_BYTES_MAX - len(hello()) - 4)))
    assert len(largest) == MESSAGE_BYTES_MAX
    assert feed(records(largest)) == Hello()
    larger = hello(extension(21, bytes(MESSAGE_BYTES_MAX - len(hello()) - 3)))
    assert feed(records(larger)[:9]) == Invalid(Fault.HELLO_TOO_LONG, 5)


def test_so_has_what_is_on_the_wire() -> None:
    message = hello(extension(21, bytes(12000)))
    found = feed(records(message, 1))
    assert found == Invalid(Fault.HELLO_TOO_LONG, HELLO_WIRE_BYTES_MAX)
    assert feed(records(hello(extension(21, bytes(10000))), 1)) == Hello()


def test_few_looks_are_enough_for_the_smallest_records() -> None:
    """Each look says how much there has to be: the number of looks grows with the logarithm of the size."""
    wire = records(hello(extension(21, bytes(10800))), 1)
    looks, size = 0, 1
    while isinstance(found := feed(wire[:size]), NeedMore):
        looks, size = looks + 1, found.total
    assert found == Hello()
    assert size <= len(wire)
    assert looks < 80


@pytest.mark.parametrize("size", [1, 2, 5, 40, 16384])
def test_a_reader_that_goes_on_says_the_same_as_one_that_begins(size: int) -> None:
    """In small records, a few messages are enough: all are cut in larger ones."""
    messages = [message for message, _ in (*VALID, *BROKEN) if size > 5 or len(message) < 90]
    for wire in (records(message, size) for message in messages):
        for step in (1, 7, 100):
            reader = HelloReader()
            for end in (*range(step, len(wire), step), len(wire)):
                found = reader.feed(wire[:end])
                assert found == feed(wire[:end]), (wire, end)
                if not isinstance(found, NeedMore):
                    break


def test_each_record_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often a client has a reader look: work grows with the bytes, not with their square."""
    heads: list[bytes] = []

    def is_record(head: bytes) -> bool:
        heads.append(head)
        return _is_record(head)

    monkeypatch.setattr(tls_hello, "_is_record", is_record)
    wire = records(hello(extension(21, bytes(10800))), 1)
    reader, looks, size = HelloReader(), 1, 1
    while isinstance(found := reader.feed(wire[:size]), NeedMore):
        looks, size = looks + 1, found.total
    assert found == Hello()
    assert len(heads) <= len(wire) // 6 + looks


@pytest.mark.parametrize("name", ["a.example.org", "xn--4ca.example", None])
@pytest.mark.parametrize("alpn", [(), ("h2", "http/1.1")])
def test_the_hello_of_a_real_client(name: str | None, alpn: tuple[str, ...]) -> None:
    found = feed(real_hello(name, alpn))
    assert found == Hello(name or "", tuple(each.encode() for each in alpn))


@given(st.binary(max_size=200), st.integers(1, 50))
def test_no_bytes_are_a_traceback(data: bytes, size: int) -> None:
    assert feed(data) is not None
    assert feed(records(b"\1" + struct.pack("!I", len(data))[1:] + data, size)) is not None
