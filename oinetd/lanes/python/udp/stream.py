"""Rules that listen on TCP and connect by UDP: each read of the connection is a datagram, and what comes back follows
each other in the connection.

A client that has finished sending gets answers until none has come for the rule's `timeout`; then its connection is
closed. A destination where nobody listens is, to the client, a reset.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import socket
from typing import Any
from weakref import WeakKeyDictionary

from oinetd.core.dial import Dialed, DialRequest
from oinetd.core.engine import Carried, Leaving, Meter
from oinetd.core.record import Ending, RelayResult
from oinetd.lanes.python.running import RunningRelay, RunningRelays
from oinetd.lanes.python.udp.leg import NOBODY, PIECE_BYTES, READS_MAX
from oinetd.lanes.python.udp.plane import DatagramPlane, connect
from oinetd.lanes.python.udp.way import Way
from oinetd.model import RuleOptions, Settings
from oinetd.net.datagrams import Batch
from oinetd.net.poller import LEVEL_READ, WRITABLE, has_failed
from oinetd.net.sockets import close_with_reset

__all__ = ["DatagramEngine"]

DATAGRAMS_AT_ONCE = 4
"""Datagrams read for a connection in one go: at most 256 KiB wait for a slow client."""

RETRY_S = 0.001
"""Pause if the way out is full; the kernel has no event for it that would not come with every datagram."""

_FULL = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM})


class DatagramEngine:
    """Dials by UDP and relays between connections and datagrams, for one rule: an `Engine` and a `Dialer`."""

    name = "python"

    def __init__(self, plane: DatagramPlane, options: RuleOptions, settings: Settings) -> None:
        self.plane = plane
        self.poller = plane.poller
        self.batch = plane.batch_for(settings)
        self.ways: WeakKeyDictionary[socket.socket, Way] = WeakKeyDictionary()
        self.timeout_s = options.datagram_timeout_s
        self._running = RunningRelays()

    async def dial(self, request: DialRequest) -> Dialed:
        """Connect, which takes no time and tells nothing of the destination but that there is a route.

        A name that is still to be resolved is waited for. `request.tries` stays empty.
        """
        if (failed := await request.wait_for_names(self.poller)) is not None:
            return failed
        dialed = connect(request, self.plane.table)
        if dialed.upstream is not None and dialed.address is not None:
            self.ways[dialed.upstream] = Way(self.plane, request, dialed.address)
        return dialed

    async def relay(
        self,
        client: socket.socket,
        upstream: socket.socket,
        settings: Settings,
        meter: Meter,
        carried: Carried | None = None,
    ) -> RelayResult:
        """`upstream` is a connected UDP socket."""
        return await self._running.run(_Relay(self, client, upstream, settings, meter, carried))

    def take_out(self, at_most: int) -> list[Leaving]:
        return list(self._running.take_out(at_most))

    async def close(self) -> None:
        """Abort every relay that still runs."""
        self._running.abort_all()


class _Relay(RunningRelay):
    """One connection and its UDP socket."""

    def __init__(
        self,
        engine: DatagramEngine,
        client: socket.socket,
        upstream: socket.socket,
        settings: Settings,
        meter: Meter,
        carried: Carried | None = None,
    ) -> None:
        super().__init__(engine.plane.loop, settings, meter, carried)
        self._poller = engine.plane.poller
        self._batch: Batch = engine.batch
        self._quiet_s = engine.timeout_s
        self._client = client
        self._upstream = upstream
        self._way = engine.ways.pop(upstream, None)
        self._half_closed = False
        self._up = b""  # a piece that the UDP socket has no room for
        self._down = b""  # bytes that the client has not taken yet; as long as there are, no datagram is read
        self._moved = self._taken = self.loop.time()
        self._retry: asyncio.TimerHandle | None = None
        if carried is not None:
            self._up, self._down = carried.pending
            self._half_closed = bool(carried.state["half_closed"])
            self._moved -= float(carried.state["idle_s"])
            self._taken -= float(carried.state["stalled_s"])

    def start(self) -> None:
        try:
            self._batch.prepare(self._upstream)
            if not self._down:
                self._poller.watch(self._upstream.fileno(), self._on_upstream, LEVEL_READ)
            self._poller.watch(self._client.fileno(), self._on_client)
        except OSError as error:
            self._end(Ending.ABORTED, error.errno or 0)
            return
        self._arm()
        if self._up:
            self._retry = self.loop.call_later(RETRY_S, self._on_retry)

    # From and to another process

    @property
    def descriptors(self) -> tuple[int, int]:
        return self._client.fileno(), self._upstream.fileno()

    @property
    def pending(self) -> tuple[bytes, bytes]:
        return self._up, self._down

    def state(self) -> dict[str, Any]:
        now = self.loop.time()
        return {
            **super().state(),
            "half_closed": self._half_closed,
            "idle_s": now - self._moved,
            "stalled_s": now - self._taken,
        }

    def _may_leave(self) -> bool:
        return True

    def _unwatch(self) -> None:
        for sock in (self._client, self._upstream):
            self._poller.forget(sock.fileno())
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def _let_go(self) -> None:
        self._client.close()
        self._upstream.close()

    # Up: reads become datagrams

    def _on_client(self, events: int) -> None:
        if events & WRITABLE and self._down:
            self._flush()
        if not self.finished:
            self._read()
        if has_failed(self._client, events) and self._half_closed and not self.finished:
            # It is not read any more: no other call would notice.
            code = self._client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            self._end(Ending.CLIENT_RESET, code or errno.ECONNRESET)

    def _read(self) -> None:
        """Read until there is no more, the way out is full, or the turn is over."""
        for _ in range(READS_MAX):
            if self.halted or self._half_closed or self._up:
                return
            try:
                self._up = self._client.recv(PIECE_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                self._end(Ending.CLIENT_RESET, error.errno or errno.EIO)
                return
            if not self._up:
                self._half_closed = True
                self._arm()
                return
            self._send_up()
        self._poller.again(self._read)

    def _send_up(self) -> None:
        """Send the piece; if there is no room for it, again in a moment."""
        code, throttle = 0, self.meter.throttle
        if throttle is not None and not throttle.passes(0, len(self._up)):
            self._up = b""
            self.meter.datagrams_lost += 1
            return
        if self._way is not None and not self._down:
            other = self._way.ask(self.loop.time(), self._quiet_s)
            if other is not None and not self._replace(self._way, other):
                return
        try:
            self._upstream.send(self._up)
        except OSError as error:
            code = error.errno or errno.EIO
        if code in _FULL:
            self._retry = self.loop.call_later(RETRY_S, self._on_retry)
            return
        size, self._up = len(self._up), b""
        self._moved = self.meter.moved_at = self.loop.time()
        if code in NOBODY:
            self.meter.datagrams_lost += 1
            self._end_refused(code)
        elif code:
            self.meter.datagrams_lost += 1
        else:
            self.meter.bytes_up += size
            self.meter.datagrams_up += 1

    def _replace(self, way: Way, other: socket.socket) -> bool:
        """Go on with another upstream socket; False if that ended the relay."""
        self._poller.closing(self._upstream.fileno())
        self._upstream.close()
        self._upstream = other
        self.meter.upstream = way.address.host, way.address.port
        try:
            self._batch.prepare(other)
            self._poller.watch(other.fileno(), self._on_upstream, LEVEL_READ)
        except OSError as error:
            self._end(Ending.ABORTED, error.errno or 0)
            return False
        return True

    def _on_retry(self) -> None:
        self._retry = None
        self._send_up()
        self._read()

    # Down: datagrams follow each other

    def _on_upstream(self, events: int) -> None:
        code = 0
        try:
            groups = self._batch.receive(self._upstream, DATAGRAMS_AT_ONCE, named=False)
        except OSError as error:
            groups, code = (), error.errno or errno.EIO
        for group in groups:
            datagrams = self._batch.take(group)
            if (throttle := self.meter.throttle) is not None:
                datagrams = list(itertools.takewhile(lambda each: throttle.passes(1, len(each)), datagrams))
                self.meter.datagrams_lost += group.length - len(datagrams)
            self.meter.datagrams_down += len(datagrams)
            self._down += b"".join(datagrams)
        code = code or self._batch.late_errno
        if groups:
            self._moved = self._taken = self.meter.moved_at = self.loop.time()
            if self._way is not None:
                self._way.answered(self._moved)
            self._flush()
        if code in NOBODY and not self.finished:
            self._end_refused(code)

    def _flush(self) -> None:
        """Give the client what it takes; read no datagrams as long as something is left."""
        try:
            sent = self._client.send(self._down) if self._down else 0
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._end(Ending.CLIENT_RESET, error.errno or errno.EIO)
            return
        had = bool(self._down)
        self._down = self._down[sent:]
        self.meter.bytes_down += sent
        if sent:
            self._moved = self._taken = self.meter.moved_at = self.loop.time()
        if self._down:
            self._poller.forget(self._upstream.fileno())
            self._arm()
        elif had:
            self._poller.watch(self._upstream.fileno(), self._on_upstream, LEVEL_READ)

    # End

    def _end(self, ending: Ending, code: int = 0) -> None:
        self._finish(ending, code)
        if self._retry is not None:
            self._retry.cancel()
        self._poller.closing(self._client.fileno())
        self._poller.closing(self._upstream.fileno())
        self._upstream.close()
        if ending is Ending.CLIENT_CLOSED:
            self._client.close()
        else:
            close_with_reset(self._client)
        self._up = self._down = b""

    def _end_refused(self, code: int) -> None:
        """Nobody listens."""
        if self._way is not None:
            self._way.refused(code)
        self._end(Ending.UPSTREAM_RESET, code)

    def _due(self) -> list[tuple[float, Ending]]:
        settings, found = self._settings, self._deadlines(self._moved)
        if self._half_closed and (quiet_s := self._quiet_s or settings.half_close_timeout_s):
            found.append((self._moved + quiet_s, Ending.CLIENT_CLOSED))
        if self._down and settings.write_stall_timeout_s:
            found.append((self._taken + settings.write_stall_timeout_s, Ending.WRITE_STALL))
        return found
