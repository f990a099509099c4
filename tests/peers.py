"""The two parties of a connection, as tests drive them: real sockets that stall, reset and half-close on command."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import itertools
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

PIECE = 64 * 1024
ETHERNET_SEGMENT = 1460


def pattern(count: int, seed: int = 0) -> bytes:
    """`count` bytes in which no piece looks like another, so that a lost, doubled or moved byte shows."""
    block = hashlib.shake_256(seed.to_bytes(8, "big")).digest(min(count, 1 << 20))
    if count <= len(block):
        return block[:count]
    out = bytearray()
    turn = 0
    while len(out) < count:
        out += block
        out[-8:] = turn.to_bytes(8, "big")
        turn += 1
    return bytes(out[:count])


class Peer:
    """One end of a TCP connection; every call may wait for the network and for nothing else."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def read(self, count: int) -> bytes:
        """Exactly `count` bytes; fewer where the other end closed."""
        out = bytearray()
        loop = asyncio.get_running_loop()
        while len(out) < count and (piece := await loop.sock_recv(self.sock, min(PIECE, count - len(out)))):
            out += piece
        return bytes(out)

    async def read_all(self) -> bytes:
        """Everything up to the FIN. Raises `ConnectionResetError` for a reset."""
        out = bytearray()
        loop = asyncio.get_running_loop()
        while piece := await loop.sock_recv(self.sock, PIECE):
            out += piece
        return bytes(out)

    async def read_to_reset(self) -> bytes:
        """Everything up to a reset; fails where a FIN comes instead."""
        out = bytearray()
        loop = asyncio.get_running_loop()
        try:
            while piece := await loop.sock_recv(self.sock, PIECE):
                out += piece
        except ConnectionResetError:
            return bytes(out)
        raise AssertionError(f"a FIN after {len(out)} bytes, where a reset was due")

    def half_close(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        self.sock.close()

    def urgent(self, byte: bytes) -> None:
        self.sock.send(byte, socket.MSG_OOB)


def tcp_pair(receive_bytes: int = 0, family: int = socket.AF_INET) -> tuple[socket.socket, socket.socket]:
    """Two connected TCP sockets over loopback, non-blocking; `receive_bytes` makes the first one's window small."""
    host = "::1" if family == socket.AF_INET6 else "127.0.0.1"
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        # Loopback's segments of 64 KiB do not fit into a small window: senders would wait for the persist timer.
        if receive_bytes:
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, ETHERNET_SEGMENT)
        listener.bind((host, 0))
        listener.listen(1)
        first = socket.socket(family, socket.SOCK_STREAM)
        if receive_bytes:
            first.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, ETHERNET_SEGMENT)
            first.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        first.connect(listener.getsockname())
        second, _ = listener.accept()
    for sock in (first, second):
        sock.setblocking(False)
    return first, second


WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
"""The number of this process among those that run tests at the same time."""

PORTS_PER_WORKER = 2000
_next_port = itertools.cycle(range(PORTS_PER_WORKER))


def free_range(count: int) -> int:
    """The first of `count` ports in a row that nobody has, neither for TCP nor for UDP, on any address.

    They are below those that the kernel chooses from, and each worker has its own: so nobody takes one between this
    call and the bind. The next call answers others.
    """
    base = 11_000 + PORTS_PER_WORKER * WORKER
    for _ in range(PORTS_PER_WORKER // count):
        first = base + next(_next_port)
        for _ in range(count - 1):
            next(_next_port)
        if first + count <= base + PORTS_PER_WORKER and all(_is_free(port) for port in range(first, first + count)):
            return first
    raise AssertionError("no range of free ports")


def free_port() -> int:
    """A port that nobody has, as `free_range` says."""
    return free_range(1)


def _is_free(port: int) -> bool:
    """Whether nothing has the port, not even a connection that has ended."""
    with contextlib.ExitStack() as held:
        try:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                sock = held.enter_context(socket.socket(socket.AF_INET6, kind))
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                sock.bind(("::", port))
        except OSError:
            return False
    return True


async def until(condition: Callable[[], Any], what: str = "the condition", patience_s: float = 30.0) -> Any:
    """Wait for `condition()` to be true, and answer it. The patience only bounds a test that has failed."""
    deadline = asyncio.get_running_loop().time() + patience_s
    while not (value := condition()):
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"waited {patience_s} s in vain for {what}")
        await asyncio.sleep(0.002)
    return value


@contextlib.asynccontextmanager
async def server(
    handle: Callable[[Peer], Awaitable[None]],
    family: int = socket.AF_INET,
    backlog: int = 1024,
    place: tuple[str, int] | None = None,
) -> AsyncIterator[tuple[str, int]]:
    """A server on a free loopback port, or at `place`; `handle` runs for each connection, and all are awaited."""
    host = "::1" if family == socket.AF_INET6 else "127.0.0.1"
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setblocking(False)
    if place is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(place or (host, 0))
    listener.listen(backlog)
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()
    faults: list[BaseException] = []

    async def serve(peer: Peer) -> None:
        try:
            await handle(peer)
        finally:
            peer.close()

    def ended(task: asyncio.Task[None]) -> None:
        tasks.discard(task)
        if not task.cancelled() and (fault := task.exception()) is not None:
            faults.append(fault)

    async def accept() -> None:
        while True:
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE):
                    raise
                await asyncio.sleep(0.002)  # a test that takes all descriptors takes those of its server, too
                continue
            task = loop.create_task(serve(Peer(sock)))
            tasks.add(task)
            task.add_done_callback(ended)

    accepting = loop.create_task(accept())
    try:
        yield listener.getsockname()[:2]
    finally:
        accepting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await accepting
        listener.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if faults:
        raise faults[0]


async def echo(peer: Peer) -> None:
    """Give everything back until the FIN, then close. A reset is an end like others."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(ConnectionError):
        while piece := await loop.sock_recv(peer.sock, PIECE):
            await loop.sock_sendall(peer.sock, piece)


async def dial(address: tuple[str, int], receive_bytes: int = 0, source: str = "") -> Peer:
    """A client connected to `address`."""
    sock = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        if receive_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        if source:
            sock.bind((source, 0))
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return Peer(sock)
