"""A write that fails on a connection which is otherwise sound: no event of the kernel follows, and the relay ends."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Any

from oinetd.core.engine import Meter
from oinetd.core.record import Ending
from oinetd.lanes.python.relay import PortableEngine
from oinetd.model import Settings
from oinetd.net.poller import Poller
from tests.peers import Peer, tcp_pair


class NoRoom(socket.socket):
    """A socket that the kernel has no memory for."""

    def send(self, *_: Any) -> int:
        raise OSError(errno.ENOBUFS, "No buffer space available")


async def test_it_ends_with_a_reset_after_what_came_before() -> None:
    loop = asyncio.get_running_loop()
    poller = Poller(loop)
    engine = PortableEngine(loop, poller)
    client, client_near = tcp_pair()
    upstream, upstream_near = tcp_pair()
    far = Peer(client)
    try:
        failing = NoRoom(fileno=upstream_near.detach())
        await Peer(upstream).send(b"before")
        await far.send(b"lost")
        async with asyncio.timeout(30):
            result = await engine.relay(client_near, failing, Settings(), Meter())
            assert await far.read_to_reset() == b"before"
        assert (result.ending, result.errno) == (Ending.UPSTREAM_RESET, errno.ENOBUFS)
    finally:
        client.close()
        upstream.close()
        await engine.close()
        poller.close()
