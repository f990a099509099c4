"""The client is the one in a PROXY header, from trusted peers only: `accept-proxy`, `trust`, `proxy-timeout`."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from oinetd import AccessRule, Config, Ending, Rule, Settings, Verb
from oinetd.config import parse_config, parse_rule
from oinetd.model import LogFormat
from oinetd.observe.formats import line_format
from oinetd.preamble import proxy_protocol
from oinetd.preamble.proxy_protocol import AUTHORITY, CRC32C, NOOP, UNIQUE_ID, Party, Tlv
from oinetd.preamble.proxy_writer import write_v1, write_v2
from tests.forwarding import Seen, bound
from tests.peers import Peer, dial, free_port, until
from tests.preamble import samples
from tests.preamble.lanes import in_lanes, lane_options, looking, served
from tests.preamble.test_send_proxy import HAPROXY, _listens, own

CLIENT, REACHED = Party("192.0.2.7", 40000), Party("198.51.100.9", 443)
CLIENT6, REACHED6 = Party("2001:db8::7", 1), Party("2001:db8::9", 2)
TRUST = "trust 127.0.0.1"


def one(lane: str, upstream: tuple[str, int], options: str = "", *behind: str) -> Rule:
    """A rule with `accept-proxy` and lines behind it."""
    lines = "\n".join(behind or (TRUST,))
    extra = f", {options}" if options else ""
    said = f"127.0.0.1 0 {upstream[0]} {upstream[1]} [accept-proxy, {lane_options(lane)}{extra}]\n{lines}\n"
    return parse_config(said).rules[0]


async def test_a_header_that_cannot_be_taken_whole_is_not_payload(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of it would be the beginning of the client's bytes for the server. (The native lane: tests/soak.)"""
    read = proxy_protocol.feed

    def longer(data: bytes) -> object:
        found = read(data)
        return replace(found, length=found.length + 1) if isinstance(found, proxy_protocol.Header) else found

    monkeypatch.setattr(proxy_protocol, "feed", longer)
    seen = Seen()
    async with looking(headed=False) as upstream:
        async with served("python", one("python", upstream.address), seen=seen) as forwarder:
            peer = await dial(bound(forwarder))
            await peer.send(write_v1(CLIENT, REACHED))
            assert await peer.read_to_reset() == b""
            peer.close()
            await until(lambda: seen.closed)
        assert upstream.taken.empty()
    assert [(each.ending, each.errno) for each in seen.closed] == [(Ending.CLIENT_RESET, errno.ECONNRESET)]


@in_lanes
@pytest.mark.parametrize(
    ("header", "client"),
    [
        (write_v1(CLIENT, REACHED), CLIENT),
        (write_v2(CLIENT, REACHED), CLIENT),
        (write_v2(CLIENT6, REACHED6, [Tlv(2, b"a.example")], checksum=True), CLIENT6),
        (write_v2(Party("::ffff:192.0.2.7", 40000), Party("::ffff:192.0.2.8", 1)), CLIENT),
        (samples.binary(samples.INET + samples.tlv(4, bytes(4000))), CLIENT),
    ],
)
async def test_the_client_is_the_one_in_the_header(lane: str, header: bytes, client: Party) -> None:
    seen = Seen()
    async with looking(wanted=5, answer=b"world", headed=False) as upstream:
        rule = one(lane, upstream.address)
        async with served(lane, rule, seen=seen) as forwarder:
            peer = await dial(bound(forwarder))
            await peer.send(header + b"hello")
            assert (await upstream.taken.get()).data == b"hello"
            assert await peer.read(5) == b"world"
            (live,) = forwarder.sessions()
            assert (live.client, live.client_port) == client
            assert (live.peer, live.peer_port) == own(peer.sock)
            peer.close()
            await until(lambda: seen.closed)
    record = seen.closed[0]
    assert seen.opened == [record]
    assert (record.client, record.client_port) == client
    assert (record.peer, record.bytes_up, record.bytes_down) == ("127.0.0.1", 5, 5)
    line = json.loads(line_format(LogFormat.JSON).closed(record, 0.0))
    assert (line["client"], line["peer"], line["peer_port"]) == (client.host, "127.0.0.1", record.peer_port)


@in_lanes
async def test_the_list_of_sessions_has_the_peer_of_one_that_was_refused_by_a_server(lane: str) -> None:
    """Also if no log has told it before."""
    async with looking(wanted=5, answer=b"world", headed=False) as upstream:
        servers = f"upstream web 127.0.0.1 {free_port()}\nupstream web {upstream.address[0]} {upstream.address[1]}"
        rule = f"127.0.0.1 0 @web [accept-proxy, {lane_options(lane)}]\n{TRUST}"
        config = parse_config(f"{rule}\n{servers}\nupstream web [balance=first, passive=off]")
        async with served(lane, *config.rules) as forwarder:
            peer = await dial(bound(forwarder))
            await peer.send(write_v1(CLIENT, REACHED) + b"hello")
            assert await peer.read(5) == b"world"
            (live,) = forwarder.sessions()
            peer.close()
            await until(lambda: not forwarder.sessions())
    assert (live.client, live.peer) == (CLIENT.host, "127.0.0.1")


@in_lanes
async def test_a_reload_while_a_header_is_awaited(lane: str) -> None:
    """What is in force when the header is complete decides: access, trust, and the destination."""
    seen = Seen()
    async with looking(wanted=1, headed=False) as old, looking(wanted=1, headed=False) as new:
        port = free_port()

        def config(server: tuple[str, int], *behind: str) -> Config:
            said = f"127.0.0.1 {port} {server[0]} {server[1]} [accept-proxy, {lane_options(lane)}]\n"
            return parse_config(said + "\n".join(behind))

        async with served(lane, *config(old.address, TRUST).rules, seen=seen) as forwarder:
            for again, ending in (
                (config(new.address, TRUST), None),
                (config(new.address, TRUST, "deny 192.0.2.*"), Ending.DENIED),
                (config(new.address, "trust 192.0.2.1"), Ending.NOT_TRUSTED),
            ):
                await forwarder.reload(config(old.address, TRUST))
                peer = await dial(("127.0.0.1", port))
                await peer.send(b"PROXY ")
                await until(lambda: len(forwarder.sessions()) == 1)
                await forwarder.reload(again)
                with contextlib.suppress(ConnectionError):
                    await peer.send(write_v1(CLIENT, REACHED)[6:] + b"x")
                if ending is None:
                    assert (await new.taken.get()).data == b"x"
                peer.close()
                await until(lambda: seen.closed)
                assert ending is None or seen.closed[-1].ending is ending
                seen.closed.clear()
            assert old.taken.empty()


@in_lanes
@pytest.mark.parametrize(
    "header",
    [
        write_v1(None, None),
        write_v2(None, None),
        samples.binary(samples.UNIX, family=0x31),
        samples.binary(b"anything", family=0),
    ],
)
async def test_without_addresses_the_client_is_the_peer_and_unknown_to_the_server(lane: str, header: bytes) -> None:
    seen = Seen()
    async with looking(wanted=5) as upstream:
        rule = one(lane, upstream.address, "send-proxy")
        async with served(lane, rule, seen=seen) as forwarder:
            peer = await dial(bound(forwarder))
            await peer.send(header + b"hello")
            taken = await upstream.taken.get()
            assert taken.data == b"hello"
            assert taken.header is not None
            assert taken.header.source is None
            me = own(peer.sock)
            peer.close()
            await until(lambda: seen.closed)
    assert (seen.closed[0].client, seen.closed[0].client_port) == me


@in_lanes
async def test_one_byte_at_a_time(lane: str) -> None:
    header = write_v2(CLIENT6, REACHED6, [Tlv(5, b"id")], checksum=True)
    async with looking(wanted=2, headed=False) as upstream, served(lane, one(lane, upstream.address)) as forwarder:
        peer = await dial(bound(forwarder))
        for at in range(len(header)):
            await peer.send(header[at : at + 1])
            await asyncio.sleep(0)
        await peer.send(b"hi")
        assert (await upstream.taken.get()).data == b"hi"
        peer.close()


@in_lanes
async def test_a_server_that_speaks_first(lane: str) -> None:
    async with looking(answer=b"220 ready", headed=False) as upstream:
        rule = one(lane, upstream.address)
        async with served(lane, rule) as forwarder:
            peer = await dial(bound(forwarder))
            await peer.send(write_v1(CLIENT, REACHED))
            assert await peer.read(9) == b"220 ready"
            peer.close()


@in_lanes
async def test_a_header_is_sent_on(lane: str) -> None:
    """With the addresses of the one that came, and what it said but for checksum and padding."""
    values = [Tlv(NOOP, b"00"), Tlv(AUTHORITY, b"a.example"), Tlv(UNIQUE_ID, b"theirs"), Tlv(0xE0, b"")]
    async with looking(wanted=5) as upstream:
        options = "send-proxy=v2, proxy-tlv=pass+crc32c+unique-id"
        async with served(lane, one(lane, upstream.address, options)) as forwarder:
            peer = await dial(bound(forwarder))
            await peer.send(write_v2(CLIENT6, REACHED6, values, checksum=True) + b"hello")
            taken = await upstream.taken.get()
            assert taken.data == b"hello"
            assert taken.segments == 1
            assert taken.header is not None
            assert (taken.header.source, taken.header.destination) == (CLIENT6, REACHED6)
            assert [value.type for value in taken.header.tlvs] == [AUTHORITY, UNIQUE_ID, 0xE0, CRC32C]
            assert taken.header.value(UNIQUE_ID) == b"theirs"
            peer.close()


@in_lanes
@pytest.mark.parametrize(
    ("sent", "what"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", "at byte 0: no PROXY header"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 01 1\r\n", "at byte 27: not a port from 0 to 65535"),
        (samples.binary(samples.INET + samples.tlv(3, bytes(4))), "at byte 28: the checksum does not match"),
        (samples.binary(b"", command=0x20, length=5000), "at byte 14: the header is longer than 4096 bytes"),
    ],
)
async def test_an_invalid_header(lane: str, sent: bytes, what: str, caplog: pytest.LogCaptureFixture) -> None:
    seen = Seen()
    caplog.set_level(logging.WARNING, "oinetd")
    async with looking(headed=False) as upstream:
        rule = one(lane, upstream.address)
        async with served(lane, rule, seen=seen) as forwarder:
            for _ in range(3):
                peer = await dial(bound(forwarder))
                await peer.send(sent)
                assert await peer.read_to_reset() == b""
                peer.close()
            await until(lambda: len(seen.closed) == 3)
            assert forwarder.stats().refused == forwarder.stats().accepted == 3
        assert upstream.taken.empty()
    assert {record.ending for record in seen.closed} == {Ending.BAD_PROXY_HEADER}
    assert not seen.opened
    said = [record.getMessage() for record in caplog.records if "PROXY header from" in record.getMessage()]
    assert len(said) == 1
    assert f"an invalid PROXY header from 127.0.0.1, {what}; the connection is reset" in said[0]


@in_lanes
async def test_the_end_of_a_client_within_its_header(lane: str) -> None:
    seen = Seen()
    async with looking(headed=False) as upstream:
        rule = one(lane, upstream.address)
        async with served(lane, rule, seen=seen) as forwarder:
            for sent in (b"", b"PROXY TCP4", samples.binary()[:20]):
                peer = await dial(bound(forwarder))
                await peer.send(sent)
                peer.half_close()
                with pytest.raises(ConnectionResetError):
                    await peer.read_all()
                peer.close()
            peer = await dial(bound(forwarder))
            await peer.send(b"PRO")
            peer.reset()
            await until(lambda: len(seen.closed) == 4)
        assert upstream.taken.empty()
    endings = [record.ending for record in seen.closed]
    assert endings == [Ending.CLIENT_CLOSED] * 3 + [Ending.CLIENT_RESET]
    assert len(seen.opened) == 4


@in_lanes
async def test_a_client_that_was_slow_with_its_header_still_gets_another_server(lane: str) -> None:
    """connect-timeout is for the search, which begins behind the header."""
    seen = Seen()
    async with looking(headed=False) as upstream:
        servers = ("127.0.0.2,127.0.0.1", upstream.address[1])  # nobody listens at the first
        rule = one(lane, servers, "balance=first, connect-timeout=0.1, proxy-timeout=5")
        async with served(lane, rule, seen=seen) as forwarder:
            began = time.monotonic()
            peer = await dial(bound(forwarder))
            await until(lambda: time.monotonic() > began + 0.15)
            await peer.send(write_v1(CLIENT, REACHED) + b"x")
            await upstream.taken.get()
            peer.close()
            await until(lambda: seen.closed)
    assert (seen.closed[0].ending, len(seen.closed[0].tries)) == (Ending.CLIENT_CLOSED, 2)


@in_lanes
async def test_a_header_that_does_not_come(lane: str) -> None:
    seen = Seen()
    async with looking(headed=False) as upstream:
        rule = one(lane, upstream.address, "proxy-timeout=0.3")
        async with served(lane, rule, seen=seen) as forwarder:
            peers = [await dial(bound(forwarder)) for _ in range(20)]
            for nth, peer in enumerate(peers):
                await peer.send(samples.binary()[:nth])
            honest = await dial(bound(forwarder))
            await honest.send(write_v1(CLIENT, REACHED) + b"x")
            await upstream.taken.get()
            for peer in peers:
                assert await peer.read_to_reset() == b""
                peer.close()
            honest.close()
            await until(lambda: len(seen.closed) == 21)
    endings = [record.ending for record in seen.closed]
    assert endings.count(Ending.PROXY_TIMEOUT) == 20


@in_lanes
async def test_who_is_not_trusted(lane: str) -> None:
    seen = Seen()
    async with looking(headed=False) as upstream:
        rule = one(lane, upstream.address, "", "trust 192.0.2.0/24")
        async with served(lane, rule, seen=seen) as forwarder:
            peer = await dial(bound(forwarder))
            with contextlib.suppress(ConnectionError):
                await peer.send(write_v1(CLIENT, REACHED))
                assert await peer.read_all() == b""
            peer.close()
            await until(lambda: seen.closed)
    assert seen.closed[0].ending is Ending.NOT_TRUSTED
    assert seen.closed[0].client == "127.0.0.1"


@in_lanes
async def test_optional(lane: str) -> None:
    """Peers that match `trust` have to send a header; others are plain clients, whatever they send."""
    header = write_v1(CLIENT, REACHED)
    seen = Seen()
    async with looking(wanted=len(header), headed=False) as upstream:
        rule = one(lane, upstream.address, "accept-proxy=optional", "trust 127.0.0.5")
        async with served(lane, rule, seen=seen) as forwarder:
            plain = await dial(bound(forwarder))
            await plain.send(header)
            assert (await upstream.taken.get()).data == header
            plain.close()
            trusted = await dial(bound(forwarder), source="127.0.0.5")
            await trusted.send(header + header)
            assert (await upstream.taken.get()).data == header
            trusted.close()
            await until(lambda: len(seen.closed) == 2)
    assert {(record.client, record.peer) for record in seen.closed} == {
        ("127.0.0.1", ""),
        (CLIENT.host, "127.0.0.5"),
    }


@in_lanes
async def test_access_rules_judge_the_client(lane: str) -> None:
    seen = Seen()
    async with looking(headed=False) as upstream:
        rule = one(lane, upstream.address, "", TRUST, "allow 192.0.2.*", "deny 192.0.2.8")
        async with served(lane, rule, seen=seen) as forwarder:
            for host in ("192.0.2.7", "192.0.2.8", "192.0.3.1"):
                peer = await dial(bound(forwarder))
                await peer.send(write_v1(Party(host, 1), REACHED))
                if host == "192.0.2.7":
                    await upstream.taken.get()
                else:
                    with contextlib.suppress(ConnectionError):
                        assert await peer.read_all() == b""
                peer.close()
            await until(lambda: len(seen.closed) == 3)
    assert {record.client: record.ending for record in seen.closed} == {
        "192.0.2.7": Ending.CLIENT_CLOSED,
        "192.0.2.8": Ending.DENIED,
        "192.0.3.1": Ending.NOT_ALLOWED,
    }


@in_lanes
async def test_denies_for_all_rules_judge_the_peer_too(lane: str) -> None:
    seen = Seen()
    async with looking(headed=False) as upstream:
        deny = (AccessRule(Verb.DENY, "127.0.0.1"), AccessRule(Verb.TRUST, "*"))
        rule = one(lane, upstream.address)
        async with served(lane, rule, seen=seen, access=deny) as forwarder:
            peer = await dial(bound(forwarder))
            with contextlib.suppress(ConnectionError):
                await peer.send(write_v1(CLIENT, REACHED))
                assert await peer.read_all() == b""
            peer.close()
            await until(lambda: seen.closed)
    assert seen.closed[0].ending is Ending.DENIED


@in_lanes
async def test_limits_of_a_source_count_the_client(lane: str) -> None:
    seen = Seen()
    async with looking(headed=False) as upstream:
        rule = one(lane, upstream.address, "max-connections-per-source=2")
        async with served(lane, rule, seen=seen) as forwarder:
            peers: list[Peer] = []
            for nth in range(6):
                peers.append(await dial(bound(forwarder)))
                await peers[-1].send(write_v2(Party(f"192.0.2.{nth // 3}", 1), REACHED))
                await until(lambda count=nth + 1: forwarder.stats().accepted == count)
            await until(lambda: forwarder.stats().refused == 2)
            assert forwarder.stats().live == 4
            for peer in peers:
                peer.close()
            await until(lambda: len(seen.closed) == 6)
            for _ in range(2):  # everything was given back
                peer = await dial(bound(forwarder))
                await peer.send(write_v2(Party("192.0.2.0", 1), REACHED))
                await upstream.taken.get()
                peer.close()
            await until(lambda: len(seen.closed) == 8)
    endings = [record.ending for record in seen.closed]
    assert endings.count(Ending.LIMITED) == 2


@in_lanes
async def test_silent_clients_have_at_most_half_of_the_places(lane: str) -> None:
    seen = Seen()
    async with looking(headed=False) as upstream:
        silent = one(lane, upstream.address, "proxy-timeout=1h")
        plain = parse_rule(f"127.0.0.1 0 {upstream.address[0]} {upstream.address[1]} [{lane_options(lane)}]")
        async with served(lane, silent, plain, seen=seen, max_connections=8) as forwarder:
            waiting = [await dial(bound(forwarder)) for _ in range(8)]
            others = [await dial(bound(forwarder, 1)) for _ in range(4)]
            for _ in others:
                await upstream.taken.get()
            await waiting[0].send(write_v1(CLIENT, REACHED))
            for peer in (*waiting, *others):
                peer.close()
            await until(lambda: len(seen.closed) >= 8)


@in_lanes
async def test_a_kill_and_a_stop_while_headers_are_waited_for(lane: str) -> None:
    seen = Seen()
    async with looking(headed=False) as upstream:
        rule = one(lane, upstream.address)
        async with served(lane, rule, seen=seen) as forwarder:
            first, second = await dial(bound(forwarder)), await dial(bound(forwarder))
            await first.send(b"PROXY")
            await until(lambda: len(forwarder.sessions()) == 2)
            assert forwarder.kill(forwarder.sessions()[0].id)
            await until(lambda: len(seen.closed) == 1)
        await until(lambda: len(seen.closed) == 2)
        first.close()
        second.close()
    assert {record.ending for record in seen.closed} == {Ending.ABORTED}


@in_lanes
@pytest.mark.parametrize("send", ["send-proxy", "send-proxy-v2 proxy-v2-options crc32c,unique-id"])
async def test_haproxy_sends_the_header(lane: str, send: str, tmp_path: Path) -> None:
    if (program := shutil.which("haproxy")) is None:
        pytest.skip("haproxy is missing")
    seen = Seen()
    async with looking(wanted=5, headed=False) as upstream:
        rule = one(lane, upstream.address)
        async with served(lane, rule, seen=seen) as forwarder:
            port, (host, to) = free_port(), bound(forwarder)
            config = tmp_path / "haproxy.cfg"
            text = HAPROXY.format(bind=port, host=host, port=to, send=send).replace(" accept-proxy", "")
            config.write_text(text.replace("mode tcp", "mode tcp\n    unique-id-format %pid"))
            process = await asyncio.create_subprocess_exec(program, "-db", "-q", "-f", str(config))
            try:
                await until(lambda: _listens(port))
                client = await dial(("127.0.0.1", port))
                await client.send(b"hello")
                assert (await upstream.taken.get()).data == b"hello"
                me = own(client.sock)
                client.close()
                await until(lambda: seen.closed)
            finally:
                process.kill()
                await process.wait()
    assert (seen.closed[0].client, seen.closed[0].client_port) == me


async def test_defaults() -> None:
    assert Settings().proxy_timeout_s == 5.0
