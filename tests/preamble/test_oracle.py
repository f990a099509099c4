"""The package proxy-protocol, another implementation, reads what is written and writes what is read."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from socket import SOCK_STREAM

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oinetd.preamble import proxy_writer
from oinetd.preamble.proxy_protocol import AUTHORITY, UNIQUE_ID, Header, Party, Tlv, feed
from tests.preamble.test_proxy_protocol import parties4, parties6

pytest.importorskip("proxyprotocol", reason="the package proxy-protocol is missing")

from proxyprotocol.detect import ProxyProtocolDetect
from proxyprotocol.result import ProxyResult, ProxyResultIPv4, ProxyResultIPv6
from proxyprotocol.tlv import ProxyProtocolTLV, Type
from proxyprotocol.v1 import ProxyProtocolV1
from proxyprotocol.v2 import ProxyProtocolV2

ends = st.one_of(st.tuples(parties4, parties4), st.tuples(parties6, parties6))


@given(ends, st.booleans(), st.binary(max_size=128))
def test_it_reads_what_is_written(pair: tuple[Party, Party], checksum: bool, unique: bytes) -> None:
    source, destination = pair
    values = [Tlv(UNIQUE_ID, unique), Tlv(AUTHORITY, b"a.example.org")]
    for written in (
        proxy_writer.write_v1(source, destination),
        proxy_writer.write_v2(source, destination, values, checksum=checksum),
    ):
        read = ProxyProtocolDetect().unpack(written)
        assert (str(read.source[0]), read.source[1]) == source  # type: ignore[index]
        assert (str(read.dest[0]), read.dest[1]) == destination  # type: ignore[index]
    assert read.tlv.unique_id == unique
    assert read.tlv.authority == "a.example.org"


@given(ends, st.booleans())
def test_what_it_writes_is_read(pair: tuple[Party, Party], second: bool) -> None:
    source, destination = pair
    values = ProxyProtocolTLV(init={Type.PP2_TYPE_AUTHORITY: b"a.example"})
    result: ProxyResult
    if ":" in source.host:
        result = ProxyResultIPv6(
            (IPv6Address(source.host), source.port),
            (IPv6Address(destination.host), destination.port),
            protocol=SOCK_STREAM,
            tlv=values,
        )
    else:
        result = ProxyResultIPv4(
            (IPv4Address(source.host), source.port),
            (IPv4Address(destination.host), destination.port),
            protocol=SOCK_STREAM,
            tlv=values,
        )
    found = feed((ProxyProtocolV2() if second else ProxyProtocolV1()).pack(result))
    assert isinstance(found, Header)
    assert (found.source, found.destination) == (source, destination)
    assert found.value(AUTHORITY) == (b"a.example" if second else b"")


def test_both_say_that_a_client_is_not_known() -> None:
    for written in (proxy_writer.write_v1(None, None), proxy_writer.write_v2(None, None)):
        assert ProxyProtocolDetect().unpack(written).source is None
