"""udp to tcp and tcp to udp: bytes follow bytes in the connection, each read of it is a datagram."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Any

import pytest

from oinetd import Ending
from oinetd.lanes.python.udp import plane
from oinetd.lanes.python.udp.held import HELD_DATAGRAMS_MAX, HELD_SESSION_BYTES_MAX
from oinetd.lanes.python.udp.leg import PIECE_BYTES
from oinetd.net.options import ConnectOptions
from tests.daemon.process import own_address
from tests.peers import Peer, dial, echo, pattern, server, until
from tests.udp import rig
from tests.udp.rig import Party, serving

# udp to tcp


async def test_datagrams_follow_each_other_in_a_connection(engine: str) -> None:
    sent = [pattern(size, index) for index, size in enumerate((5, 0, 1400, 1, 9000))]
    whole = b"".join(sent)
    got: list[bytes] = []

    async def collect(peer: Peer) -> None:
        got.append(await peer.read(len(whole)))
        await peer.read_to_reset()

    with Party() as client:
        async with server(collect) as (host, port), serving(f"{engine}127.0.0.1 0/udp {host} {port}\n") as served:
            for data in sent:
                client.send(data, served.address)
            await until(lambda: served.forwarder.sessions() and served.forwarder.sessions()[0].datagrams_up == 5)
            (record,) = served.forwarder.sessions()
            assert record.bytes_up == len(whole)
            assert record.upstream_port == port
            await until(lambda: got)
            served.forwarder.kill(record.id)
    assert got == [whole]


async def test_each_read_is_a_datagram(engine: str) -> None:
    data = pattern(100_000)

    async def tell(peer: Peer) -> None:
        assert await peer.read(1) == b"?"
        await peer.send(data)
        await peer.read_to_reset()

    with Party() as client:
        async with server(tell) as (host, port), serving(f"{engine}127.0.0.1 0/udp {host} {port}\n") as served:
            client.send(b"?", served.address)
            got = []
            while len(b"".join(got)) < len(data):
                answer, address = await client.receive()
                assert address == served.address
                got.append(answer)
            assert b"".join(got) == data
            assert max(map(len, got)) <= PIECE_BYTES
            assert served.forwarder.sessions()[0].datagrams_down == len(got)


async def test_the_session_ends_with_the_connection(engine: str) -> None:
    async def once(peer: Peer) -> None:
        await peer.send(await peer.read(5))

    with Party() as client:
        async with server(once) as (host, port), serving(f"{engine}127.0.0.1 0/udp {host} {port}/tcp\n") as served:
            for turn in (1, 2):
                assert await client.ask(b"hello", served.address) == b"hello"
                await until(lambda turn=turn: len(served.closed) == turn)
            assert [record.ending for record in served.closed] == [Ending.UPSTREAM_CLOSED] * 2


async def test_a_reset_of_the_connection(engine: str) -> None:
    async def fail(peer: Peer) -> None:
        await peer.read(1)
        peer.reset()

    with Party() as client:
        async with server(fail) as (host, port), serving(f"{engine}127.0.0.1 0/udp {host} {port}\n") as served:
            client.send(b"x", served.address)
            await until(lambda: served.closed)
            assert (served.closed[0].ending, served.closed[0].errno) == (Ending.UPSTREAM_RESET, errno.ECONNRESET)


async def test_silence_is_a_fin(engine: str) -> None:
    got: list[bytes] = []

    async def collect(peer: Peer) -> None:
        got.append(await peer.read_all())

    with Party() as client:
        async with server(collect) as (host, port):
            rule = f"127.0.0.1 0/udp {host} {port} [timeout=0.1]\n"
            async with serving(engine + rule) as served:
                client.send(b"all of it", served.address)
                await until(lambda: got)
                assert got == [b"all of it"]
                assert served.closed[0].ending is Ending.IDLE_TIMEOUT


async def test_no_connection_is_to_be_had(engine: str) -> None:
    back = own_address()
    with Party() as client:
        async with serving(f"{engine}127.0.0.1 0/udp {back} 7000\n") as served:
            client.send(b"x", served.address)
            await until(lambda: served.closed)
            (record,) = served.closed
            assert (record.ending, record.errno) == (Ending.CONNECT_FAILED, errno.ECONNREFUSED)
            assert record.datagrams_lost == 1
            assert served.forwarder.stats().failed == 1


async def test_what_a_connection_does_not_take_is_bounded(engine: str) -> None:
    go_on = asyncio.Event()
    got = bytearray()

    async def stall(peer: Peer) -> None:
        await go_on.wait()
        got.extend(await peer.read_all())

    with Party() as client:
        async with server(stall) as (host, port):
            rule = f"127.0.0.1 0/udp {host} {port} [timeout=1]\n"
            async with serving(engine + rule) as served:
                data, sent = pattern(8192), 0
                while not (sessions := served.forwarder.sessions()) or not sessions[0].datagrams_lost:
                    client.send(data, served.address)
                    sent += 1
                    await asyncio.sleep(0)
                go_on.set()
                await until(lambda: served.closed)
                (record,) = served.closed
                assert record.datagrams_up == sent - record.datagrams_lost
                assert record.bytes_up == len(data) * record.datagrams_up
    # Whole datagrams are missing, never a part of one.
    assert bytes(got) == data * record.datagrams_up


async def test_what_waits_for_a_connection_is_bounded(engine: str) -> None:
    # A full queue of a listener that never accepts: connecting takes for ever.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as deaf, Party() as client:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        with socket.create_connection(deaf.getsockname()):
            rule = f"127.0.0.1 0/udp 127.0.0.1 {deaf.getsockname()[1]}\n"
            async with serving(f"{engine}connect-timeout 1h\n{rule}") as served:
                for _ in range(HELD_DATAGRAMS_MAX + 44):
                    client.send(b"", served.address)
                    await asyncio.sleep(0)
                await until(lambda: served.forwarder.sessions()[0].datagrams_lost == 44)
                (record,) = served.forwarder.sessions()
                served.forwarder.kill(record.id)
                assert served.closed[0].ending is Ending.ABORTED
    assert HELD_SESSION_BYTES_MAX >= 65507


async def test_two_clients_two_connections(engine: str) -> None:
    with Party() as one, Party() as other:
        async with server(echo) as (host, port), serving(f"{engine}0.0.0.0 0/udp {host} {port}\n") as served:
            for client, word in ((one, b"one"), (other, b"other"), (one, b"two")):
                assert await client.ask(word, ("127.0.0.6", served.port)) == word
            assert len(served.opened) == 2


# tcp to udp


async def test_pieces_become_datagrams(engine: str) -> None:
    data = pattern(200_000)
    with Party() as upstream:
        async with serving(f"{engine}127.0.0.1 0 127.0.0.1 {upstream.address[1]}/udp\n") as served:
            client = await dial(served.address)
            await client.send(data)
            got = []
            while len(b"".join(got)) < len(data):
                piece, address = await upstream.receive()
                assert 0 < len(piece) <= PIECE_BYTES
                got.append(piece)
            assert b"".join(got) == data
            # And back: nothing stands between the datagrams, an empty one is nothing.
            for answer in (b"one", b"", b"two", bytes(65507)):
                upstream.send(answer, address)
            assert await client.read(6 + 65507) == b"onetwo" + bytes(65507)
            client.reset()
            await until(lambda: served.closed)
            (record,) = served.closed
            assert record.ending is Ending.CLIENT_RESET
            assert (record.bytes_up, record.bytes_down) == (len(data), 6 + 65507)
            assert (record.datagrams_up, record.datagrams_down) == (len(got), 4)


async def test_connecting_sends_nothing(engine: str) -> None:
    with Party() as upstream:
        async with serving(f"{engine}127.0.0.1 0/tcp 127.0.0.1 {upstream.address[1]}/udp\n") as served:
            client = await dial(served.address)
            await client.send(b"x")
            assert (await upstream.receive())[0] == b"x"
            client.close()


async def test_answers_after_the_clients_fin(engine: str) -> None:
    with Party() as upstream:
        rule = f"127.0.0.1 0 127.0.0.1 {upstream.address[1]}/udp [timeout=0.3]\n"
        async with serving(engine + rule) as served:
            client = await dial(served.address)
            await client.send(b"question")
            client.half_close()
            question, address = await upstream.receive()
            assert question == b"question"
            upstream.send(b"an", address)
            upstream.send(b"swer", address)
            assert await client.read_all() == b"answer"
            client.close()
            await until(lambda: served.closed)
            assert served.closed[0].ending is Ending.CLIENT_CLOSED


async def test_nobody_listens_is_a_reset(engine: str) -> None:
    back = own_address()
    async with serving(f"{engine}127.0.0.1 0 {back} 7000/udp\n") as served:
        client = await dial(served.address)
        await client.send(b"x")
        assert await client.read_to_reset() == b""
        client.close()
        await until(lambda: served.closed)
        assert (served.closed[0].ending, served.closed[0].errno) == (Ending.UPSTREAM_RESET, errno.ECONNREFUSED)


@pytest.mark.parametrize(
    ("option", "ending"),
    [("idle-timeout=0.1", Ending.IDLE_TIMEOUT), ("max-lifetime=0.3", Ending.MAX_LIFETIME)],
)
async def test_a_timeout_holds_for_the_connection(engine: str, option: str, ending: Ending) -> None:
    with rig.echo() as upstream:
        rule = f"127.0.0.1 0 127.0.0.1 {upstream.address[1]}/udp [{option}]\n"
        async with serving(engine + rule) as served:
            client = await dial(served.address)
            await client.send(b"x")
            assert await client.read(1) == b"x"
            assert await client.read_to_reset() == b""
            client.close()
            await until(lambda: served.closed)
            assert served.closed[0].ending is ending


async def test_a_client_that_does_not_read(engine: str) -> None:
    """What it leaves with us is bounded; datagrams beyond that wait in the kernel, and are lost there."""
    with Party() as upstream:
        rule = f"127.0.0.1 0 127.0.0.1 {upstream.address[1]}/udp [write-stall-timeout=0.3]\n"
        async with serving(engine + rule) as served:
            client = await dial(served.address, receive_bytes=4096)
            await client.send(b"x")
            _, address = await upstream.receive()
            while not served.closed:
                upstream.send(bytes(1400), address)
                await asyncio.sleep(0)
            assert served.closed[0].ending is Ending.WRITE_STALL
            client.close()


async def test_a_connection_that_is_killed(engine: str) -> None:
    with rig.echo() as upstream:
        async with serving(f"{engine}127.0.0.1 0 127.0.0.1 {upstream.address[1]}/udp\n") as served:
            client = await dial(served.address)
            await client.send(b"x")
            assert await client.read(1) == b"x"
            served.forwarder.kill(served.forwarder.sessions()[0].id)
            assert await client.read_to_reset() == b""
            client.close()


class Narrow(socket.socket):
    """A way out that is full every other time."""

    turn = 0

    def send(self, data: Any, flags: int = 0, /) -> int:
        self.turn += 1
        if self.turn % 2:
            raise BlockingIOError(errno.EAGAIN, "full")
        return super().send(data, flags)


async def test_the_way_out_is_full(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def narrow(family: int, options: ConnectOptions) -> socket.socket:
        sock = Narrow(family, socket.SOCK_DGRAM)
        sock.setblocking(False)
        return sock

    monkeypatch.setattr(plane, "open_datagrams", narrow)
    data = pattern(300_000)
    with Party() as upstream:
        async with serving(f"{engine}127.0.0.1 0 127.0.0.1 {upstream.address[1]}/udp\n") as served:
            client = await dial(served.address)
            await client.send(data)
            client.half_close()
            got = b""
            while len(got) < len(data):
                got += (await upstream.receive())[0]
            assert got == data
            client.close()
