"""TCP listeners that a reload or a drain took away: a client that the kernel let in is still served.

Handshakes whose last packet is under way complete, the queue is emptied as far as there is room, then the socket is
closed.
"""

from __future__ import annotations

import asyncio
import socket

from oinetd.lanes.python.listener import StreamListener
from oinetd.net.accept_queue import queue_length, stop_queueing

__all__ = ["Retired"]

HANDSHAKE_S = 0.5
"""How long a listener waits for the last part of handshakes that began with it: a round trip of nearly every client,
and short enough for somebody who wants the address for another program."""
QUEUE_S = 10.0
"""How long those in the queue of a listener that has gone may wait for a place if a limit is reached."""
QUEUE_LOOK_S = 0.05


class Retired:
    """The listeners that still wait, for handshakes or for places."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: dict[StreamListener, asyncio.TimerHandle] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def take(self, listener: StreamListener, *, ours: bool, handshakes: bool) -> None:
        """Serve the queue of a listener that has not been started, and close its socket.

        If a limit is reached clients wait for a place, at most `QUEUE_S`. `ours` is False for a descriptor of a
        socket that somebody else holds too, and that stays as it is. `handshakes` says to wait for those that are under
        way, for `HANDSHAKE_S`: to their clients the connection is there already.
        """
        deaf = ours and stop_queueing(listener.sock)
        listener.empty_queue()
        if deaf and (handshakes or queue_length(listener.sock)):
            listener.start()
            now = self._loop.time()
            until = now + HANDSHAKE_S if handshakes else now
            self._waiting[listener] = self._loop.call_at(until, self._look, listener, now + QUEUE_S)
        else:
            listener.sock.close()

    @property
    def sockets(self) -> list[socket.socket]:
        """Those that are still open."""
        return [listener.sock for listener in self._waiting]

    def close(self, *, only_unix: bool = False) -> None:
        """Have done with all of them, or with those of unix sockets; their addresses are free then."""
        for listener in tuple(self._waiting):
            if not only_unix or listener.sock.family == socket.AF_UNIX:
                self._close(listener)

    def _look(self, listener: StreamListener, give_up: float) -> None:
        if self._loop.time() >= give_up or not queue_length(listener.sock):
            self._close(listener)
            return
        # There is no room: it waits for some. A place given back without a word is seen at the next look.
        listener.start()
        self._waiting[listener] = self._loop.call_later(QUEUE_LOOK_S, self._look, listener, give_up)

    def _close(self, listener: StreamListener) -> None:
        self._waiting.pop(listener).cancel()
        listener.release()
        listener.empty_queue()
        listener.sock.close()
