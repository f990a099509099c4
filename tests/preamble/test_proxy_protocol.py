"""The parser of PROXY headers: every rule, and the same result however the bytes are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oinetd.preamble import proxy_writer
from oinetd.preamble.crc32c import crc32c
from oinetd.preamble.progress import Fault, Invalid, NeedMore
from oinetd.preamble.proxy_protocol import AUTHORITY, Header, Party, Tlv, feed, feed_datagram
from tests.preamble.samples import INET, INET6, SIGNATURE, UNIX, binary, prefixes, tlv, with_checksum

CLIENT, SERVER = Party("192.0.2.7", 40000), Party("198.51.100.9", 443)
CLIENT6, SERVER6 = Party("2001:db8::7", 1), Party("2001:db8::9", 2)


def line(text: str) -> bytes:
    return f"PROXY {text}\r\n".encode("latin-1")


LONGEST = line("TCP6 " + " ".join([":".join(["ffff"] * 8)] * 2) + " 65535 65535")
LONGER = line("TCP6 " + " ".join([":".join(["ffff"] * 6) + ":255.255.255.255"] * 2) + " 65535 65535")

VALID: list[tuple[bytes, Party | None, Party | None]] = [
    (line("TCP4 192.0.2.7 198.51.100.9 40000 443"), CLIENT, SERVER),
    (line("TCP6 2001:db8::7 2001:db8::9 1 2"), CLIENT6, SERVER6),
    (line("TCP6 2001:DB8:0:0:0:0:0:7 2001:db8::0.0.0.9 1 2"), CLIENT6, SERVER6),
    (line("TCP6 ::ffff:192.0.2.7 ::ffff:198.51.100.9 40000 443"), Party("::ffff:192.0.2.7", 40000),
     Party("::ffff:198.51.100.9", 443)),
    (line("TCP4 0.0.0.0 255.255.255.255 0 65535"), Party("0.0.0.0", 0), Party("255.255.255.255", 65535)),
    (line("UNKNOWN"), None, None),
    (line("UNKNOWN what ever\t\0\xff it says"), None, None),
    (line("UNKNOWN" + " " * 92), None, None),
    (binary(), CLIENT, SERVER),
    (binary(INET, family=0x12), CLIENT, SERVER),
    (binary(INET6, family=0x21), CLIENT6, SERVER6),
    (binary(UNIX, family=0x31), None, None),
    (binary(b"", command=0x20, family=0), None, None),
    (binary(b"\x03\0", command=0x20, family=0xFF), None, None),
    (binary(b"anything", family=0x00), None, None),
    (binary(b"\x05", family=0x10), None, None),
    (binary(b"\x05", family=0x01), None, None),
    (binary(INET + tlv(4, b"") + tlv(4, b"000") + tlv(0xEE, b"x")), CLIENT, SERVER),
    (binary(INET + tlv(5, b"u" * 128)), CLIENT, SERVER),
    (binary(INET + tlv(0xE0, bytes(4096 - 16 - 12 - 3))), CLIENT, SERVER),
    (with_checksum(INET + tlv(2, b"a.example")), CLIENT, SERVER),
]  # fmt: skip

INVALID: list[tuple[bytes, Fault, int]] = [
    (b"GET / HTTP/1.0\r\n", Fault.SIGNATURE, 0),
    (b"proxy TCP4 ", Fault.SIGNATURE, 0),
    (b"PROXY\tTCP4", Fault.SIGNATURE, 5),
    (b"POST", Fault.SIGNATURE, 1),
    (b"\r\n\r\n\0\r\nQUIT\r", Fault.SIGNATURE, 11),
    (b"PROXY UNKNOWN" + b" " * 94, Fault.LINE_TOO_LONG, 106),
    (b"PROXY UNKNOWN" + b" " * 93 + b"\r\n", Fault.LINE_TOO_LONG, 106),
    (b"PROXY UNKNOWN\n", Fault.LONE_LF, 13),
    (b"PROXY UNKNOWN \rx\r\n", Fault.LONE_CR, 14),
    (b"PROXY UNKNOWN \r\r\n", Fault.LONE_CR, 14),
    (line("UNKNOWN\0"), Fault.WORDS, 6),
    (line("UNKNOWNX"), Fault.WORDS, 6),
    (line("unknown"), Fault.WORDS, 6),
    (line(""), Fault.WORDS, 6),
    (line("TCP4"), Fault.WORDS, 6),
    (line("TCP5 1.2.3.4 1.2.3.4 1 1"), Fault.WORDS, 6),
    (line("TCP4  1.2.3.4 1.2.3.4 1 1"), Fault.WORDS, 6),
    (line("TCP4 1.2.3.4 1.2.3.4 1  1"), Fault.WORDS, 6),
    (line("TCP4 1.2.3.4 1.2.3.4 1 1 "), Fault.WORDS, 6),
    (line(" TCP4 1.2.3.4 1.2.3.4 1 1"), Fault.WORDS, 6),
    (line("TCP4 1.2.3.4\t1.2.3.4 1 1"), Fault.WORDS, 6),
    (line("TCP4 1.2.3.4 1.2.3.4 1"), Fault.WORDS, 6),
    (line("TCP4 1.2.3.4  1 1"), Fault.ADDRESS, 19),
    (line("TCP4 01.2.3.4 1.2.3.4 1 1"), Fault.ADDRESS, 11),
    (line("TCP4 1.2.3.256 1.2.3.4 1 1"), Fault.ADDRESS, 11),
    (line("TCP4 1.2.3 1.2.3.4 1 1"), Fault.ADDRESS, 11),
    (line("TCP4 1.2.3.4 1.2.3.4\0 1 1"), Fault.ADDRESS, 19),
    (line("TCP4 1.2.3.4 ::1 1 1"), Fault.ADDRESS, 19),
    (line("TCP6 ::1 1.2.3.4 1 1"), Fault.ADDRESS, 15),
    (line("TCP6 ::1%lo ::1 1 1"), Fault.ADDRESS, 11),
    (line("TCP6 [::1] ::1 1 1"), Fault.ADDRESS, 11),
    (line("TCP6 12345::1 ::1 1 1"), Fault.ADDRESS, 11),
    (line("TCP4 1.2.3.4 1.2.3.4 01 1"), Fault.PORT, 27),
    (line("TCP4 1.2.3.4 1.2.3.4 65536 1"), Fault.PORT, 27),
    (line("TCP4 1.2.3.4 1.2.3.4 1 100000"), Fault.PORT, 29),
    (line("TCP4 1.2.3.4 1.2.3.4 -1 1"), Fault.PORT, 27),
    (line("TCP4 1.2.3.4 1.2.3.4 +1 1"), Fault.PORT, 27),
    (line("TCP4 1.2.3.4 1.2.3.4 1 0x1"), Fault.PORT, 29),
    (line("TCP4 1.2.3.4 1.2.3.4 1 \xb2"), Fault.PORT, 29),
    (binary(command=0x11), Fault.VERSION, 12),
    (binary(command=0x31), Fault.VERSION, 12),
    (binary(command=0x22), Fault.COMMAND, 12),
    (binary(command=0x2F), Fault.COMMAND, 12),
    (binary(family=0x41), Fault.FAMILY, 13),
    (binary(family=0x13), Fault.FAMILY, 13),
    (binary(b"", family=0xF0), Fault.FAMILY, 13),
    (binary(INET[:-1]), Fault.ADDRESSES_SHORT, 14),
    (binary(INET6[:-1], family=0x21), Fault.ADDRESSES_SHORT, 14),
    (binary(UNIX[:-1], family=0x31), Fault.ADDRESSES_SHORT, 14),
    (binary(INET + bytes(4096 - 16 - 12 + 1)), Fault.TOO_LONG, 14),
    (binary(b"", command=0x20, length=4081), Fault.TOO_LONG, 14),
    (binary(INET + b"\x04"), Fault.TLV, 28),
    (binary(INET + b"\x04\0"), Fault.TLV, 28),
    (binary(INET + b"\x04\0\x01"), Fault.TLV, 28),
    (binary(INET + tlv(4, b"12") + b"\x04\xff\xff"), Fault.TLV, 33),
    (binary(INET + tlv(5, b"u" * 129)), Fault.UNIQUE_ID, 28),
    (binary(INET + tlv(3, b"123")), Fault.CHECKSUM_SIZE, 28),
    (binary(INET + tlv(3, b"")), Fault.CHECKSUM_SIZE, 28),
    (binary(INET + tlv(3, bytes(4))), Fault.CHECKSUM, 28),
    (binary(UNIX + tlv(3, bytes(4)), family=0x31), Fault.CHECKSUM, 232),
]


@pytest.mark.parametrize(("data", "source", "destination"), VALID)
def test_a_valid_header(data: bytes, source: Party | None, destination: Party | None) -> None:
    found = feed(data)
    assert isinstance(found, Header)
    assert (found.length, found.source, found.destination) == (len(data), source, destination)
    assert found.version == (1 if data.startswith(b"P") else 2)
    assert feed(data + b"\x16\x03payload\r\n") == found


@pytest.mark.parametrize("data", [data for data, _, _ in VALID])
def test_at_every_split_point_it_needs_more_and_never_too_much(data: bytes) -> None:
    for part in prefixes(data):
        found = feed(part)
        assert isinstance(found, NeedMore), part
        assert len(part) < found.total <= len(data), part


@pytest.mark.parametrize(("data", "fault", "at"), INVALID)
def test_an_invalid_header(data: bytes, fault: Fault, at: int) -> None:
    assert feed(data) == Invalid(fault, at)
    for part in prefixes(data):
        found = feed(part)
        assert isinstance(found, NeedMore) or found == Invalid(fault, at)
    assert feed(data + b"\r\nPROXY UNKNOWN\r\n") == Invalid(fault, at)


def test_the_longest_line() -> None:
    assert len(LONGEST) == 104
    assert isinstance(feed(LONGEST), Header)
    assert feed(LONGER) == Invalid(Fault.LINE_TOO_LONG, 106)
    assert len(line("UNKNOWN" + " " * 92)) == 107


def test_every_bit_under_a_checksum_counts() -> None:
    header = with_checksum(INET + tlv(5, b"id"))
    assert isinstance(feed(header), Header)
    for at in {*range(16, len(header))} - {len(header) - 7}:  # which is its type: then there is no checksum
        changed = header[:at] + bytes([header[at] ^ 1]) + header[at + 1 :]
        assert isinstance(feed(changed), Invalid | NeedMore), at


def test_the_values_of_a_header() -> None:
    found = feed(binary(INET + tlv(2, b"a.example") + tlv(2, b"b.example") + tlv(0xE0, b"")))
    assert isinstance(found, Header)
    assert found.tlvs == (Tlv(2, b"a.example"), Tlv(2, b"b.example"), Tlv(0xE0, b""))
    assert found.value(AUTHORITY) == b"a.example"
    assert found.value(0xE1) == b""


@given(st.binary(max_size=300))
def test_no_bytes_are_a_traceback(data: bytes) -> None:
    for beginning in (b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21"):
        whole = feed(beginning + data)
        if isinstance(whole, Header):
            assert whole.length <= len(beginning + data)


@pytest.mark.parametrize(("data", "source"), [(binary(INET, family=0x12), CLIENT), (binary(b"", command=0x20), None)])
def test_the_header_of_a_datagram(data: bytes, source: Party | None) -> None:
    found = feed_datagram(data + b"payload")
    assert isinstance(found, Header)
    assert (found.length, found.source) == (len(data), source)
    for part in prefixes(data):
        assert isinstance(feed_datagram(part), Invalid)


@pytest.mark.parametrize("data", [line("UNKNOWN"), binary(), binary(INET, family=0x10), b"", b"question"])
def test_what_is_no_header_of_a_datagram(data: bytes) -> None:
    assert isinstance(feed_datagram(data), Invalid)


def test_the_checksum_is_that_of_the_standard() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA


hosts4 = st.ip_addresses(v=4).map(str)
hosts6 = st.ip_addresses(v=6).filter(lambda host: not host.ipv4_mapped).map(str)
ports = st.integers(0, 65535)
parties4 = st.builds(Party, hosts4, ports)
parties6 = st.builds(Party, hosts6, ports)
tlvs = st.lists(st.builds(Tlv, st.sampled_from([1, 2, 0x20, 0xE0, 0xEE]), st.binary(max_size=40)), max_size=4)


@given(st.one_of(st.tuples(parties4, parties4), st.tuples(parties6, parties6)), tlvs, st.booleans())
def test_what_is_written_is_read(ends: tuple[Party, Party], values: list[Tlv], checksum: bool) -> None:
    first, second = (Party(str(host), port) for host, port in ends)
    read = feed(proxy_writer.write_v1(first, second))
    assert isinstance(read, Header)
    assert (read.source, read.destination) == (first, second)
    read = feed(proxy_writer.write_v2(first, second, values, checksum=checksum))
    assert isinstance(read, Header)
    assert (read.source, read.destination) == (first, second)
    assert list(proxy_writer.passed_on(read.tlvs)) == values
    assert len(read.tlvs) == len(values) + checksum


@pytest.mark.parametrize(
    ("source", "destination", "text"),
    [
        (Party("::ffff:192.0.2.7", 1), Party("::ffff:192.0.2.8", 2), "TCP4 192.0.2.7 192.0.2.8 1 2"),
        (Party("::ffff:192.0.2.7", 1), Party("192.0.2.8", 2), "TCP4 192.0.2.7 192.0.2.8 1 2"),
        (Party("192.0.2.7", 1), Party("2001:db8::1", 2), "TCP6 ::ffff:192.0.2.7 2001:db8::1 1 2"),
        (Party("fe80::1%eth0", 1), Party("fe80::2%eth0", 2), "TCP6 fe80::1 fe80::2 1 2"),
    ],
)
def test_both_ends_are_of_one_family(source: Party, destination: Party, text: str) -> None:
    assert proxy_writer.write_v1(source, destination) == line(text)
    two = feed(proxy_writer.write_v2(source, destination))
    one = feed(proxy_writer.write_v1(source, destination))
    assert isinstance(one, Header)
    assert isinstance(two, Header)
    assert (one.source, one.destination) == (two.source, two.destination)


def test_a_client_that_is_not_known() -> None:
    assert proxy_writer.write_v1(None, SERVER) == b"PROXY UNKNOWN\r\n"
    local = proxy_writer.write_v2(None, SERVER, [Tlv(2, b"a")], checksum=True)
    assert local == SIGNATURE + b"\x20\0\0\0"
    assert feed(local) == Header(16, 2)


def test_values_that_do_not_fit_are_left_out() -> None:
    written = proxy_writer.write_v2(CLIENT, SERVER, [Tlv(0xE0, bytes(4000)), Tlv(0xE1, bytes(100))], checksum=True)
    read = feed(written)
    assert isinstance(read, Header)
    assert [value.type for value in read.tlvs] == [0xE0, 3]


def test_datagrams_are_marked() -> None:
    assert isinstance(feed_datagram(proxy_writer.write_v2(CLIENT6, SERVER6, datagram=True)), Header)
