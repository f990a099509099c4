"""One edge-triggered epoll for all sockets of the Python lane, driven by a single reader on the event loop.

Why not the loop's own readers and writers: every pause and resume would be a registration there (on uvloop a handle
made and closed again), and the loop tells nothing of resets on a socket that nobody reads at the moment. Here each
descriptor is registered once, for everything, and is never modified; what an event means is up to the state machine
that owns the descriptor. One wake of the loop serves a batch of sockets.

Events are hints. A descriptor may be closed and its number used again within one batch, so a handler must treat each
event as "try", and it must go on trying until the kernel says EAGAIN: no second event comes for the same bytes.
"""

from __future__ import annotations

import asyncio
import select
from collections import deque
from collections.abc import Callable

__all__ = ["ALARM", "ERROR", "LEVEL_READ", "READABLE", "WRITABLE", "Poller"]

ERROR = select.EPOLLERR | select.EPOLLHUP
ALARM = ERROR | select.EPOLLRDHUP | select.EPOLLPRI
"""Something other than bytes came: a FIN, a reset, an urgent byte. A short read then proves nothing."""
READABLE = select.EPOLLIN | ALARM
WRITABLE = select.EPOLLOUT | ERROR

_EVERYTHING = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLPRI | select.EPOLLET
LEVEL_READ = select.EPOLLIN
"""Told again as long as something is there, and nothing of room to write: for UDP sockets, where every datagram that
leaves would be an edge, and where one batch a wake leaves the others their turn."""
BATCH = 256
"""Events taken in one wake; other callbacks of the loop get their turn in between."""
TURNS = 32
"""Flows that go on before the loop looks at its sockets again: with many bulk flows a small message waits for so many
of them, and not for all. A turn moves up to 256 KiB, so the look costs nothing beside them."""


class Poller:
    """Calls a handler with the events of its descriptor; belongs to one running loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], object]] = {}
        self._again: deque[Callable[[], object]] = deque()
        loop.add_reader(self._epoll.fileno(), self._dispatch)

    def watch(self, fd: int, handler: Callable[[int], object], events: int = _EVERYTHING) -> None:
        """Call `handler(events)` from now on; what is ready already comes as a first event.

        Raises `OSError` where the kernel has no room for another watch.
        """
        if fd in self._handlers:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def forget(self, fd: int) -> None:
        """Stop calling: the descriptor goes to another owner. A second call does nothing."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def closing(self, fd: int) -> None:
        """Stop calling: the descriptor is closed next, which takes it out of the epoll without a system call."""
        self._handlers.pop(fd, None)

    def again(self, turn: Callable[[], object]) -> None:
        """Call `turn` after everybody else had theirs: for work that stopped at its budget, since no edge will come."""
        if not self._again:
            self._loop.call_soon(self._take_turns)
        self._again.append(turn)

    def epolls(self) -> list[int]:
        """The descriptor of its epoll, as long as it is open."""
        return [] if self._epoll.closed else [self._epoll.fileno()]

    def close(self) -> None:
        """Let go of the loop. Nothing is called afterwards."""
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
                    # The others of the batch must have theirs: these events come only once.
                    self._report(error, handler)

    def _take_turns(self) -> None:
        # Only those that waited when this began: a flow that asks again waits for the sockets that became ready.
        for _ in range(min(len(self._again), TURNS)):
            turn = self._again.popleft()
            try:
                turn()
            except Exception as error:
                self._report(error, turn)
        if self._again:
            self._loop.call_soon(self._take_turns)

    def _report(self, error: Exception, culprit: object) -> None:
        self._loop.call_exception_handler({
            "message": f"a fault in {culprit!r}",
            "exception": error,
        })  # fmt: skip
