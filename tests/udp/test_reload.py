"""Sessions and listeners over a reload, and how they end when the forwarder does."""

from __future__ import annotations

import asyncio

import pytest

from oinetd import Ending, parse_config
from tests.daemon.process import own_address
from tests.peers import free_port, until
from tests.udp.rig import Party, echo, serving


async def source_port(client: Party, upstream: Party, to: tuple[str, int]) -> int:
    """The port from which the client's session writes to the upstream."""
    client.send(b"x", to)
    return (await upstream.receive())[1][1]


async def test_a_hundred_reloads(engine: str) -> None:
    with Party() as upstream, Party() as client:
        text = f"{engine}0.0.0.0 0/udp 127.0.0.1 {upstream.address[1]}/udp\n"
        async with serving(text) as served:
            to = ("127.0.0.1", served.port)
            port = await source_port(client, upstream, to)
            for turn in range(100):
                await served.forwarder.reload(parse_config(text + f"drain-timeout {turn + 1}\n"))
                assert await source_port(client, upstream, to) == port
            await served.has_told(opened=1)
            assert (len(served.opened), len(served.closed)) == (1, 0)


async def test_a_session_keeps_its_destination(engine: str) -> None:
    front = own_address()
    with Party() as before, Party() as after, Party() as old, Party() as new:
        text = f"{engine}{front} 8000/udp 127.0.0.1 PORT/udp\n"
        async with serving(text.replace("PORT", str(before.address[1]))) as served:
            await source_port(old, before, (front, 8000))
            await served.forwarder.reload(parse_config(text.replace("PORT", str(after.address[1]))))
            await source_port(old, before, (front, 8000))
            await source_port(new, after, (front, 8000))
            assert (before.pending(), after.pending()) == ([], [])


@pytest.mark.parametrize("denied", ["127.0.0.2", "127.0.0.0/30"])
@pytest.mark.parametrize("only_this_rule", [False, True])
async def test_a_deny_reaches_sessions_that_live(engine: str, denied: str, only_this_rule: bool) -> None:
    """Those that the new rules refuse end, the others keep their port."""
    front = own_address()
    with Party() as upstream, Party("127.0.0.2") as bad, Party("127.0.0.9") as good:
        rule = f"{front} 8000/udp 127.0.0.1 {upstream.address[1]}/udp\n"
        async with serving(engine + rule) as served:
            port = await source_port(good, upstream, (front, 8000))
            await source_port(bad, upstream, (front, 8000))
            deny = f"deny {denied}\n"
            await served.forwarder.reload(parse_config(engine + (rule + deny if only_this_rule else deny + rule)))
            await served.has_told(closed=1)
            assert [(record.client, record.ending) for record in served.closed] == [("127.0.0.2", Ending.REVOKED)]
            bad.send(b"again", (front, 8000))
            await served.has_told(closed=2)
            assert served.closed[1].ending is Ending.DENIED
            assert await source_port(good, upstream, (front, 8000)) == port
            assert upstream.pending() == []


async def test_a_deny_reaches_sessions_of_rules_that_go(engine: str) -> None:
    front = own_address()
    with Party() as upstream, Party("127.0.0.2") as bad, Party("127.0.0.9") as good:
        rule = f"{front} 8000/udp 127.0.0.1 {upstream.address[1]}/udp\n"
        async with serving(engine + rule) as served:
            port = await source_port(good, upstream, (front, 8000))
            await source_port(bad, upstream, (front, 8000))
            for _ in range(2):
                await served.forwarder.reload(parse_config(f"{engine}deny 127.0.0.2\n"))
                assert await source_port(good, upstream, (front, 8000)) == port
            await served.has_told(closed=1)
            assert [(record.client, record.ending) for record in served.closed] == [("127.0.0.2", Ending.REVOKED)]
            await served.forwarder.reload(parse_config(f"{engine}deny *\n"))
            await served.has_told(closed=2)
            Party(front, 8000).close()  # the port is free with its last session


async def test_a_deny_reaches_ipv4_clients_of_an_ipv6_socket(engine: str) -> None:
    front, port = own_address(), free_port()
    with Party("127.0.0.2") as bad, echo() as upstream:
        rule = f"{engine}:: {port}/udp 127.0.0.1 {upstream.address[1]}/udp\n"
        async with serving(rule) as served:
            await bad.ask(b"x", (front, port))
            await served.forwarder.reload(parse_config(rule + "deny 127.0.0.2\n"))
            await served.has_told(closed=1)
            assert [record.ending for record in served.closed] == [Ending.REVOKED]


async def test_a_rule_that_is_taken_away_and_comes_back(engine: str) -> None:
    front = own_address()
    with Party() as upstream, Party() as old, Party() as new:
        text = f"{engine}{front} 8000/udp 127.0.0.1 {upstream.address[1]}/udp\n"
        async with serving(text) as served:
            port = await source_port(old, upstream, (front, 8000))
            for _ in range(2):
                await served.forwarder.reload(parse_config(engine))
                assert served.forwarder.addresses == ()
                assert await source_port(old, upstream, (front, 8000)) == port
                new.send(b"nobody new", (front, 8000))
                assert await source_port(old, upstream, (front, 8000)) == port
            await served.forwarder.reload(parse_config(text))
            assert await source_port(old, upstream, (front, 8000)) == port
            assert await source_port(new, upstream, (front, 8000)) != port


async def test_a_listener_closes_with_its_last_session(engine: str) -> None:
    front = own_address()
    with echo() as upstream, Party() as client:
        text = f"{engine}{front} 8000/udp 127.0.0.1 {upstream.address[1]}/udp [timeout=0.1]\n"
        async with serving(text) as served:
            await client.ask(b"x", (front, 8000))
            await served.forwarder.reload(parse_config(engine))
            await until(lambda: served.closed)
            Party(front, 8000).close()  # the port is free


async def test_a_listener_without_sessions_closes_at_once(engine: str) -> None:
    front = own_address()
    with Party() as upstream:
        text = f"{engine}{front} 8000/udp 127.0.0.1 {upstream.address[1]}/udp\n"
        async with serving(text) as served:
            await served.forwarder.reload(parse_config(engine))
            Party(front, 8000).close()


async def test_a_wildcard_takes_the_place_of_its_address(engine: str) -> None:
    with echo() as upstream, Party() as client:
        text = f"{engine}127.0.0.1 0/udp 127.0.0.1 {upstream.address[1]}/udp\n"
        async with serving(text) as served:
            to = served.address
            await client.ask(b"x", to)
            wide = f"{engine}0.0.0.0 {to[1]}/udp 127.0.0.1 {upstream.address[1]}/udp\n"
            await served.forwarder.reload(parse_config(wide))
            await served.has_told(closed=1)
            assert [record.ending for record in served.closed] == [Ending.ABORTED]
            assert await client.ask(b"y", to) == b"y"
            assert str(served.forwarder.sessions()[0].route.bind.host) == "0.0.0.0"


async def test_tcp_and_udp_of_one_port(engine: str) -> None:
    front = own_address()
    with echo() as upstream, Party() as client:
        udp = f"{front} 8000/udp 127.0.0.1 {upstream.address[1]}/udp\n"
        tcp = f"{front} 8000 127.0.0.1 {upstream.address[1]}\n"
        async with serving(engine + udp + tcp) as served:
            await client.ask(b"x", (front, 8000))
            await served.forwarder.reload(parse_config(engine + tcp))
            await served.forwarder.reload(parse_config(engine + tcp + udp))
            assert await client.ask(b"y", (front, 8000)) == b"y"
            await served.has_told(opened=1)
            assert len(served.opened) == 1


async def test_a_drain_waits_for_answers_alone(engine: str) -> None:
    """A session in which nothing is under way is not waited for."""
    with Party() as upstream, Party() as idle, Party() as asking, Party() as late:
        text = f"{engine}127.0.0.1 0/udp 127.0.0.1 {upstream.address[1]}/udp [timeout=1h]\n"
        async with serving(text) as served:
            to = served.address
            idle.send(b"done", to)
            upstream.send(b"answer", (await upstream.receive())[1])
            assert (await idle.receive())[0] == b"answer"
            asking.send(b"question", to)
            session = (await upstream.receive())[1]
            draining = asyncio.ensure_future(served.forwarder.drain(3600))
            await served.has_told(closed=1)
            assert not draining.done()
            late.send(b"too late", to)
            upstream.send(b"answer", session)
            assert await asking.receive() == (b"answer", to)
            assert await draining == 0
            assert [(record.client_port, record.ending) for record in served.closed] == [
                (idle.address[1], Ending.ABORTED),
                (asking.address[1], Ending.ABORTED),
            ]
            assert upstream.pending() == []


async def test_a_drain_does_not_wait_for_answers_for_ever(engine: str) -> None:
    with Party() as upstream, Party() as client:
        text = f"{engine}127.0.0.1 0/udp 127.0.0.1 {upstream.address[1]}/udp\n"
        async with serving(text) as served:
            await source_port(client, upstream, served.address)
            assert await served.forwarder.drain(3600) == 0


async def test_a_drain_has_an_end(engine: str) -> None:
    with Party() as upstream, Party() as client:
        text = f"{engine}127.0.0.1 0/udp 127.0.0.1 {upstream.address[1]}/udp\n"
        async with serving(text) as served:
            await source_port(client, upstream, served.address)
            assert await served.forwarder.drain(0.01) == 1
            assert [record.ending for record in served.closed] == [Ending.ABORTED]
