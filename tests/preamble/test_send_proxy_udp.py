"""A UDP server is told who the client is, in both lanes: `send-proxy` between datagrams, and `send-proxy-udp`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oinetd import SessionRecord
from oinetd.lanes.native.plane import available
from oinetd.net.datagrams import HEADED_BYTES_MAX
from oinetd.preamble.proxy_protocol import CRC32C, UNIQUE_ID, Header, Party, feed_datagram
from oinetd.preamble.unique_id import unique_id
from tests.peers import pattern, until
from tests.preamble.lanes import in_lanes, lane_options
from tests.udp.rig import Party as Peer
from tests.udp.rig import Served, serving

native = pytest.mark.skipif(bool(available()), reason="the extension is not built")

HEADER_BYTES = 28
"""With IPv4 addresses and no TLV."""


async def anybody(record: SessionRecord) -> bool:
    return True


def in_lane(lane: str, rule: str, options: str = "send-proxy=v2", behind: str = "") -> Served:
    """A forwarder; with an `admit` hook the first datagrams are held until it has answered."""
    admit: Callable[[SessionRecord], Awaitable[bool]] | None = anybody if lane == "handed-over" else None
    return Served(f"{rule} [{lane_options(lane)}, {options}]\n{behind}\n", admit=admit)


def parted(data: bytes) -> tuple[Header | None, bytes]:
    """The header of a datagram, and its payload."""
    found = feed_datagram(data)
    return (found, data[found.length :]) if isinstance(found, Header) else (None, data)


async def headed(server: Peer) -> tuple[Header, bytes, tuple[str, int]]:
    data, address = await server.receive()
    header, payload = parted(data)
    assert header is not None, data[:64]
    return header, payload, address


@contextlib.contextmanager
def pair(host: str = "127.0.0.1") -> Iterator[tuple[Peer, Peer]]:
    """A server and a client."""
    with Peer() as server, Peer(host) as client:
        yield server, client


@in_lanes
async def test_every_datagram_has_the_header_and_no_answer_has(lane: str) -> None:
    with pair() as (server, client):
        served = in_lane(lane, f"127.0.0.1 0/udp 127.0.0.1 {server.address[1]}/udp")
        async with served.forwarder:
            for data in (b"one", b"", b"three"):
                client.send(data, served.address)
                header, payload, back = await headed(server)
                assert (header.source, header.destination) == (Party(*client.address), Party(*served.address))
                assert payload == data
                server.send(b"answer to " + data, back)
                assert await client.receive() == (b"answer to " + data, served.address)
            (record,) = served.forwarder.sessions()
            assert (record.bytes_up, record.bytes_down, record.datagrams_up) == (8, 8 + 3 * 10, 3)
            assert served.forwarder.stats().bytes_up == 8


@in_lanes
async def test_only_the_first_datagram_of_a_session_has_it(lane: str) -> None:
    with pair() as (server, client), Peer() as other:
        served = in_lane(
            lane, f"127.0.0.1 0/udp 127.0.0.1 {server.address[1]}/udp", "send-proxy=v2, send-proxy-udp=first"
        )
        async with served.forwarder:
            for data in (b"one", b"two", b"three"):
                client.send(data, served.address)
            assert (await headed(server))[1] == b"one"
            assert [(await server.receive())[0] for _ in range(2)] == [b"two", b"three"]
            client.send(b"four", served.address)
            assert (await server.receive())[0] == b"four"
            other.send(b"another session", served.address)
            header, payload, _ = await headed(server)
            assert (header.source, payload) == (Party(*other.address), b"another session")


@in_lanes
async def test_what_does_not_fit_behind_the_header_is_lost_and_counted(lane: str) -> None:
    most = HEADED_BYTES_MAX - HEADER_BYTES
    with pair() as (server, client):
        served = in_lane(lane, f"127.0.0.1 0/udp 127.0.0.1 {server.address[1]}/udp")
        async with served.forwarder:
            client.send(b"first", served.address)
            assert (await headed(server))[1] == b"first"
            for size in (most + 1, HEADED_BYTES_MAX, most):
                client.send(pattern(size), served.address)
            assert (await headed(server))[1] == pattern(most)
            await until(lambda: served.forwarder.stats().datagrams_lost == 2)
            (record,) = served.forwarder.sessions()
            assert (record.datagrams_up, record.datagrams_lost, record.bytes_up) == (2, 2, 5 + most)


@in_lanes
@pytest.mark.parametrize("size", [100, 1472, 4000])
async def test_each_segment_of_a_train_has_its_header(lane: str, size: int) -> None:
    """A train that is too long with its headers leaves as several."""
    count = min(60000 // size, 60)
    data = [pattern(size, number) for number in range(count - 1)] + [pattern(size // 2)]
    with pair() as (server, client):
        served = in_lane(lane, f"127.0.0.1 0/udp 127.0.0.1 {server.address[1]}/udp")
        async with served.forwarder:
            client.send(b"first", served.address)
            assert (await headed(server))[1] == b"first"
            segment = (socket.IPPROTO_UDP, 103, size.to_bytes(2, "little"))  # UDP_SEGMENT
            client.sock.sendmsg([b"".join(data)], [segment], 0, served.address)
            found = [await headed(server) for _ in data]
            assert [payload for _, payload, _ in found] == data
            assert {header.source for header, _, _ in found} == {Party(*client.address)}


@in_lanes
async def test_tlvs_and_the_address_that_was_written_to(lane: str) -> None:
    """An IPv4 client of an IPv6 socket for all addresses is an IPv4 client."""
    for host, ours in (("127.0.0.1", "127.0.0.2"), ("::1", "::1")):
        with pair(host) as (server, client):
            served = in_lane(
                lane,
                f":: 0/udp 127.0.0.1 {server.address[1]}/udp",
                "send-proxy=v2, proxy-tlv=crc32c+unique-id",
            )
            async with served.forwarder:
                client.send(b"x", (ours, served.port))
                header, payload, _ = await headed(server)
                assert (header.source, header.destination) == (Party(*client.address), Party(ours, served.port))
                (record,) = served.forwarder.sessions()
                assert (header.value(UNIQUE_ID), payload) == (unique_id(record.id), b"x")
                assert len(header.value(CRC32C)) == 4


@in_lanes
async def test_a_server_of_a_group_has_its_own_word(lane: str) -> None:
    with pair() as (server, client):
        text = f"engine {lane_options(lane).partition('=')[2]}\nupstream dns 127.0.0.1 {server.address[1]}/udp"
        text += " [send-proxy=v2]\n127.0.0.1 0/udp @dns\n"
        async with serving(text) as served:
            client.send(b"x", served.address)
            header, payload, _ = await headed(server)
            assert (header.source, payload) == (Party(*client.address), b"x")


scripts = st.lists(
    st.tuples(st.integers(0, 2), st.one_of(st.sampled_from([0, 1, 1400, 65479, 65480, 65507]), st.integers(0, 3000))),
    min_size=1,
    max_size=12,
)


async def story(engine: str, first: bool, script: list[tuple[int, int]]) -> list[Any]:
    """What a server gets of clients that write these datagrams, and what is counted."""
    found: list[Any] = []
    options = f"engine={engine}, send-proxy=v2, send-proxy-udp={'first' if first else 'every'}"
    with Peer() as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Peer()) for _ in range(3)]
        async with serving(f"127.0.0.1 0/udp 127.0.0.1 {server.address[1]}/udp [{options}]\n") as served:
            names = {client.address: number for number, client in enumerate(clients)}
            for number, (which, size) in enumerate(script):
                clients[which].send(pattern(size, number), served.address)
            for client in clients:
                client.send(b"last", served.address)
            ends = 0
            while ends < len(clients):
                header, payload = parted((await server.receive())[0])
                source = None if header is None or header.source is None else header.source
                found.append((source and names[source.host, source.port], len(payload), payload[:16]))
                ends += payload == b"last"
            sessions = served.forwarder.sessions()
            counts = [(each.datagrams_up, each.bytes_up, each.datagrams_lost) for each in sessions]
            return [sorted(found, key=repr), sorted(counts)]


@native
@settings(deadline=None, max_examples=25, derandomize=not os.environ.get("SOAK_SECONDS"))
@given(st.booleans(), scripts)
def test_the_lanes_send_the_same(first: bool, script: list[tuple[int, int]]) -> None:
    assert asyncio.run(story("native", first, script)) == asyncio.run(story("python", first, script))
