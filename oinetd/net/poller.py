"""One edge-triggered epoll for all sockets of the Python lane, driven by a single reader on the event loop.

The loop's own readers and writers are not used: each pause and resume would be a registration (on uvloop a handle is
created and closed), and the loop does not report a reset of a socket that is not being read. Here each descriptor is
registered once, for all events, and never modified; the state machine that owns the descriptor interprets the events.
One wake-up of the loop serves a batch of sockets.

Events are hints. A descriptor may be closed and its number reused within one batch, so a handler must treat each event
as "try", and must continue until EAGAIN: no second event comes for the same bytes.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections import deque
from collections.abc import Callable

__all__ = ["ALARM", "ERROR", "LEVEL_READ", "READABLE", "WRITABLE", "Poller", "has_failed"]

ERROR = select.EPOLLERR | select.EPOLLHUP
ALARM = ERROR | select.EPOLLRDHUP | select.EPOLLPRI
"""An event other than data: a FIN, a reset, an urgent byte. A short read then does not mean an empty queue."""
READABLE = select.EPOLLIN | ALARM
WRITABLE = select.EPOLLOUT | ERROR

_EVERYTHING = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLPRI | select.EPOLLET
LEVEL_READ = select.EPOLLIN
"""Level-triggered, read only: for UDP sockets. Edge-triggered, each sent datagram would be an event; level-triggered,
a socket can stop after one batch and let the others take their turn."""
BATCH = 256
"""Events handled in one wake-up; other callbacks of the loop run in between."""
TURNS = 32
"""Flows that continue before the loop polls its sockets again: with many bulk flows a small message waits for this
number of them, not for all. A turn moves up to 256 KiB, so the cost of the poll is negligible."""


def has_failed(sock: socket.socket, events: int) -> bool:
    """Whether `events` say that the connection is gone. HUP of a unix socket is only that its peer has closed."""
    return bool(events & ERROR) and not (sock.family == socket.AF_UNIX and not events & select.EPOLLERR)


class Poller:
    """Calls a handler for the events of its descriptor; belongs to one running loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], object]] = {}
        self._again: deque[Callable[[], object]] = deque()
        loop.add_reader(self._epoll.fileno(), self._dispatch)

    def watch(self, fd: int, handler: Callable[[int], object], events: int = _EVERYTHING) -> None:
        """Call `handler(events)` from now on; a descriptor that is ready already causes a first event.

        Raises `OSError` if the kernel's limit of epoll watches is reached.
        """
        if fd in self._handlers:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def forget(self, fd: int) -> None:
        """Stop calling the handler: the descriptor gets another owner. A second call does nothing."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def closing(self, fd: int) -> None:
        """Stop calling the handler. The caller closes the descriptor next, which removes it from the epoll."""
        self._handlers.pop(fd, None)

    def again(self, turn: Callable[[], object]) -> None:
        """Call `turn` after the other callbacks: for work that stopped at its budget, because no event will come."""
        if not self._again:
            self._loop.call_soon(self._take_turns)
        self._again.append(turn)

    def epolls(self) -> list[int]:
        """The descriptor of the epoll, if it is open."""
        return [] if self._epoll.closed else [self._epoll.fileno()]

    def close(self) -> None:
        """Detach from the loop. No handler is called afterwards."""
        if not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._handlers.clear()
            self._again.clear()

    def _dispatch(self) -> None:
        handlers = self._handlers
        for fd, events in self._epoll.poll(0, BATCH):
            handler = handlers.get(fd)
            if handler is not None:
                try:
                    handler(events)
                except Exception as error:
                    # The other handlers of the batch must still run: these events come only once.
                    self._report(error, handler)

    def _take_turns(self) -> None:
        # Only turns that were queued before: a flow that asks again waits until ready sockets were served.
        for _ in range(min(len(self._again), TURNS)):
            turn = self._again.popleft()
            try:
                turn()
            except Exception as error:
                self._report(error, turn)
        if self._again:
            self._loop.call_soon(self._take_turns)

    def _report(self, error: Exception, callback: object) -> None:
        self._loop.call_exception_handler({
            "message": f"exception in {callback!r}",
            "exception": error,
        })  # fmt: skip
