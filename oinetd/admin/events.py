"""Events for those who listen: sessions, states of servers, reloads. Nobody listening costs nothing.

Each listener has a queue. One that does not read fast enough loses events, and is told how many.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from oinetd.admin.documents import session_document
from oinetd.admin.message import as_json
from oinetd.admin.servers import server_document
from oinetd.core.record import SessionRecord
from oinetd.forwarder import Forwarder
from oinetd.upstream.member import ServerStatus

__all__ = ["EVENTS_MAX", "LISTENERS_MAX", "Events"]

LISTENERS_MAX: Final = 8
"""Of each listening socket."""

EVENTS_MAX: Final = 1000
"""Events that wait for one listener, about 400 KB."""

BATCH: Final = 64
QUIET_S: Final = 15.0
"""After so long without an event a comment is sent: a listener that has gone is noticed."""


class _Queue:
    def __init__(self) -> None:
        self.events: deque[bytes] = deque()
        self.lost = 0
        self.ends = False
        self.some = asyncio.Event()

    @property
    def is_full(self) -> bool:
        return len(self.events) >= EVENTS_MAX


class Events:
    """The listeners of one process."""

    def __init__(self, forwarder: Forwarder) -> None:
        self._forwarder = forwarder
        self._queues: list[_Queue] = []
        self._unwatch: Callable[[], None] | None = None

    def publish(self, event: str, value: dict[str, Any]) -> None:
        """Tell all listeners."""
        if self._queues:
            self._put(event, lambda: value)

    def end(self) -> None:
        """Another process goes on: listeners get what there is, and then the end."""
        for queue in self._queues:
            queue.ends = True
            queue.some.set()

    async def listen(self) -> AsyncIterator[bytes]:
        """The events from now on, in the format of server-sent events."""
        queue = _Queue()
        self._queues.append(queue)
        try:
            if self._unwatch is None:
                self._unwatch = self._forwarder.watch(self._opened, self._closed, self._server)
            yield b": events of oinetd\n\n"
            while True:
                try:
                    async with asyncio.timeout(QUIET_S):
                        await queue.some.wait()
                except TimeoutError:
                    yield b": still here\n\n"
                    continue
                if queue.events or queue.lost:
                    yield self._take(queue)
                elif queue.ends:
                    return
        finally:
            self._queues.remove(queue)
            if not self._queues and self._unwatch is not None:
                self._unwatch()
                self._unwatch = None

    @staticmethod
    def _take(queue: _Queue) -> bytes:
        parts = [queue.events.popleft() for _ in range(min(BATCH, len(queue.events)))]
        if not queue.events:
            if not queue.ends:
                queue.some.clear()
            if queue.lost:
                parts.append(b"event: lost\ndata: " + as_json({"count": queue.lost}) + b"\n")
                queue.lost = 0
        return b"".join(parts)

    def _opened(self, record: SessionRecord) -> None:
        self._put("opened", lambda: session_document(record, record.route.rule.name))

    def _closed(self, record: SessionRecord) -> None:
        assert record.ending is not None
        name = "refused" if record.ending.refused else "closed"
        ending = record.ending.value
        self._put(
            name,
            lambda: {**session_document(record, record.route.rule.name), "ending": ending, "errno": record.errno},
        )

    def _server(self, status: ServerStatus) -> None:
        self._put("server", lambda: {"group": status.group, **server_document(status)})

    def _put(self, event: str, value: Callable[[], dict[str, Any]]) -> None:
        line: bytes | None = None
        for queue in self._queues:
            if queue.is_full:
                queue.lost += 1
                continue
            if line is None:
                line = f"event: {event}\ndata: ".encode() + as_json(value()) + b"\n"
            queue.events.append(line)
            queue.some.set()
