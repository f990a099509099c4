"""A listening socket of the admin interface: accepts, bounds the connections, and serves each.

When all places are taken, the connection that has waited longest for its client to say something is closed. So slow or
silent clients cannot keep others out.

The socket is in an epoll of its own, not in the loop's: libuv ends the process if the kernel has no memory for a watch.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from oinetd.admin.http import HttpConnection
from oinetd.admin.message import Peer, Request, Response
from oinetd.net.poller import LEVEL_READ, Poller
from oinetd.net.sockets import SHORTAGE
from oinetd.net.unix_sockets import peer_of

__all__ = ["CONNECTIONS_MAX", "CONNECTIONS_PER_SOURCE_MAX", "AdminListener"]

CONNECTIONS_MAX: Final = 32
CONNECTIONS_PER_SOURCE_MAX: Final = 8
"""Of one address over TCP."""

ACCEPTS_A_TURN: Final = 8
RETRY_S: Final = 1.0
STREAM_BYTES: Final = 16 << 10

logger = logging.getLogger("oinetd")


@dataclass(slots=True)
class _Client:
    peer: Peer
    connection: HttpConnection | None = None

    @property
    def busy(self) -> bool:
        return self.connection is not None and self.connection.busy

    def abort(self) -> None:
        if self.connection is not None:
            self.connection.abort()


class AdminListener:
    """Serves `sock` from `start` to `close`; `answer` gets each request."""

    def __init__(self, sock: socket.socket, answer: Callable[[Request], Awaitable[Response]]) -> None:
        self.sock = sock
        self._answer = answer
        self._served: dict[asyncio.Task[None], _Client] = {}
        self._paused: asyncio.TimerHandle | None = None
        self._told = False
        self._closed = False

    def start(self) -> None:
        """Accept from now on."""
        self._loop = asyncio.get_running_loop()
        self.sock.setblocking(False)
        self._poller = Poller(self._loop)
        self._poller.watch(self.sock.fileno(), self._accept, LEVEL_READ)

    @property
    def busy(self) -> bool:
        """Whether an answer is on its way to a client."""
        return any(client.busy for client in self._served.values())

    def stop_accepting(self) -> None:
        """Accept no more; answers that are under way go on."""
        self._closed = True
        if hasattr(self, "_poller"):
            self._poller.close()
        if self._paused is not None:
            self._paused.cancel()

    async def close(self) -> None:
        """Accept no more, and end all connections."""
        self.stop_accepting()
        self.sock.close()
        own = asyncio.current_task()
        for task, client in tuple(self._served.items()):
            if task is not own:
                client.abort()
                task.cancel()
        if others := [task for task in self._served if task is not own]:
            await asyncio.wait(others)

    def _accept(self, _events: int = 0) -> None:
        for _ in range(ACCEPTS_A_TURN):
            try:
                client, _ = self.sock.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                self._pause(error)
                return
            self._take(client)

    def _pause(self, error: OSError) -> None:
        if error.errno not in SHORTAGE or not self._told:
            logger.warning("admin: cannot accept: %s; trying again each second", error.strerror)
            self._told = True
        self._poller.forget(self.sock.fileno())
        self._paused = self._loop.call_later(RETRY_S, self._resume)

    def _resume(self) -> None:
        self._paused = None
        if self._closed:
            return
        try:
            self._poller.watch(self.sock.fileno(), self._accept, LEVEL_READ)
        except OSError as error:  # no memory to watch it
            self._pause(error)

    def _take(self, client: socket.socket) -> None:
        client.setblocking(False)
        try:
            peer = self._peer(client)
        except OSError:
            client.close()
            return
        if not self._make_room(peer):
            client.close()
            return
        entry = _Client(peer)
        task = self._loop.create_task(self._serve(client, entry))
        self._served[task] = entry
        task.add_done_callback(lambda done: self._ended(done, client))

    def _ended(self, task: asyncio.Task[None], client: socket.socket) -> None:
        self._served.pop(task, None)
        client.close()
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("admin: a connection failed: internal error", exc_info=error)

    def _peer(self, client: socket.socket) -> Peer:
        if client.family == socket.AF_UNIX:
            found = peer_of(client)
            return Peer(found.uid, found.pid)
        return Peer(host=client.getpeername()[0])

    def _make_room(self, peer: Peer) -> bool:
        """Whether there is a place for one more connection; the one that was silent longest may have to go."""
        waiting = [(task, each) for task, each in self._served.items() if not each.busy]
        if peer.host:
            same = [each for each in self._served.values() if each.peer.host == peer.host]
            if len(same) >= CONNECTIONS_PER_SOURCE_MAX:
                waiting = [(task, each) for task, each in waiting if each.peer.host == peer.host]
                return self._drop(waiting)
        return len(self._served) < CONNECTIONS_MAX or self._drop(waiting)

    def _drop(self, waiting: list[tuple[asyncio.Task[None], _Client]]) -> bool:
        if not waiting:
            return False
        task, client = waiting[0]
        del self._served[task]
        client.abort()
        task.cancel()
        return True

    async def _serve(self, client: socket.socket, entry: _Client) -> None:
        reader = asyncio.StreamReader(STREAM_BYTES, self._loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=self._loop)
        transport, _ = await self._loop.connect_accepted_socket(lambda: protocol, client)
        transport.set_write_buffer_limits(high=STREAM_BYTES)
        writer = asyncio.StreamWriter(transport, protocol, reader, self._loop)
        entry.connection = HttpConnection(reader, writer, entry.peer, self._answer)
        with contextlib.suppress(asyncio.CancelledError):
            await entry.connection.run()
