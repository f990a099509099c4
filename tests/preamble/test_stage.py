"""What holds for the whole stage before the relay: who is judged when, who is counted, and how long it may take."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import pytest

from oinetd import AccessRule, Ending, Forwarder, SessionRecord, Verb
from oinetd.config import parse_config
from oinetd.preamble.proxy_protocol import Party
from oinetd.preamble.proxy_writer import write_v1, write_v2
from tests.forwarding import Seen, bound, forwarding, in_one_loop
from tests.peers import Peer, dial, free_port, server, until
from tests.preamble import samples
from tests.preamble.lanes import in_lanes, lane_options, looking, served

CLIENT, REACHED = Party("192.0.2.7", 40000), Party("198.51.100.9", 443)
LONG_HEADER = samples.binary(samples.INET + samples.tlv(4, bytes(4000)))
LONG_HELLO = samples.records(samples.hello(samples.extension(21, bytes(4000)), samples.server_name(b"a.example.org")))


async def read_end(peer: Peer) -> None:
    """Nothing came before the end, be it a FIN or a reset."""
    with contextlib.suppress(ConnectionError):
        assert await peer.read_all() == b""


async def refused(forwarder: Forwarder, seen: Seen, sent: bytes = b"", source: str = "") -> SessionRecord:
    """What is told of a client that gets nothing for what it sent."""
    peer = await dial(bound(forwarder), source=source)
    with contextlib.suppress(ConnectionError):
        await peer.send(sent)
    await read_end(peer)
    peer.close()
    await until(lambda: seen.closed)
    return seen.closed[0]


@in_lanes
@pytest.mark.parametrize(
    ("options", "sent", "ending"),
    [
        ("accept-proxy, proxy-timeout=0.3", LONG_HEADER, Ending.PROXY_TIMEOUT),
        ("sni=a.example.org, peek-timeout=0.3", LONG_HELLO, Ending.PEEK_TIMEOUT),
    ],
)
@in_one_loop
async def test_a_byte_now_and_then_does_not_put_the_deadline_off(
    lane: str, options: str, sent: bytes, ending: Ending
) -> None:
    seen = Seen()
    async with looking(headed=False) as upstream:
        host, port = upstream.address
        text = f"127.0.0.1 0 {host} {port} [{options}, {lane_options(lane)}]\ntrust 127.*\n"
        async with served(lane, *parse_config(text).rules, seen=seen) as forwarder:
            peer = await dial(bound(forwarder))
            with contextlib.suppress(ConnectionError):
                for at in range(len(sent)):  # far longer than the deadline
                    await peer.send(sent[at : at + 1])
                    await asyncio.sleep(0.01)
            peer.close()
            await until(lambda: seen.closed)
    assert seen.closed[0].ending is ending


@in_lanes
@pytest.mark.parametrize("options", ["accept-proxy, proxy-timeout=1h", "sni=a.example.org, peek-timeout=1h"])
@in_one_loop
async def test_denies_for_all_rules_are_asked_before_anything_is_read(lane: str, options: str) -> None:
    seen = Seen()
    text = f"127.0.0.1 0 127.0.0.1 9 [{options}, {lane_options(lane)}]\ntrust 127.*\n"
    deny = (AccessRule(Verb.DENY, "127.0.0.9"),)
    async with served(lane, *parse_config(text).rules, seen=seen, access=deny) as forwarder:
        record = await refused(forwarder, seen, source="127.0.0.9")
    assert (record.ending, record.client) == (Ending.DENIED, "127.0.0.9")


@in_lanes
@in_one_loop
async def test_denies_for_all_rules_judge_the_client_too(lane: str) -> None:
    seen = Seen()
    async with looking(headed=False) as upstream:
        host, port = upstream.address
        text = f"127.0.0.1 0 {host} {port} [accept-proxy, {lane_options(lane)}]\ntrust 127.*\n"
        deny = (AccessRule(Verb.DENY, "192.0.2.0/24"),)
        async with served(lane, *parse_config(text).rules, seen=seen, access=deny) as forwarder:
            record = await refused(forwarder, seen, write_v1(CLIENT, REACHED))
        assert upstream.taken.empty()
    assert (record.ending, record.client) == (Ending.DENIED, CLIENT.host)


@in_lanes
@in_one_loop
async def test_the_peer_is_counted_before_its_header_and_the_client_after_it(lane: str) -> None:
    """Two that say nothing are all that one peer may have; behind their headers they are other clients."""
    seen = Seen()
    async with looking(headed=False) as upstream:
        host, port = upstream.address
        options = f"accept-proxy, max-connections-per-source=2, proxy-timeout=1h, {lane_options(lane)}"
        text = f"127.0.0.1 0 {host} {port} [{options}]\ntrust 127.*\n"
        async with served(lane, *parse_config(text).rules, seen=seen) as forwarder:
            for nth in range(3):  # each of them is given back exactly once
                waiting = [await dial(bound(forwarder)) for _ in range(2)]
                await until(lambda: len(forwarder.sessions()) == 2)
                more = await dial(bound(forwarder))
                await read_end(more)
                more.close()
                await until(lambda count=3 * nth + 1: len(seen.closed) == count)
                assert seen.closed[-1].ending is Ending.LIMITED
                for number, peer in enumerate(waiting):
                    await peer.send(write_v2(Party("192.0.2.1", number + 1), REACHED))
                    await upstream.taken.get()
                for peer in waiting:
                    peer.close()
                await until(lambda count=3 * nth + 3: len(seen.closed) == count)


@in_lanes
@in_one_loop
async def test_each_peer_has_its_own_word_about_invalid_headers(lane: str, caplog: pytest.LogCaptureFixture) -> None:
    seen = Seen()
    caplog.set_level(logging.WARNING, "oinetd")
    text = f"127.0.0.1 0 127.0.0.1 9 [accept-proxy, {lane_options(lane)}]\ntrust 127.*\n"
    async with served(lane, *parse_config(text).rules, seen=seen) as forwarder:
        for source in ("127.0.0.1", "127.0.0.2", "127.0.0.1", "127.0.0.2"):
            peer = await dial(bound(forwarder), source=source)
            await peer.send(b"GET / HTTP/1.0\r\n\r\n")
            await read_end(peer)
            peer.close()
        await until(lambda: len(seen.closed) == 4)
    said = [line for line in caplog.messages if "an invalid PROXY header" in line]
    assert [line.rpartition(" from ")[2].partition(",")[0] for line in said] == ["127.0.0.1", "127.0.0.2"]


@in_one_loop
async def test_hooks_get_the_client_of_the_header() -> None:
    asked: list[tuple[str, int, str]] = []

    async def admit(record: SessionRecord) -> bool:
        asked.append((record.client, record.client_port, record.peer))
        return False

    seen = Seen()
    text = "127.0.0.1 0 127.0.0.1 9 [accept-proxy]\ntrust 127.*\n"
    async with forwarding(*parse_config(text).rules, seen=seen, admit=admit) as forwarder:
        peer = await dial(bound(forwarder))
        with contextlib.suppress(ConnectionError):
            await peer.send(write_v1(CLIENT, REACHED))
        await read_end(peer)
        peer.close()
        await until(lambda: seen.closed)
    assert asked == [(*CLIENT, "127.0.0.1")]


@in_lanes
@in_one_loop
async def test_a_server_is_chosen_by_the_client_of_the_header(lane: str) -> None:
    """`balance=source`: all connections come from one peer, and each client keeps its server."""
    found: dict[str, set[int]] = {}

    async def answer(peer: Peer) -> None:
        await peer.send(peer.sock.getsockname()[1].to_bytes(2, "big"))
        with contextlib.suppress(ConnectionError):
            await peer.read_all()

    async with server(answer) as first, server(answer) as second:
        lines = ["upstream web [balance=source]", *(f"upstream web {host} {port}" for host, port in (first, second))]
        text = f"127.0.0.1 0 @web [accept-proxy, {lane_options(lane)}]\ntrust 127.*\n"
        config = parse_config("\n".join([*lines, text]))
        async with served(lane, *config.rules, upstreams=config.upstreams) as forwarder:
            for nth in range(30):
                peer = await dial(bound(forwarder))
                host = f"192.0.2.{nth % 10}"
                await peer.send(write_v1(Party(host, nth + 1), REACHED))
                found.setdefault(host, set()).add(int.from_bytes(await peer.read(2), "big"))
                peer.close()
    assert {len(servers) for servers in found.values()} == {1}
    assert len(set.union(*found.values())) == 2


@in_lanes
@in_one_loop
async def test_a_handshake_that_is_no_hello_decides_at_once(lane: str) -> None:
    async with looking(headed=False) as named, looking(wanted=9, headed=False) as other:
        port = free_port()
        lines = [
            f"127.0.0.1 {port} {upstream.address[0]} {upstream.address[1]} [{option}{lane_options(lane)}]"
            for upstream, option in ((named, "sni=a.example.org, "), (other, ""))
        ]
        async with served(lane, *parse_config("\n".join(lines)).rules):
            peer = await dial(("127.0.0.1", port))
            await peer.send(samples.records(b"\2\0\0\0"))
            assert (await other.taken.get()).data == samples.records(b"\2\0\0\0")
            peer.close()
