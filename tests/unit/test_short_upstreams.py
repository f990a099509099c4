"""Upstreams that take a connection, speak and reset it before anybody has looked: what they said is delivered."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from oinetd import Ending, Forwarder, SessionRecord, parse_config
from oinetd.lanes.native.plane import available
from tests.peers import until
from tests.udp.rig import Party

CLIENTS = 400
RESET = struct.pack("ii", 1, 0)
WORD = b"421 too many connections\r\n" * 4


@contextlib.contextmanager
def short_spoken(word: bytes, *, finish: bool = False) -> Iterator[tuple[str, int]]:
    """A server that says `word`, and perhaps FIN, and resets; in a thread, so that it is faster than the loop."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:

        def serve() -> None:
            while True:
                with contextlib.suppress(ConnectionError):
                    sock, _ = listener.accept()
                    with sock:
                        if sock.getpeername() == me.getsockname():
                            return
                        sock.sendall(word)
                        if finish:
                            sock.shutdown(socket.SHUT_WR)
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

        me = socket.socket()
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            me.bind(("127.0.0.1", 0))
            me.connect(listener.getsockname())
            thread.join()
            me.close()


async def hear(address: tuple[str, int]) -> bytes:
    """What a client gets up to the end. It does not ask what became of its connect: that empties the queue."""
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setblocking(False)
        sock.connect_ex(address)
        connected = asyncio.Event()
        loop.add_writer(sock.fileno(), connected.set)
        await connected.wait()
        loop.remove_writer(sock.fileno())
        heard = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := await loop.sock_recv(sock, 4096):
                heard += piece
        return heard


async def welcome(_: SessionRecord) -> bool:
    return True


@pytest.fixture(params=["native lane", "native engine", "python"])
def lane(request: pytest.FixtureRequest) -> str:
    if request.param != "python" and available():
        pytest.skip(f"the extension: {available()}")
    return str(request.param)


@pytest.mark.parametrize("finish", [False, True], ids=["reset", "fin and reset"])
async def test_what_they_said_is_delivered(lane: str, finish: bool) -> None:
    closed: list[SessionRecord] = []

    with short_spoken(WORD, finish=finish) as (host, port):
        engine = "python" if lane == "python" else "auto"
        config = parse_config(f"engine {engine}\n127.0.0.1 0 {host} {port}\n")
        admit = welcome if lane == "native engine" else None
        async with Forwarder(config, admit=admit, on_close=closed.append) as forwarder:
            address = forwarder.addresses[0].host, forwarder.addresses[0].port
            for _ in range(4):
                heard = await asyncio.gather(*(hear(address) for _ in range(CLIENTS // 4)))
                assert set(heard) == {WORD}
            await until(lambda: len(closed) == CLIENTS, "the records")
            assert forwarder.stats().failed == 0, "the destination took every connection"
    endings = {(record.ending, record.errno) for record in closed}
    assert endings <= {(Ending.UPSTREAM_RESET, errno.ECONNRESET)} | ({(Ending.UPSTREAM_CLOSED, 0)} if finish else set())
    assert {record.bytes_down for record in closed} == {len(WORD)}


async def test_who_said_nothing_has_reset_the_connection_and_not_refused_it(lane: str) -> None:
    closed: list[SessionRecord] = []
    with short_spoken(b"") as (host, port):
        config = parse_config(f"engine {'python' if lane == 'python' else 'auto'}\n127.0.0.1 0 {host} {port}\n")
        admit = welcome if lane == "native engine" else None
        async with Forwarder(config, admit=admit, on_close=closed.append) as forwarder:
            address = forwarder.addresses[0].host, forwarder.addresses[0].port
            for _ in range(20):
                assert await hear(address) == b""
            await until(lambda: len(closed) == 20, "the records")
            assert forwarder.stats().failed == 0
    assert {(record.ending, record.errno) for record in closed} == {(Ending.UPSTREAM_RESET, errno.ECONNRESET)}


async def test_over_udp() -> None:
    closed: list[SessionRecord] = []
    with short_spoken(WORD) as (host, port):
        config = parse_config(f"127.0.0.1 0/udp {host} {port}/tcp\n")
        async with Forwarder(config, on_close=closed.append) as forwarder:
            address = forwarder.addresses[0].host, forwarder.addresses[0].port
            for _ in range(20):
                with Party() as client:
                    client.send(b"", address)
                    assert (await client.receive())[0] == WORD
            await until(lambda: len(closed) == 20, "the records")
            assert forwarder.stats().failed == 0
