"""Faults that other forwarders had, as their public trackers tell them; each test names its source. Both lanes."""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from oinetd import Ending, Forwarder, SessionRecord, parse_config
from oinetd.lanes.native.plane import available
from tests.peers import Peer, dial, echo, server, until
from tests.udp.rig import Party
from tests.udp.rig import echo as datagram_echo

ENGINES = ["python"] if available() else ["python", "native"]
Handle = Callable[[Peer], Awaitable[None]]
pytestmark = pytest.mark.parametrize("engine", ENGINES)


class Stand:
    """A forwarder between clients and a server; `closed` has the records of sessions that ended."""

    def __init__(self, forwarder: Forwarder, closed: list[SessionRecord], text: str) -> None:
        self.forwarder, self.closed, self.text = forwarder, closed, text

    @property
    def address(self) -> tuple[str, int]:
        bound = self.forwarder.addresses[0]
        return bound.host, bound.port

    async def all_ended(self) -> None:
        await until(lambda: not self.forwarder.sessions(), "the end of all sessions")


@asynccontextmanager
async def stand(engine: str, handle: Handle, options: str = "") -> AsyncIterator[Stand]:
    closed: list[SessionRecord] = []
    async with server(handle) as (host, port):
        text = f"engine {engine}\nthreads 1\n{options}\n127.0.0.1 0 {host} {port}\n"
        async with Forwarder(parse_config(text), on_close=closed.append) as forwarder:
            yield Stand(forwarder, closed, text)


def sockets() -> int:
    """Sockets that this process has open."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
        except FileNotFoundError:
            continue
    return found


async def test_a_client_that_closes_is_closed_to_the_end(engine: str) -> None:
    """haproxy/haproxy#136: connections that the client had closed stayed open, in CLOSE_WAIT."""
    async with stand(engine, echo) as one:
        before = sockets()
        for _ in range(50):
            client = await dial(one.address)
            await client.send(b"hello")
            assert await client.read(5) == b"hello"
            client.close()
        await one.all_ended()
        await until(lambda: sockets() <= before, "the sockets")


async def test_a_client_that_vanishes_frees_a_server_with_unread_bytes(engine: str) -> None:
    """haproxy/haproxy#1453: connections to servers leaked, with bytes in their receive queue that nobody read."""
    sent = asyncio.Event()

    async def pours(peer: Peer) -> None:
        try:
            await peer.send(bytes(20_000_000))
        except ConnectionError:
            sent.set()

    async with stand(engine, pours) as one:
        before = sockets()
        client = await dial(one.address, receive_bytes=4096)
        await client.read(1000)
        client.reset()
        await asyncio.wait_for(sent.wait(), 30)
        await one.all_ended()
        await until(lambda: sockets() <= before, "the sockets")


async def test_connections_from_before_a_reload_end_as_others(engine: str) -> None:
    """haproxy/haproxy#1053: after a reload, connections of the old configuration stuck in CLOSE_WAIT."""
    async with stand(engine, echo) as one:
        before = sockets()
        clients = [await dial(one.address) for _ in range(20)]
        for client in clients:
            await client.send(b"x")
            assert await client.read(1) == b"x"
        await one.forwarder.reload(parse_config(one.text.replace("threads 1", "threads 1\nidle-timeout 1h")))
        for client in clients:
            client.half_close()
            assert await client.read_all() == b""
            client.close()
        await one.all_ended()
        await until(lambda: sockets() <= before, "the sockets")


async def test_half_a_close_is_half_a_close(engine: str) -> None:
    """envoyproxy/envoy#2067: both connections were closed when one side closed its half."""

    async def answers_at_the_end(peer: Peer) -> None:
        await peer.send((await peer.read_all())[::-1] * 50_000)

    async with stand(engine, answers_at_the_end) as one:
        client = await dial(one.address)
        await client.send(b"abc")
        client.half_close()
        assert await client.read_all() == b"cba" * 50_000
        client.close()


async def test_a_reset_of_the_server_is_a_reset_for_the_client(engine: str) -> None:
    """envoyproxy/envoy#44148: the client got a FIN, so that a failure looked like an end."""

    async def resets(peer: Peer) -> None:
        await peer.read(5)
        peer.reset()

    async with stand(engine, resets) as one:
        client = await dial(one.address)
        await client.send(b"hello")
        assert await client.read_to_reset() == b""
        client.close()
        await until(lambda: one.closed, "the record")
        assert one.closed[0].ending is Ending.UPSTREAM_RESET


async def test_a_reset_of_the_client_is_a_reset_for_the_server(engine: str) -> None:
    """envoyproxy/envoy#46519: the server got a FIN, as if the request had ended."""
    seen: list[bytes] = []

    async def looks(peer: Peer) -> None:
        await peer.send(b"ready")
        seen.append(await peer.read_to_reset())

    async with stand(engine, looks) as one:
        client = await dial(one.address)
        assert await client.read(5) == b"ready"
        client.reset()
        await until(lambda: seen, "the reset")
        await until(lambda: one.closed, "the record")
        assert one.closed[0].ending is Ending.CLIENT_RESET


async def test_an_answer_before_a_reset_arrives(engine: str) -> None:
    """envoyproxy/envoy#45267: a reset that followed an answer dropped what was still buffered of it."""
    size = 300_000

    async def answers_and_resets(peer: Peer) -> None:
        await peer.send(bytes(size))
        await peer.read(2)  # everything has arrived
        peer.reset()

    async with stand(engine, answers_and_resets) as one:
        client = await dial(one.address)
        assert len(await client.read(size)) == size
        await client.send(b"ok")
        assert await client.read_to_reset() == b""
        client.close()


async def test_a_slow_reader_gets_the_last_bytes_of_a_server_that_has_gone(engine: str) -> None:
    """haproxy/haproxy#2505: what a pipe still held of an answer was lost when its server closed; with splice only."""
    answer = bytes(range(251)) * 8_001

    async def answers_and_goes(peer: Peer) -> None:
        await peer.read(1)
        await peer.send(answer)

    async with stand(engine, answers_and_goes, "relay splice" if engine == "native" else "") as one:
        client = await dial(one.address, receive_bytes=4096)
        await client.send(b"?")
        got = bytearray()
        while len(got) < len(answer):
            got += await client.read(min(len(answer) - len(got), 30_011))
            await asyncio.sleep(0)
        assert got == answer
        assert await client.read_all() == b""
        client.close()


async def test_the_other_half_of_a_closed_connection_ends_in_time(engine: str) -> None:
    """zhboner/realm#87: connections whose server never closed its half stayed in FIN_WAIT2 until none was left."""
    released = asyncio.Event()

    async def never_closes(peer: Peer) -> None:
        await peer.read_all()
        await released.wait()

    async with stand(engine, never_closes, "half-close-timeout 200ms") as one:
        client = await dial(one.address)
        await client.send(b"bye")
        client.half_close()
        await one.all_ended()
        await until(lambda: one.closed, "the record")
        assert one.closed[0].ending is Ending.HALF_CLOSE_TIMEOUT
        released.set()
        client.close()


async def test_a_listener_lives_on_without_descriptors(engine: str) -> None:
    """ginuerzh/gost#45: after `too many open files` nobody was served until a restart."""
    async with stand(engine, echo, "max-connections off") as one:
        warm = await dial(one.address)
        await warm.send(b"x")
        assert await warm.read(1) == b"x"
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        waiting = [await dial(one.address) for _ in range(3)]
        more = await dial(one.address)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))), limits[1]))
        try:
            await warm.send(b"y")
            assert await warm.read(1) == b"y"
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for client in (*waiting, more, await dial(one.address)):
            await client.send(b"z")
            assert await client.read(1) == b"z"
            client.close()
        warm.close()


async def test_clients_of_datagrams_that_have_gone_are_forgotten(engine: str) -> None:
    """ginuerzh/gost#443: forwarding of UDP held memory for each client that had ever asked, until there was none."""
    with datagram_echo() as upstream:
        # Longer than a busy machine takes for an answer: one that comes to a session that has ended is lost.
        text = f"engine {engine}\nthreads 1\n127.0.0.1 0/udp 127.0.0.1 {upstream.address[1]}/udp [timeout=500ms]\n"
        async with Forwarder(parse_config(text)) as forwarder:
            bound = forwarder.addresses[0]
            before = sockets()
            for _ in range(200):
                with Party() as client:
                    assert await client.ask(b"once", (bound.host, bound.port)) == b"once"
            await until(lambda: not forwarder.sessions(), "the end of all sessions")
            await until(lambda: sockets() <= before, "the sockets")


async def test_a_datagram_session_lives_over_a_reload(engine: str) -> None:
    """kubernetes/ingress-nginx#2338: each reload of nginx dropped the datagrams of live sessions."""
    with datagram_echo() as upstream:
        text = f"engine {engine}\nthreads 1\n127.0.0.1 0/udp 127.0.0.1 {upstream.address[1]}/udp\n"
        async with Forwarder(parse_config(text)) as forwarder:
            bound = forwarder.addresses[0]
            with Party() as client:
                assert await client.ask(b"before", (bound.host, bound.port)) == b"before"
                (session,) = forwarder.sessions()
                for nth in range(5):
                    await forwarder.reload(parse_config(f"{text}max-connections {100 + nth}\n"))
                    assert await client.ask(b"after", (bound.host, bound.port)) == b"after"
                assert [each.id for each in forwarder.sessions()] == [session.id]


async def test_nobody_is_refused_in_the_moment_of_a_reload(engine: str) -> None:
    """yaoweibin/nginx_tcp_proxy_module#120: connections in the moment of a reload were reset."""
    async with stand(engine, echo) as one:
        ends = asyncio.Event()
        served = 0

        async def comes() -> None:
            nonlocal served
            while not ends.is_set():
                client = await dial(one.address)
                await client.send(b"x")
                assert await client.read(1) == b"x"
                client.close()
                served += 1

        work = [asyncio.ensure_future(comes()) for _ in range(4)]
        for nth in range(20):
            await one.forwarder.reload(parse_config(f"max-connections {100 + nth}\n{one.text}"))
            await until(lambda least=served + 2: served >= least, "connections between two reloads")
        ends.set()
        await asyncio.gather(*work)
