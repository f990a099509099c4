"""A program that forks while a forwarder runs in it: the child keeps nobody's connection open, and no port."""

from __future__ import annotations

import os
import socket

import pytest

from oinetd import Config, Forwarder, SessionRecord, Settings
from tests.forwarding import bound, exchange, rule
from tests.peers import Peer, dial, echo, server, until


async def welcome(_: SessionRecord) -> bool:
    return True


def wait_for(child: int) -> None:
    os.waitpid(child, 0)


@pytest.mark.parametrize("admit", [None, welcome])
async def test_a_child_holds_no_connection_and_no_listener(
    upstream: tuple[str, int], settings: Settings, admit: object
) -> None:
    if admit is not None and settings.engine.value == "native":
        settings = Settings()
    forwarder = Forwarder(Config(rules=(rule(upstream),), settings=settings), admit=admit)  # type: ignore[arg-type]
    await forwarder.start()
    address = bound(forwarder)
    client = await dial(address)
    assert await exchange(client)
    told, tell = os.pipe()
    gone, go = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(go)
        os.write(tell, b"x")
        os.read(gone, 1)  # lives until its parent has seen everything
        os._exit(0)
    try:
        assert os.read(told, 1) == b"x"
        assert await exchange(client), "the parent goes on"
        await forwarder.stop()
        await client.read_to_reset()
        with socket.socket() as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind(address)
            again.listen()
    finally:
        for fd in (told, tell, gone, go):
            os.close(fd)
        wait_for(child)
        client.close()


async def echo_and_finish(peer: Peer) -> None:
    """The child has a copy of this socket, too: only a shutdown is heard."""
    await echo(peer)
    peer.half_close()


async def test_the_end_of_a_connection_reaches_the_peer_while_a_child_lives(settings: Settings) -> None:
    async with (
        server(echo_and_finish) as upstream,
        Forwarder(Config(rules=(rule(upstream),), settings=settings)) as forwarder,
    ):
        client = await dial(bound(forwarder))
        assert await exchange(client)
        gone, go = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(go)
            client.close()
            os.read(gone, 1)
            os._exit(0)
        try:
            client.half_close()
            assert await client.read_all() == b""
            await until(lambda: not forwarder.sessions())
        finally:
            os.close(gone)
            os.close(go)
            wait_for(child)
            client.close()
