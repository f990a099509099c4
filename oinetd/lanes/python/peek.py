"""Reads what a client sends first without taking it: until a parser has seen enough, within one deadline.

While it waits it holds no buffer, and the kernel wakes it only when so much has come as the parser needs: the socket's
low-water mark (SO_RCVLOWAT) grows with that. The kernel keeps the mark below the receive buffer.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable
from typing import TypeAlias

from oinetd.core.record import Ending
from oinetd.net.poller import ALARM, Poller, has_failed
from oinetd.preamble.progress import Invalid, NeedMore
from oinetd.preamble.proxy_protocol import Header
from oinetd.preamble.tls_hello import Hello

__all__ = ["Peek"]

Found: TypeAlias = Header | Hello | Invalid
"""What a parser makes of enough bytes."""


class Peek:
    """One look at a client. `parse` gets all bytes so far, at most `bytes_max`; `late` is the ending at `deadline`."""

    __slots__ = (
        "_bytes_max",
        "_client",
        "_deadline",
        "_done",
        "_ended",
        "_late",
        "_loop",
        "_low_water",
        "_parse",
        "_poller",
    )

    def __init__(
        self,
        poller: Poller,
        client: socket.socket,
        parse: Callable[[bytes], NeedMore | Found],
        bytes_max: int,
        deadline: float,
        late: Ending,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._poller = poller
        self._client = client
        self._parse = parse
        self._bytes_max = bytes_max
        self._deadline = deadline
        self._late = late
        self._low_water = 1
        self._ended = False
        self._done: asyncio.Future[tuple[Found | Ending, int]] | None = None

    async def run(self) -> tuple[Found | Ending, int]:
        """What the parser found, or how the connection ended before, and the errno of that."""
        if (found := self._look()) is not None:
            return found
        self._done = self._loop.create_future()
        timer = self._loop.call_at(self._deadline, self._settle, (self._late, 0)) if self._deadline else None
        try:
            self._poller.watch(self._client.fileno(), self._on_event)
            return await self._done
        except OSError as error:  # no room to watch it
            return Ending.SOCKET_FAILED, error.errno or 0
        finally:
            if timer is not None:
                timer.cancel()
            self._poller.forget(self._client.fileno())
            if self._low_water > 1:
                with contextlib.suppress(OSError):
                    self._client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)

    def _look(self) -> tuple[Found | Ending, int] | None:
        try:
            data = self._client.recv(self._bytes_max, socket.MSG_PEEK)
        except BlockingIOError:
            return None
        except OSError as error:
            return Ending.CLIENT_RESET, error.errno or errno.ECONNRESET
        found = self._parse(data) if data else None
        if found is not None and not isinstance(found, NeedMore):
            return found, 0
        if self._ended or not data:
            return Ending.CLIENT_CLOSED, 0
        assert found is not None
        if found.total != self._low_water:
            self._low_water = found.total
            self._client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, found.total)
        return None

    def _on_event(self, events: int) -> None:
        self._ended = self._ended or bool(events & ALARM)
        if has_failed(self._client, events):
            code = self._client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or errno.ECONNRESET
            self._settle((Ending.CLIENT_RESET, code))
        elif (found := self._look()) is not None:
            self._settle(found)

    def _settle(self, found: tuple[Found | Ending, int]) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(found)
