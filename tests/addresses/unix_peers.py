"""The two parties of a connection over unix sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from tests.peers import echo


class UnixPeer:
    """One end of a connection over a unix socket, with the calls of `tests.peers.Peer`."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.setblocking(False)

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def read(self, count: int) -> bytes:
        out = bytearray()
        loop = asyncio.get_running_loop()
        while len(out) < count and (piece := await loop.sock_recv(self.sock, min(1 << 16, count - len(out)))):
            out += piece
        return bytes(out)

    async def read_all(self) -> bytes:
        return await self.read(1 << 40)

    def half_close(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.sock.close()


def sockaddr(host: str) -> str:
    """The socket address of `unix:/path` or `unix:@name`."""
    place = host.removeprefix("unix:")
    return "\0" + place[1:] if place.startswith("@") else place


async def unix_dial(host: str | Path) -> UnixPeer:
    """A client connected to `unix:/path`, `unix:@name`, or a path."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, sockaddr(str(host)))
    except BaseException:
        sock.close()
        raise
    return UnixPeer(sock)


@contextlib.asynccontextmanager
async def unix_server(
    host: str | Path, handle: Callable[..., Awaitable[None]] = echo, backlog: int = 128
) -> AsyncIterator[socket.socket]:
    """A server on a unix socket; `handle` runs for each connection."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.setblocking(False)
        listener.bind(sockaddr(str(host)))
        listener.listen(backlog)

        async def serve(peer: UnixPeer) -> None:
            try:
                await handle(peer)
            finally:
                peer.close()

        async def accept() -> None:
            while True:
                sock, _ = await loop.sock_accept(listener)
                tasks.add(loop.create_task(serve(UnixPeer(sock))))

        accepting = loop.create_task(accept())
        try:
            yield listener
        finally:
            for task in (accepting, *tasks):
                task.cancel()
            await asyncio.gather(accepting, *tasks, return_exceptions=True)
