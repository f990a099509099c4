"""Sessions that one forwarder lets go of and another one goes on with."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import pytest

from oinetd import Forwarder, SessionRecord, parse_config
from oinetd.core.engine import Carried, Meter
from oinetd.core.record import Ending
from oinetd.lanes.native.listener import ReactorDatagrams
from oinetd.lanes.native.plane import available
from oinetd.model import Settings
from tests.peers import Peer, dial, free_port, until
from tests.udp.rig import Party

ENGINES = ["python"] if available() else ["python", "auto"]


async def admit(record: SessionRecord) -> bool:
    """With a hook, the Python lane accepts; the reactors relay if they may."""
    return True


@asynccontextmanager
async def two(text: str, hook: Any = admit) -> AsyncIterator[tuple[Forwarder, Forwarder, list[SessionRecord]]]:
    """A forwarder that serves, and one that has its listener and serves nothing yet; what the second one has closed."""
    closed: list[SessionRecord] = []
    async with Forwarder(parse_config(text), admit=hook) as old:
        copies = [sock.dup() for sock in old.moves.sockets()]
        new = Forwarder(parse_config(text), admit=hook, on_close=closed.append, lent=copies, hold_back=True)
        async with new:
            yield old, new, closed


@asynccontextmanager
async def far_end() -> AsyncIterator[tuple[str, Callable[[], Awaitable[Peer]], ExitStack]]:
    """A server: its place as a rule has it, its next connection, and what is closed in the end."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as sock, ExitStack() as stack:
        sock.setblocking(False)

        async def accepted() -> Peer:
            connection, _ = await loop.sock_accept(sock)
            peer = Peer(connection)
            stack.callback(peer.close)
            return peer

        yield "{} {}".format(*sock.getsockname()), accepted, stack


def carry(departing: Any, new: Forwarder) -> Any:
    """What the other process gets: copies of the descriptors, bytes, and a text."""
    fds = tuple(os.dup(fd) for fd in departing.descriptors)
    begin = new.moves.adopt(json.loads(json.dumps(departing.state())), fds, departing.pending)
    if begin is None:
        for fd in fds:
            os.close(fd)
    return begin


async def all_out(forwarder: Forwarder) -> Any:
    """Its only session, once it can move."""
    found: list[Any] = []

    def out() -> bool:
        found.extend(forwarder.moves.take_out(10)[0])
        return bool(found)

    await until(out)
    (departing,) = found
    return departing


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_connection_of_the_python_lane_goes_on(engine: str) -> None:
    async with far_end() as (place, accepted, stack):
        port = free_port()
        async with two(f"engine {engine}\n127.0.0.1 {port} {place}\n") as (old, new, closed):
            client = await dial(("127.0.0.1", port))
            stack.callback(client.close)
            far = await accepted()
            await client.send(b"before")
            assert await far.read(6) == b"before"
            (record,) = old.sessions()
            departing = await all_out(old)
            await client.send(b"meanwhile")
            begin = carry(departing, new)
            departing.release()
            begin()
            assert await far.read(9) == b"meanwhile"
            await far.send(b"answer")
            assert await client.read(6) == b"answer"
            await until(lambda: not old.sessions())
            (after,) = new.sessions()
            assert (after.id, after.started, after.engine) == (record.id, record.started, record.engine)
            assert (after.client_port, after.upstream_port) == (record.client_port, record.upstream_port)
            await finish(client, far)
            await until(lambda: bool(closed))
            assert (closed[0].bytes_up, closed[0].bytes_down, closed[0].id) == (15, 6, record.id)
            stats = new.stats()
            assert (stats.accepted, stats.live, old.stats().accepted) == (1, 0, 0)


@pytest.mark.parametrize("engine", ENGINES)
async def test_one_that_comes_back_or_is_killed_on_its_way(engine: str) -> None:
    async with far_end() as (place, accepted, stack):
        port = free_port()
        async with two(f"engine {engine}\n127.0.0.1 {port} {place}\n") as (old, _, _closed):
            client = await dial(("127.0.0.1", port))
            stack.callback(client.close)
            far = await accepted()
            await client.send(b"before")
            assert await far.read(6) == b"before"
            departing = await all_out(old)
            await client.send(b"meanwhile")
            old.moves.put_back(departing)
            assert await far.read(9) == b"meanwhile"
            departing = await all_out(old)
            assert old.kill(departing.id)
            old.moves.put_back(departing)
            with pytest.raises(ConnectionResetError):
                await client.read_all()
            await until(lambda: not old.sessions())


@pytest.mark.parametrize("change", [{"id": "x"}, {"client": 7}, {"relayed": {}}, {"counts": [1]}, {"tries": [1]}])
async def test_what_is_no_session_is_refused(change: dict[str, Any]) -> None:
    async with far_end() as (place, accepted, stack):
        port = free_port()
        async with two(f"engine python\n127.0.0.1 {port} {place}\n") as (old, new, _):
            client = await dial(("127.0.0.1", port))
            stack.callback(client.close)
            far = await accepted()
            await client.send(b"x")
            assert await far.read(1) == b"x"
            departing = await all_out(old)
            with pytest.raises((ValueError, TypeError, KeyError)):
                new.moves.adopt({**departing.state(), **change}, departing.descriptors, (b"", b""))
            with pytest.raises(ValueError, match="not the sockets"):
                new.moves.adopt(departing.state(), departing.descriptors[:1], (b"", b""))
            old.moves.put_back(departing)
            await client.send(b"y")
            assert await far.read(1) == b"y"
            assert not new.sessions()


async def finish(client: Peer, far: Peer) -> None:
    client.sock.shutdown(socket.SHUT_WR)
    assert await far.read_all() == b""
    far.sock.shutdown(socket.SHUT_WR)
    assert await client.read_all() == b""


@pytest.mark.skipif(bool(available()), reason=available())
@pytest.mark.parametrize("coming", [True, False])
async def test_the_end_of_a_udp_session_that_no_reactor_can_take_is_reported(
    coming: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no room for a watch")

    port = free_port()
    with Party() as upstream, Party() as client:
        text = f"127.0.0.1 {port}/udp 127.0.0.1 {upstream.address[1]}/udp\n"
        async with two(text, None) as (old, new, closed):
            client.send(b"question", ("127.0.0.1", port))
            await upstream.receive()
            (departing,) = old.moves.take_out_datagrams(10)
            monkeypatch.setattr(ReactorDatagrams, "put_in", refuse)
            if coming:
                begin = carry(departing, new)
                departing.release()
                begin()
            else:
                old.moves.put_back(departing)
            stats = (new if coming else old).stats()
            assert stats.live == 0
            assert [dict(each.endings) for each in stats.rules.values()] == [{Ending.ABORTED: 1}]
            if coming:
                (record,) = closed
                said = (record.ending, record.errno, record.bytes_up, record.datagrams_up, record.upstream_port)
                assert said == (Ending.ABORTED, errno.ENOSPC, 8, 1, upstream.address[1])


@pytest.mark.parametrize("engine", ENGINES)
async def test_udp_sessions_go_on_or_come_back(engine: str) -> None:
    """With the port that the server knows; what comes meanwhile waits."""
    port = free_port()
    with Party() as upstream, Party() as one, Party() as other:
        text = f"engine {engine}\n127.0.0.1 {port}/udp 127.0.0.1 {upstream.address[1]}/udp\n"
        async with two(text, None) as (old, new, closed):
            senders = []
            for client in (one, other):
                client.send(b"question", ("127.0.0.1", port))
                senders.append((await upstream.receive())[1])
            departing = old.moves.take_out_datagrams(10)
            assert len(departing) == 2
            assert not old.moves.take_out_datagrams(10)
            for client, sender in zip((one, other), senders, strict=True):
                client.send(b"meanwhile", ("127.0.0.1", port))
                upstream.send(b"answer", sender)
            for each in departing:
                old.moves.put_back(each)
            old.moves.resume()
            for client in (one, other):
                assert (await client.receive())[0] == b"answer"
                assert (await upstream.receive())[0] == b"meanwhile"
            departing = old.moves.take_out_datagrams(10)
            bad = {**departing[0].state(), "key": "00"}
            with pytest.raises(ValueError, match="not a"):
                new.moves.adopt(bad, departing[0].descriptors, (b"", b""))
            elsewhere = {**departing[0].state(), "socket": "127.0.0.1 9/udp"}
            assert new.moves.adopt(elsewhere, departing[0].descriptors, (b"", b"")) is None
            for each in departing:
                begin = carry(each, new)
                each.release()
                begin()
            new.moves.start_datagrams()
            for client, sender in zip((one, other), senders, strict=True):
                client.send(b"again", ("127.0.0.1", port))
                assert await upstream.receive() == (b"again", sender)
            await until(lambda: [each.datagrams_up for each in new.sessions()] == [3, 3])
            assert not old.sessions()
            stats = new.stats()
            assert (stats.accepted, stats.live, stats.datagrams_up) == (2, 2, 2)
        assert sorted(each.datagrams_up for each in closed) == [3, 3]


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_relay_that_cannot_go_on_leaves_no_socket_open(engine: str) -> None:
    async with two(f"engine {engine}\n127.0.0.1 {free_port()} 127.0.0.1 9\n") as (old, _, _closed):
        (listener,) = old.moves.listeners.values()
        pairs = [socket.socketpair() for _ in range(2)]
        client, upstream = (pair[0] for pair in pairs)
        with pytest.raises(KeyError):
            await listener.service.engine.relay(client, upstream, Settings(), Meter(), Carried({}, (b"", b"")))
        assert (client.fileno(), upstream.fileno()) == (-1, -1)
        for _, peer in pairs:
            peer.close()
