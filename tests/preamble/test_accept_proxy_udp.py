"""Over UDP the client is the one in the PROXY header of each datagram: `accept-proxy`, in both batches, with chains."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from oinetd import Ending
from oinetd.config import ConfigError, parse_config
from oinetd.lanes.python.udp.departure import header_in
from oinetd.net.datagrams import HEADED_BYTES_MAX
from oinetd.preamble.proxy_protocol import AUTHORITY, CRC32C, NOOP, UNIQUE_ID, Header, Party, Tlv, feed_datagram
from oinetd.preamble.proxy_writer import write_v1, write_v2
from tests.peers import free_port, pattern, until
from tests.preamble.lanes import in_lanes
from tests.preamble.test_send_proxy_udp import HEADER_BYTES, headed, in_lane
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
    said = [record.getMessage() for record in caplog.records if "invalid PROXY header" in record.getMessage()]
    assert said
    assert all("from 127.0.0.1, at byte" in text and text.endswith("; the datagram is dropped") for text in said)


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


@in_lanes
async def test_each_segment_of_a_train_has_its_header(lane: str) -> None:
    data = [head(CLIENT if number % 2 else OTHER) + pattern(100, number) for number in range(20)]
    with Peer() as server, Peer() as proxy:
        async with accepting(lane, server) as served:
            segment = (socket.IPPROTO_UDP, 103, len(data[0]).to_bytes(2, "little"))  # UDP_SEGMENT
            proxy.sock.sendmsg([b"".join(data)], [segment], 0, served.address)
            found = [(await server.receive())[0] for _ in data]
            assert sorted(found) == sorted(each[HEADER_BYTES:] for each in data)
            assert {each.datagrams_up for each in served.forwarder.sessions()} == {10}


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


async def test_a_reload_revokes_by_client_and_by_peer() -> None:
    with parties() as (server, proxy):
        lines = f"127.0.0.1 0/udp 127.0.0.1 {server.address[1]}/udp [accept-proxy, on-deny=reset]\ntrust 127.0.0.1\n"
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
