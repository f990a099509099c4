"""Over UDP the client is the one in the PROXY header of each datagram: `accept-proxy`, in both lanes, with chains."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oinetd import Ending
from oinetd.config import ConfigError, parse_config
from oinetd.lanes.native.plane import Hub, available, compile_policy, new_gate
from oinetd.lanes.python.udp.departure import header_in
from oinetd.model import Settings
from oinetd.net.datagrams import HEADED_BYTES_MAX
from oinetd.preamble.proxy_protocol import AUTHORITY, CRC32C, NOOP, UNIQUE_ID, Header, Party, Tlv, feed_datagram
from oinetd.preamble.proxy_writer import write_v1, write_v2
from oinetd.upstream import silence
from tests.peers import free_port, pattern, until
from tests.preamble.lanes import in_lanes
from tests.preamble.test_send_proxy_udp import HEADER_BYTES, headed, in_lane, native, parted
from tests.udp.rig import Party as Peer
from tests.udp.rig import Served, echo, serving

CLIENT, REACHED = Party("192.0.2.7", 40000), Party("198.51.100.9", 53)
OTHER = Party("192.0.2.8", 40000)
LOCAL = write_v2(None, None)


def head(client: Party = CLIENT, *tlvs: Tlv, checksum: bool = False) -> bytes:
    """A valid header of a datagram."""
    return write_v2(client, REACHED, tlvs, checksum=checksum, datagram=True)


@contextlib.asynccontextmanager
async def accepting(
    lane: str, to: Peer, options: str = "accept-proxy", behind: str = "trust 127.0.0.1"
) -> AsyncIterator[Served]:
    """A forwarder that reads the headers of what it gets for `to`."""
    served = in_lane(lane, f"127.0.0.1 0/udp 127.0.0.1 {to.address[1]}/udp", options, behind)
    async with served.forwarder:
        yield served


@contextlib.contextmanager
def parties() -> Iterator[tuple[Peer, Peer]]:
    """A server that echoes, and a proxy."""
    with echo() as server, Peer() as proxy:
        yield server, proxy


@in_lanes
async def test_the_client_is_the_one_in_the_header(lane: str) -> None:
    """Answers have no header, and the bytes of headers are in no count."""
    with parties() as (server, proxy):
        async with accepting(lane, server) as served:
            for data in (b"one", b"", b"three"):
                assert await proxy.ask(head() + data, served.address) == data
            (live,) = served.forwarder.sessions()
            assert (live.client, live.client_port) == CLIENT
            assert (live.peer, live.peer_port) == proxy.address
            assert (live.datagrams_up, live.datagrams_down, live.bytes_up, live.bytes_down) == (3, 3, 8, 8)


@in_lanes
async def test_each_client_of_a_proxy_has_a_session(lane: str) -> None:
    """One socket of the proxy carries many clients; each has its own address towards the server."""
    with Peer() as server, Peer() as proxy:
        async with accepting(lane, server) as served:
            for client in (CLIENT, OTHER, CLIENT):
                proxy.send(head(client) + client.host.encode(), served.address)
            seen = [await server.receive() for _ in range(3)]
            by_client = {data: {back for each, back in seen if each == data} for data, _ in seen}
            assert [len(back) for back in by_client.values()] == [1, 1]
            assert len(set.union(*by_client.values())) == 2
            assert sorted(each.client for each in served.forwarder.sessions()) == [CLIENT.host, OTHER.host]


@in_lanes
@pytest.mark.parametrize(
    "unnamed", [LOCAL, b"\r\n\r\n\0\r\nQUIT\n\x21\x02\0\0", b"\r\n\r\n\0\r\nQUIT\n\x20\x11\0\x02ab"]
)
async def test_a_header_without_addresses_leaves_the_peer_as_the_client(lane: str, unnamed: bytes) -> None:
    with parties() as (server, proxy):
        async with accepting(lane, server) as served:
            assert await proxy.ask(unnamed + b"check", served.address) == b"check"
            (live,) = served.forwarder.sessions()
            assert (live.client, live.client_port) == proxy.address


@in_lanes
async def test_invalid_datagrams_are_lost_counted_and_said_once(lane: str, caplog: pytest.LogCaptureFixture) -> None:
    """No byte of them reaches the server, however much of the header is there."""
    whole = head(CLIENT, Tlv(UNIQUE_ID, b"id"), checksum=True)
    broken = bytes((whole[-1] ^ 1,))
    invalid = [
        *(whole[:size] for size in range(len(whole))),
        whole[:-1] + broken + b"payload",
        write_v1(CLIENT, REACHED) + b"payload",
        write_v2(CLIENT, REACHED) + b"payload",  # of a stream
        b"payload",
    ]
    caplog.set_level(logging.WARNING)
    with parties() as (server, proxy):
        async with accepting(lane, server) as served:
            for datagram in invalid:
                proxy.send(datagram, served.address)
            assert await proxy.ask(whole + b"valid", served.address) == b"valid"
            await until(lambda: served.forwarder.stats().datagrams_lost == len(invalid))
            await served.has_told(closed=1)
            assert [record.ending for record in served.closed] == [Ending.BAD_PROXY_HEADER]
            assert served.closed[0].client == "127.0.0.1"
    (said,) = [record.getMessage() for record in caplog.records if "invalid PROXY header" in record.getMessage()]
    wrong = "at byte 0: not a version 2 header for a datagram"
    assert said.endswith(f"an invalid PROXY header from 127.0.0.1, {wrong}; the datagram is dropped")


@in_lanes
async def test_others_are_refused_or_plain_clients(lane: str) -> None:
    """With `optional`, what a peer that is not trusted writes is payload, even if it looks like a header."""
    with echo() as server, Peer("127.0.0.2") as stranger, Peer() as proxy:
        async with accepting(lane, server) as served:
            for _ in range(3):
                stranger.send(head() + b"x", served.address)
            await until(lambda: served.forwarder.stats().datagrams_lost == 3)
            await served.has_told(closed=1)
            assert [(each.ending, each.client) for each in served.closed] == [(Ending.NOT_TRUSTED, "127.0.0.2")]
        async with accepting(lane, server, "accept-proxy=optional") as served:
            assert await stranger.ask(head() + b"x", served.address) == head() + b"x"
            assert await proxy.ask(head() + b"x", served.address) == b"x"
            assert {each.client for each in served.forwarder.sessions()} == {"127.0.0.2", CLIENT.host}


@in_lanes
async def test_access_and_limits_judge_the_client_and_a_deny_for_all_the_peer(lane: str) -> None:
    behind = f"trust 127.0.0.0/8\nallow 192.0.2.0/24\ndeny {OTHER.host}"
    with parties() as (server, proxy):
        async with accepting(lane, server, "accept-proxy, max-connections-per-source=1", behind) as served:
            proxy.send(head(OTHER) + b"x", served.address)
            proxy.send(LOCAL + b"x", served.address)
            await served.has_told(closed=2)
            assert [each.ending for each in served.closed] == [Ending.DENIED, Ending.NOT_ALLOWED]
            assert await proxy.ask(head() + b"x", served.address) == b"x"
            proxy.send(head(Party(CLIENT.host, 5)) + b"x", served.address)
            await served.has_told(closed=3)
            assert (served.closed[2].ending, served.closed[2].client) == (Ending.LIMITED, CLIENT.host)
    with echo() as server, Peer("127.0.0.3") as denied:
        rule = f"127.0.0.1 0/udp 127.0.0.1 {server.address[1]}/udp"
        served = in_lane(lane, f"deny 127.0.0.3\n{rule}", "accept-proxy", "trust 127.0.0.0/8")
        async with served.forwarder:
            denied.send(head() + b"x", served.address)
            await served.has_told(closed=1)
            assert (served.closed[0].ending, served.closed[0].client) == (Ending.DENIED, "127.0.0.3")


@in_lanes
async def test_a_chain_hands_on_what_the_header_says(lane: str) -> None:
    """Addresses and TLVs follow the header of each datagram, also when it changes within a session."""
    accepted = head(CLIENT, Tlv(NOOP, b"fill"), Tlv(AUTHORITY, b"a.example"), checksum=True)
    options = "accept-proxy, send-proxy=v2, proxy-tlv=crc32c+pass"
    with Peer() as server, Peer() as proxy:
        async with accepting(lane, server, options) as served:
            for incoming, expected in ((accepted, b"a.example"), (head(), b""), (accepted, b"a.example")):
                proxy.send(incoming + b"x", served.address)
                header, payload, _ = await headed(server)
                assert (header.source, header.destination, payload) == (CLIENT, REACHED, b"x")
                assert (header.value(AUTHORITY), header.value(NOOP)) == (expected, b"")
                assert len(header.value(CRC32C)) == 4
            assert len(served.forwarder.sessions()) == 1
            proxy.send(LOCAL + b"y", served.address)
            header, payload, _ = await headed(server)
            assert (header.source, payload) == (None, b"y")


@in_lanes
async def test_a_longer_header_may_leave_no_room(lane: str) -> None:
    most = HEADED_BYTES_MAX - HEADER_BYTES
    with Peer() as server, Peer() as proxy:
        async with accepting(lane, server, "accept-proxy, send-proxy=v2, proxy-tlv=crc32c") as served:
            proxy.send(head() + pattern(most - 6), served.address)
            proxy.send(head() + pattern(most - 7), served.address)
            assert (await headed(server))[1] == pattern(most - 7)
            await until(lambda: served.forwarder.stats().datagrams_lost == 1)


def train(proxy: Peer, datagrams: list[bytes], to: tuple[str, int]) -> None:
    """Send datagrams of one size, of which the last may be shorter, as one (UDP GSO)."""
    segment = (socket.IPPROTO_UDP, 103, len(datagrams[0]).to_bytes(2, "little"))  # UDP_SEGMENT
    proxy.sock.sendmsg([b"".join(datagrams)], [segment], 0, to)


@in_lanes
async def test_each_segment_of_a_train_has_its_header(lane: str) -> None:
    data = [head(CLIENT if number % 2 else OTHER) + pattern(100, number) for number in range(20)]
    with Peer() as server, Peer() as proxy:
        async with accepting(lane, server) as served:
            train(proxy, data, served.address)
            found = [(await server.receive())[0] for _ in data]
            assert sorted(found) == sorted(each[HEADER_BYTES:] for each in data)
            await until(lambda: {each.datagrams_up for each in served.forwarder.sessions()} == {10})


@in_lanes
async def test_invalid_segments_of_a_train_are_lost_alone(lane: str) -> None:
    """The others go on, in their order, and each with the header that the server expects."""
    valid = [head() + pattern(100, number) for number in range(12)]
    for number in (0, 5, 6, 11):
        valid[number] = bytes(1) + valid[number][1:]
    with Peer() as server, Peer() as proxy:
        async with accepting(lane, server, "accept-proxy, send-proxy=v2") as served:
            train(proxy, valid, served.address)
            found = [await headed(server) for _ in range(8)]
            assert [payload for _, payload, _ in found] == [each[HEADER_BYTES:] for each in valid if each[0]]
            assert {header.source for header, _, _ in found} == {CLIENT}
            await until(lambda: served.forwarder.stats().datagrams_lost == 4)
            await served.has_told(closed=1)
            assert [record.ending for record in served.closed] == [Ending.BAD_PROXY_HEADER]


@in_lanes
async def test_only_the_first_datagram_of_a_client_has_a_header_for_the_server(lane: str) -> None:
    with Peer() as server, Peer() as proxy:
        async with accepting(lane, server, "accept-proxy, send-proxy=v2, send-proxy-udp=first") as served:
            for client in (CLIENT, OTHER):
                proxy.send(head(client) + b"one", served.address)
                header, payload, _ = await headed(server)
                assert (header.source, payload) == (client, b"one")
                proxy.send(head(client, Tlv(AUTHORITY, b"a.example")) + b"two", served.address)
                assert (await server.receive())[0] == b"two"


@in_lanes
@pytest.mark.parametrize("size", [0, 60, 4000])
async def test_long_headers_are_handed_on(lane: str, size: int) -> None:
    """An IPv6 client, with a mapped address beside it, TLVs up to the longest header, and a unique ID of the peer."""
    client, reached = Party("2001:db8::7", 0xFFFF), Party("::ffff:198.51.100.9", 53)
    tlvs = [Tlv(0xE0, bytes(size)), Tlv(UNIQUE_ID, b"id")]
    with Peer() as server, Peer() as proxy:
        options = "accept-proxy, send-proxy=v2, proxy-tlv=pass+unique-id+crc32c"
        async with accepting(lane, server, options) as served:
            proxy.send(write_v2(client, reached, tlvs, datagram=True) + b"x", served.address)
            header, payload, _ = await headed(server)
            assert (header.source, header.destination, payload) == (client, reached, b"x")
            assert (header.value(0xE0), header.value(UNIQUE_ID)) == (bytes(size), b"id")
            assert served.forwarder.sessions()[0].client == client.host


@in_lanes
async def test_a_client_of_a_header_is_not_the_peer_itself(lane: str) -> None:
    """A plain client and headed ones of the same socket are apart over a reload; answers of each go to the peer."""
    with parties() as (server, proxy):
        rule, options = f"127.0.0.1 {free_port()}/udp 127.0.0.1 {server.address[1]}/udp", "accept-proxy=optional"
        served = in_lane(lane, rule, options, "trust 127.0.0.2")
        async with served.forwarder:
            assert await proxy.ask(b"plain", served.address) == b"plain"
            for accepts, trusted in (("accept-proxy", "127.0.0.1"), ("accept-proxy", "127.0.0.2"), ("timeout=60", "")):
                changed = in_lane(lane, rule, accepts, f"trust {trusted}" if trusted else "")
                await served.forwarder.reload(changed.forwarder.config)
                data = head(Party(*proxy.address)) + b"x"
                assert await proxy.ask(data, served.address) == (b"x" if trusted == "127.0.0.1" else data)
            assert sorted(each.datagrams_up for each in served.forwarder.sessions()) == [1, 3]
            assert [each.peer for each in served.forwarder.sessions()] == ["", "127.0.0.1"]


@in_lanes
async def test_a_client_whose_server_is_silent_keeps_its_header(lane: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on to another server, and its other clients do so by themselves."""
    monkeypatch.setattr(silence, "SILENCE_S", 0.02)
    with Peer() as first, Peer() as second, Peer() as proxy:
        servers = "".join(f"upstream dns 127.0.0.1 {each.address[1]}/udp\n" for each in (first, second))
        rule = f"{servers}upstream dns [balance=first]\n127.0.0.1 0/udp @dns"
        served = in_lane(lane, rule, "accept-proxy, send-proxy=v2", "trust 127.0.0.1")
        seen = set()

        def asked() -> bool:
            for client in (CLIENT, OTHER):
                proxy.send(head(client) + b"?", served.address)
            for server in (first, second):
                for header, payload in map(parted, server.pending()):
                    assert header is not None
                    assert (header.destination, payload) == (REACHED, b"?")
                    seen.add((server, header.source))
            return len(seen) == 4

        async with served.forwarder:
            await until(asked)
            await served.has_told(closed=2)
            ends = {(each.ending, each.client, each.peer) for each in served.closed}
            assert ends == {(Ending.UPSTREAM_SILENT, each.host, "127.0.0.1") for each in (CLIENT, OTHER)}


@in_lanes
async def test_datagrams_behind_a_header_are_within_the_bandwidth_of_the_client(lane: str) -> None:
    """Headers are in no count: the excess is lost, and each client has its own."""
    with Peer() as server, Peer() as proxy:
        async with accepting(lane, server, "accept-proxy, bandwidth=1000") as served:
            for client in (CLIENT, OTHER):
                for number in range(3):
                    proxy.send(head(client) + pattern(600, number), served.address)
            await until(lambda: sum(each.datagrams_up for each in served.forwarder.sessions()) >= 2)
            await until(lambda: served.forwarder.stats().datagrams_lost + served.forwarder.stats().datagrams_up == 6)
            assert len({each.datagrams_up for each in served.forwarder.sessions()}) == 1


@in_lanes
async def test_a_lingering_listener_serves_its_headed_clients_only(lane: str) -> None:
    with parties() as (server, proxy):
        rule = f"127.0.0.1 0/udp 127.0.0.1 {server.address[1]}/udp"
        served = in_lane(lane, rule, "accept-proxy", "trust 127.0.0.1")
        async with served.forwarder:
            address = served.address
            assert await proxy.ask(head() + b"x", address) == b"x"
            await served.forwarder.reload(parse_config(""))
            proxy.send(head(OTHER) + b"new", address)
            proxy.send(b"invalid", address)
            assert await proxy.ask(head() + b"y", address) == b"y"
            assert [each.client for each in served.forwarder.sessions()] == [CLIENT.host]
            assert not served.closed


async def test_a_client_of_a_tcp_server_is_the_one_in_the_header() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"got " + await reader.read(100))
        await reader.read()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, serving(f"127.0.0.1 0/udp 127.0.0.1 {port} [accept-proxy]\ntrust 127.0.0.1\n") as served:
        with Peer() as proxy:
            assert await proxy.ask(head() + b"x", served.address) == b"got x"
            (live,) = served.forwarder.sessions()
            assert (live.client, live.client_port) == CLIENT


@pytest.mark.parametrize("engine", ["native", "python"])
async def test_a_reload_revokes_by_client_and_by_peer(engine: str) -> None:
    if engine == "native" and (reason := available()):
        pytest.skip(reason)
    with parties() as (server, proxy):
        lines = f"127.0.0.1 0/udp 127.0.0.1 {server.address[1]}/udp [accept-proxy, engine={engine}]\ntrust 127.0.0.1\n"
        async with serving(lines) as served:
            for client in (CLIENT, OTHER):
                assert await proxy.ask(head(client) + b"x", served.address) == b"x"
            await served.forwarder.reload(parse_config(f"{lines}deny {OTHER.host}\n"))
            await served.has_told(closed=1)
            assert (served.closed[0].client, served.closed[0].ending) == (OTHER.host, Ending.REVOKED)
            assert await proxy.ask(head() + b"x", served.address) == b"x"
            await served.forwarder.reload(parse_config(f"deny 127.0.0.1\n{lines}"))
            await served.has_told(closed=2)
            assert (served.closed[1].client, served.closed[1].ending) == (CLIENT.host, Ending.REVOKED)
            assert [each.peer for each in served.closed] == ["127.0.0.1", "127.0.0.1"]
            assert [each.engine for each in served.closed] == [engine, engine]


@native
async def test_a_state_that_is_none_of_a_headed_session_is_refused() -> None:
    """Another process says which header a session's peer wrote last; it is read as if the peer had sent it."""
    hub = Hub(asyncio.get_running_loop())
    try:
        policy = compile_policy(1, new_gate(), Settings(), addresses=(("127.0.0.1", 9),))
        with Peer() as sock:
            sock.sock.connect(("127.0.0.1", 9))
            state: dict[str, Any] = {
                "id": 1, "started": 1.0, "started_us": 1, "last_ms": 1, "asked_ms": 0, "answered": True, "rounds": 0,
                "errno": 0, "counts": [0] * 5,
                "key": (socket.AF_INET.to_bytes(2, "little") + bytes(26) + b"\x10" + bytes(27)).hex(),
            }  # fmt: skip
            for wrong in (b"\0", head()[:-1], head() + b"x", write_v2(CLIENT, REACHED), write_v1(CLIENT, REACHED)):
                with pytest.raises(ValueError, match="not a header"):
                    hub.adopt_udp_session(policy, {**state, "header": wrong.hex()}, sock.sock.fileno())
            for header in (head(CLIENT, Tlv(AUTHORITY, b"a.example")), LOCAL, b""):
                passport = hub.adopt_udp_session(policy, {**state, "header": header.hex()}, os.dup(sock.sock.fileno()))
                assert passport is not None
                assert passport.state()["header"] == header.hex()
                assert passport.state()["client"] == [*(("0.0.0.0", 0) if header in (LOCAL, b"") else CLIENT)]
                passport.release()
    finally:
        await hub.close()


def test_a_header_goes_to_another_process_with_its_session() -> None:
    header = feed_datagram(head(CLIENT, Tlv(AUTHORITY, b"a.example")))
    assert isinstance(header, Header)
    assert header_in({"header": head(CLIENT, Tlv(AUTHORITY, b"a.example")).hex()}) == header
    assert header_in({}) is None
    with pytest.raises(ValueError, match="not a header"):
        header_in({"header": "00"})


DNSDIST = """
setLocal("127.0.0.1:{bind}")
setACL({{"192.0.2.0/24", "127.0.0.0/8"}})
setProxyProtocolACL({{"127.0.0.1/32"}})
newServer({{address="127.0.0.1:{to}", useProxyProtocol=true}})
getServer(0):setUp()
"""
QUERY = bytes.fromhex("1234010000010000000000000161076578616d706c6500000100 01".replace(" ", ""))
ANSWER = QUERY[:2] + b"\x81\x80" + QUERY[4:]


@in_lanes
async def test_dnsdist_takes_our_headers_and_we_take_its(lane: str, tmp_path: Path) -> None:
    """From a client through us, dnsdist and us again to a server: everybody knows the client."""
    if (program := shutil.which("dnsdist")) is None:
        pytest.skip("dnsdist is missing")
    port = free_port()
    with Peer() as server, Peer() as client:
        behind = in_lane(
            lane, f"127.0.0.1 0/udp 127.0.0.1 {server.address[1]}/udp", "accept-proxy, send-proxy=v2", "trust 127.0.0.1"
        )
        async with behind.forwarder:
            script = tmp_path / "dnsdist.conf"
            script.write_text(DNSDIST.format(bind=port, to=behind.port))
            process = await asyncio.create_subprocess_exec(
                program, "--supervised", "-C", str(script), stdin=asyncio.subprocess.DEVNULL, stdout=-3, stderr=-3
            )
            try:
                await until(lambda: f":{port:04X} " in Path("/proc/self/net/udp").read_text(), "dnsdist")
                before = in_lane(lane, f"127.0.0.1 0/udp 127.0.0.1 {port}/udp")
                async with before.forwarder:
                    client.send(QUERY, before.address)
                    header, payload, back = await headed(server)
                    assert (header.source, payload[2:]) == (Party(*client.address), QUERY[2:])
                    assert header.destination == Party(*before.address)
                    server.send(payload[:2] + ANSWER[2:], back)
                    assert await client.receive() == (ANSWER, before.address)
                    assert behind.forwarder.sessions()[0].client == client.address[0]
            finally:
                process.terminate()
                await process.wait()


def test_headers_over_udp_are_believed_with_a_warning() -> None:
    """An address is easily forged, but for those of this machine, and those of one interface."""
    rule = "0.0.0.0 53/udp 10.0.0.1 53/udp [accept-proxy{}]\n"
    warned = parse_config(rule.format("") + "trust 10.0.0.0/8\n").warnings
    assert ["anybody who can send" in str(each) for each in warned] == [True]
    for loopback, silent in (("127.*", True), ("127.0.0.0/8", True), ("127.0.0.0/1", False)):
        assert (not parse_config(rule.format("") + f"trust {loopback}\n").warnings) is silent
    assert not parse_config(rule.format("") + "trust 127.0.0.1\ntrust ::1\n").warnings
    assert not parse_config(rule.format(", interface=lo") + "trust 10.0.0.0/8\n").warnings
    with pytest.raises(ConfigError, match="accept-proxy without trust"):
        parse_config(rule.format(""))


PROXIES = ("127.0.0.1", "127.0.0.1", "127.0.0.2", "127.0.0.3")
"""Peers: two trusted ones of one address, another trusted one, and one that is not."""
CLIENTS = (Party("192.0.2.7", 40000), Party("192.0.2.7", 40001), Party("2001:db8::7", 40000), Party("192.0.2.9", 1))
"""The last one is denied."""
LAST = Party("192.0.2.200", 1)
"""The client that ends a story."""

datagrams = st.tuples(
    st.sampled_from(["valid", "valid", "tlv", "local", "stream", "cut", "plain"]),
    st.integers(0, len(CLIENTS) - 1),
    st.integers(0, 2000),
)
scripts = st.lists(
    st.tuples(st.integers(0, len(PROXIES) - 1), st.booleans(), st.lists(datagrams, min_size=1, max_size=6)),
    min_size=1,
    max_size=8,
)


def written(kind: str, client: Party, payload: bytes) -> bytes:
    """A datagram of a proxy, valid or not."""
    if kind == "plain":
        return payload
    if kind == "local":
        return LOCAL + payload
    if kind == "stream":
        return write_v2(client, REACHED) + payload
    whole = head(client, *((Tlv(AUTHORITY, b"a.example"),) if kind == "tlv" else ()), checksum=kind == "tlv")
    return whole[:-3] if kind == "cut" else whole + payload


async def story(engine: str, accepts: str, sends: str, script: list[tuple[int, bool, Any]]) -> list[Any]:
    """What a server gets of clients behind these proxies, what is told of them, and what is counted."""
    options = f"engine={engine}, accept-proxy={accepts}, {sends}max-connections-per-source=2"
    behind = f"trust 127.0.0.1\ntrust 127.0.0.2\ndeny {CLIENTS[-1].host}\n"
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Peer())
        proxies = [stack.enter_context(Peer(host)) for host in PROXIES]
        names = {proxy.address: f"proxy {number}" for number, proxy in enumerate(proxies)}
        names |= {tuple(client): f"client {number}" for number, client in enumerate(CLIENTS)}
        text = f"127.0.0.1 0/udp 127.0.0.1 {server.address[1]}/udp [{options}]\n{behind}"
        async with serving(text) as served:
            sent = 0

            def settled() -> bool:
                stats = served.forwarder.stats()
                return stats.datagrams_up + stats.datagrams_lost == sent

            for which, as_train, parts in script:
                data = [
                    written(kind, CLIENTS[client], pattern(size, number))
                    for number, (kind, client, size) in enumerate(parts)
                ]
                if as_train:
                    sizes = [len(each) for each in data]
                    data = [each[: sizes[0]].ljust(sizes[0], b"+") for each in data if sizes[0]] or [b""]
                    train(proxies[which], data, served.address)
                else:
                    for each in data:
                        proxies[which].send(each, served.address)
                sent += len(data)
                await until(settled, "every datagram passed or lost")
            proxies[0].send(head(LAST) + b"last", served.address)
            await until(lambda: served.opened and served.opened[-1].client == LAST.host, "what was told before it")
            sent += 1
            await until(settled)
            sessions, stats = served.forwarder.sessions(), served.forwarder.stats()
            got = []
            for _ in range(stats.datagrams_up):
                header, payload = parted((await server.receive())[0])
                source = header and header.source and names.get(header.source, header.source)
                got.append((source, header and (header.destination == REACHED, header.value(AUTHORITY)), payload))
            told = [
                (names.get((each.client, each.client_port), each.client), each.ending and each.ending.value,
                 names.get((each.peer, each.peer_port), each.peer), each.datagrams_up, each.bytes_up,
                 each.datagrams_lost)
                for each in (*sessions, *served.closed)
            ]  # fmt: skip
    return [sorted(got, key=repr), sorted(told, key=repr), stats.datagrams_lost]


@native
@settings(deadline=None, max_examples=25, derandomize=not os.environ.get("SOAK_SECONDS"))
@given(st.sampled_from(["on", "optional"]), st.booleans(), scripts)
def test_the_lanes_take_the_same(accepts: str, chained: bool, script: list[tuple[int, bool, Any]]) -> None:
    sends = "send-proxy=v2, proxy-tlv=pass+crc32c, " if chained else ""
    found = [asyncio.run(story(engine, accepts, sends, script)) for engine in ("native", "python")]
    assert found[0] == found[1]
