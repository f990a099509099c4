"""The engine in pure Python: both directions of a connection are one state machine, driven by one task.

A relay is two flows (`flow.py`) over two sides. It makes no future, task or registration per chunk: the poller calls
it when a socket may have something, and it moves bytes until the kernel says EAGAIN. Buffers come from a pool while
bytes pend and go back at once, so that an idle connection holds none.

How a relay ends:

- Each side's FIN is passed on once all its bytes are with the other side. When both are, both sockets are closed.
- A side that fails (reset, keep-alive, host gone) is a reset for the other side too, after the bytes that came before
  it: the send queue gets `FLUSH_S` to empty, then the socket is closed with a reset.
- What oinetd ends itself (timeouts, abort) reaches both sides as a reset: a FIN is only ever passed on.
"""

from __future__ import annotations

import asyncio
import errno
import select
import socket
from typing import Any

from oinetd.core.engine import Carried, Leaving, Meter
from oinetd.core.record import Ending, RelayResult
from oinetd.core.throttle import RuleBuckets, Throttle
from oinetd.lanes.python.buffers import BufferPool
from oinetd.lanes.python.flow import Flow, FlowState, Side
from oinetd.lanes.python.pacer import Pacer
from oinetd.lanes.python.running import RunningRelay, RunningRelays
from oinetd.model import Settings
from oinetd.net.poller import Poller, has_failed
from oinetd.net.sockets import close_with_reset, unsent_bytes

__all__ = ["PortableEngine", "Relay"]

FLUSH_S = 1.0
"""How long the bytes before a reset may take to reach a peer that is alive: some round trips and a retransmission."""
FLUSH_LOOK_S = 0.01
"""Time between two looks at the send queue; the kernel has no event for "all acknowledged"."""


class PortableEngine:
    """Relays in Python, on the loop of its poller."""

    name = "python"

    def __init__(self, loop: asyncio.AbstractEventLoop, poller: Poller) -> None:
        self.loop = loop
        self.poller = poller
        self.buffers = BufferPool()
        self.pacer = Pacer(loop)
        self._running = RunningRelays()

    async def relay(
        self,
        client: socket.socket,
        upstream: socket.socket,
        settings: Settings,
        meter: Meter,
        carried: Carried | None = None,
    ) -> RelayResult:
        """Move bytes both ways until both sides are done; see the contract in `oinetd.core.engine`."""
        try:
            relay = Relay(self, client, upstream, settings, meter, carried)
        except BaseException:
            close_with_reset(client)
            close_with_reset(upstream)
            raise
        return await self._running.run(relay)

    def take_out(self, at_most: int) -> list[Leaving]:
        return list(self._running.take_out(at_most))

    async def close(self) -> None:
        """Abort every relay that still runs."""
        self._running.abort_all()
        self.pacer.close()


class Relay(RunningRelay):
    """One connection: two sides and two flows."""

    __slots__ = (
        "_down", "_ender", "_finish_by", "_resumed", "_up", "buffer_bytes", "buffers", "client", "pacer", "poller",
        "throttle", "upstream",
    )  # fmt: skip

    def __init__(
        self,
        engine: PortableEngine,
        client: socket.socket,
        upstream: socket.socket,
        settings: Settings,
        meter: Meter,
        carried: Carried | None = None,
    ) -> None:
        super().__init__(engine.loop, settings, meter, carried)
        self.poller = engine.poller
        self.buffers = engine.buffers
        self.pacer = engine.pacer
        self.throttle = meter.throttle or _of_its_own(settings)
        self.buffer_bytes = settings.buffer_bytes
        self.client = Side(client)
        self.upstream = Side(upstream)
        self._up = self._flow(self.client, self.upstream, upward=True)
        self._down = self._flow(self.upstream, self.client, upward=False)
        self._ender: Side | None = None
        self._finish_by = 0.0
        self._resumed = False
        if carried is not None:
            self._resume(carried)

    def _flow(self, source: Side, sink: Side, *, upward: bool) -> Flow:
        return Flow(self, source, sink, upward=upward)

    def start(self) -> None:
        try:
            self.poller.watch(self.upstream.fd, self._on_upstream)
            self.poller.watch(self.client.fd, self._on_client)
        except OSError as error:
            self._end(Ending.ABORTED, error.errno or 0)
            return
        if self._settings.idle_timeout_s or self._expires_at or self._resumed:
            self._arm()
        for flow in (self._up, self._down):
            flow.resume()

    # From and to another process

    def _resume(self, carried: Carried) -> None:
        """Take up what another process had."""
        self._resumed = True
        now = self.loop.time()
        for flow, data, idle_s, over in zip(
            (self._up, self._down), carried.pending, carried.state["idle_s"], carried.state["over"], strict=True
        ):
            flow.last_moved = now - float(idle_s)
            if over:
                flow.state = FlowState.ENDED
            elif data:
                flow.state, flow.pending = FlowState.HELD, memoryview(data)
        ender = int(carried.state["ender"])
        self._ender = (None, self.client, self.upstream)[ender] if 0 <= ender <= 2 else None

    @property
    def descriptors(self) -> tuple[int, int]:
        return self.client.fd, self.upstream.fd

    @property
    def pending(self) -> tuple[bytes, bytes]:
        up, down = (bytes(flow.pending or b"") for flow in (self._up, self._down))
        return up, down

    def state(self) -> dict[str, Any]:
        now, flows = self.loop.time(), (self._up, self._down)
        return {
            **super().state(),
            "idle_s": [now - flow.last_moved for flow in flows],
            "over": [flow.over for flow in flows],
            "ender": 0 if self._ender is None else 1 if self._ender is self.client else 2,
        }

    def put_back(self) -> None:
        self._resumed = True
        super().put_back()

    def _may_leave(self) -> bool:
        lost = FlowState.LOST in (self._up.state, self._down.state)
        return not (lost or self._finish_by or self.client.errno or self.upstream.errno)

    def _unwatch(self) -> None:
        for side in (self.client, self.upstream):
            self.poller.forget(side.fd)

    def _let_go(self) -> None:
        for flow in (self._up, self._down):
            flow.release()
        for side in (self.client, self.upstream):
            side.sock.close()

    # What the sockets say

    def _on_client(self, events: int) -> None:
        self.client.note(events)
        self._up.pump()
        if not self.finished and self._down.state is FlowState.HELD:
            self._down.pump()
        if has_failed(self.client.sock, events) and not self.finished:
            self._on_error(self.client, events, self._up, self._down)

    def _on_upstream(self, events: int) -> None:
        self.upstream.note(events)
        self._down.pump()
        if not self.finished and self._up.state is FlowState.HELD:
            self._up.pump()
        if has_failed(self.upstream.sock, events) and not self.finished:
            self._on_error(self.upstream, events, self._down, self._up)

    def _on_error(self, side: Side, events: int, outgoing: Flow, incoming: Flow) -> None:
        if not outgoing.over:
            # What it sent is still being read. If a FIN comes before the reset, a read says only that; and this event
            # is the only one. HUP alone is both FINs.
            if events & select.EPOLLERR:
                side.fail(side.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or errno.ECONNRESET)
                outgoing.wait_turn()
            return
        # A side that had sent its FIN and now fails is not read any more, and perhaps not written to for hours.
        # (After both FINs the same event is only the end, and the relay has finished by then.)
        if not incoming.over:
            side.fail(side.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or errno.ECONNRESET)
            incoming.drop()
            self._settle()

    # What the flows say

    def on_held(self, flow: Flow) -> None:
        """A sink took less than it was offered."""
        if self._settings.write_stall_timeout_s:
            self._arm()

    def on_throttled(self, flow: Flow, until: float) -> None:
        """A bucket has nothing for a flow."""
        self.pacer.call_at(until, flow.resume)

    def on_source_done(self, flow: Flow) -> None:
        """A source sent its FIN or failed, and all its bytes are with the sink."""
        if self._ender is None:
            self._ender = flow.source
        if flow.source.errno:
            # The other direction has no receiver any more.
            self._opposite(flow).drop()
        else:
            try:
                flow.sink.sock.shutdown(socket.SHUT_WR)
            except OSError:
                # ENOTCONN: the sink is gone already, and its own event is on the way.
                flow.sink.fail(errno.ECONNRESET)
        self._settle()

    def on_sink_failed(self, flow: Flow) -> None:
        """A sink failed. What it had sent before that is still to be delivered: its own flow reads on."""
        if self._ender is None:
            self._ender = flow.sink
        other = self._opposite(flow)
        if other.state in (FlowState.OPEN, FlowState.WAITING):
            other.source.readable = other.source.alarmed = True
            other.wait_turn()
        self._settle()

    def _opposite(self, flow: Flow) -> Flow:
        return self._down if flow is self._up else self._up

    # How it ends

    def _settle(self) -> None:
        """Finish if both flows are over; otherwise see to the half-close timer."""
        if self.finished:
            return
        if not (self._up.over and self._down.over):
            if self._settings.half_close_timeout_s:
                self._arm()
            return
        failed = self.client if self.client.errno else self.upstream if self.upstream.errno else None
        if failed is None:
            self._end(Ending.CLIENT_CLOSED if self._ender is self.client else Ending.UPSTREAM_CLOSED)
            return
        if self.client.errno and self.upstream.errno:
            failed = self._ender or failed
        self._fail(failed)

    def _fail(self, failed: Side) -> None:
        """Close the failed side; reset the other one as soon as it has what was sent to it."""
        ending = Ending.CLIENT_RESET if failed is self.client else Ending.UPSTREAM_RESET
        alive = self.upstream if failed is self.client else self.client
        if not self._finish_by:
            self._finish_by = self.loop.time() + FLUSH_S
        if not alive.errno and self.loop.time() < self._finish_by and _waits(alive.sock):
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self.loop.call_later(FLUSH_LOOK_S, self._fail, failed)
            return
        self._end(ending, failed.errno)

    def _end(self, ending: Ending, code: int = 0) -> None:
        self._finish(ending, code)
        for flow in (self._up, self._down):
            flow.release()
        clean = ending in (Ending.CLIENT_CLOSED, Ending.UPSTREAM_CLOSED)
        for side in (self.client, self.upstream):
            self.poller.closing(side.fd)
            if clean:
                side.sock.close()
            else:
                close_with_reset(side.sock)

    def _due(self) -> list[tuple[float, Ending]]:
        settings = self._settings
        moved = max(self._up.last_moved, self._down.last_moved)
        if FlowState.THROTTLED in (self._up.state, self._down.state):
            moved = self.loop.time()  # it has something to move, and waits for its bandwidth
        found = self._deadlines(moved)
        if settings.half_close_timeout_s and (self._up.over or self._down.over):
            found.append((moved + settings.half_close_timeout_s, Ending.HALF_CLOSE_TIMEOUT))
        if settings.write_stall_timeout_s:
            found += [
                (flow.last_moved + settings.write_stall_timeout_s, Ending.WRITE_STALL)
                for flow in (self._up, self._down)
                if flow.state is FlowState.HELD
            ]
        return found


def _of_its_own(settings: Settings) -> Throttle | None:
    """The bound of a connection that shares none with others."""
    buckets = RuleBuckets()
    buckets.bandwidth = settings.bandwidth_bytes
    return buckets.throttle(None)


def _waits(sock: socket.socket) -> bool:
    """Whether bytes wait in the send queue for a peer that can still take them."""
    try:
        return unsent_bytes(sock) > 0
    except OSError:
        return False
