"""One direction of a relay: a source, a sink, and at most one buffer between them.

The life of a flow is this table; what is not in it cannot happen, and the tests use it as their oracle.

- OPEN: nothing pends. Bytes are read only here, so EAGAIN from the source can only mean that it is empty.
- HELD: the sink took less than was read. The rest waits in `pending`, the source is not read: that is back-pressure.
- THROTTLED: nothing pends, and a bucket has nothing for it. The source is not read until its time has come.
- WAITING: a hook of the program has what was read (`tapped.py`). The source is not read until it has answered.
- ENDED: the source has sent its FIN, or failed, and all that came before is with the sink. Final.
- LOST: the sink failed; what comes from the source has nowhere to go. Final.
"""

from __future__ import annotations

import asyncio
import enum
import errno
import socket
from typing import Protocol

from oinetd.core.engine import Meter
from oinetd.core.throttle import Throttle
from oinetd.lanes.python.buffers import BufferPool
from oinetd.net.poller import ALARM, READABLE, WRITABLE, Poller

__all__ = ["FLOW_NEXT", "Flow", "FlowEvent", "FlowOwner", "FlowState", "Side"]


class FlowState(enum.Enum):
    OPEN = "open"
    HELD = "held"
    THROTTLED = "throttled"
    WAITING = "waiting"
    ENDED = "ended"
    LOST = "lost"


class FlowEvent(enum.Enum):
    SHORT = "short"
    """The sink took less than it was offered."""
    TAKEN = "taken"
    """The sink took all that was pending."""
    NO_CREDIT = "no-credit"
    """A bucket has nothing for it."""
    CREDIT = "credit"
    """Its time has come."""
    ASKED = "asked"
    """A hook has what was read, and answers later."""
    ANSWERED = "answered"
    """The hook has said what is to be written."""
    SOURCE_DONE = "source-done"
    """The source answered a read with its FIN or an error."""
    SINK_FAILED = "sink-failed"
    """The sink answered a write with an error, or is known to be dead."""


FLOW_NEXT = {
    (FlowState.OPEN, FlowEvent.SHORT): FlowState.HELD,
    (FlowState.OPEN, FlowEvent.SOURCE_DONE): FlowState.ENDED,
    (FlowState.OPEN, FlowEvent.SINK_FAILED): FlowState.LOST,
    (FlowState.OPEN, FlowEvent.NO_CREDIT): FlowState.THROTTLED,
    (FlowState.THROTTLED, FlowEvent.CREDIT): FlowState.OPEN,
    (FlowState.THROTTLED, FlowEvent.SINK_FAILED): FlowState.LOST,
    (FlowState.OPEN, FlowEvent.ASKED): FlowState.WAITING,
    (FlowState.WAITING, FlowEvent.ANSWERED): FlowState.OPEN,
    (FlowState.WAITING, FlowEvent.SINK_FAILED): FlowState.LOST,
    (FlowState.HELD, FlowEvent.TAKEN): FlowState.OPEN,
    (FlowState.HELD, FlowEvent.SINK_FAILED): FlowState.LOST,
}

PUMP_BYTES = 256 * 1024
"""What one flow may read before the others get their turn."""


class Side:
    """One socket of a relay, and what is known of it.

    `readable` and `writable` are true until the kernel says EAGAIN; `alarmed` means that a short read proves nothing,
    since a FIN, a reset or an urgent byte came too; of a unix socket it never does (`inconclusive`). `errno` is the
    first error seen, 0 for none.
    """

    __slots__ = ("alarmed", "errno", "fd", "inconclusive", "readable", "sock", "writable")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.readable = False
        self.writable = True
        # Descriptors that a peer passes end a read of a unix socket early.
        self.alarmed = self.inconclusive = sock.family == socket.AF_UNIX
        self.errno = 0

    def note(self, events: int) -> None:
        """Remember what an event of the poller says."""
        if events & READABLE:
            self.readable = True
            if events & ALARM:
                self.alarmed = True
        if events & WRITABLE:
            self.writable = True

    def fail(self, code: int) -> None:
        """Latch the first error: later ones are its consequences.

        EPIPE is the kernel's word for a reset that came after the peer's FIN: a reset all the same.
        """
        if not self.errno:
            self.errno = errno.ECONNRESET if code == errno.EPIPE else code


class FlowOwner(Protocol):
    """What a flow needs of the relay it is a half of, and what it tells it."""

    loop: asyncio.AbstractEventLoop
    poller: Poller
    buffers: BufferPool
    buffer_bytes: int
    meter: Meter
    halted: bool
    throttle: Throttle | None

    def on_held(self, flow: Flow) -> None:
        """A sink took less than it was offered."""
        ...

    def on_throttled(self, flow: Flow, until: float) -> None:
        """A flow waits for a time of the monotonic clock; it is to be told of that by `resume`."""
        ...

    def on_source_done(self, flow: Flow) -> None:
        """A source sent its FIN or failed, and all its bytes are with the sink."""
        ...

    def on_sink_failed(self, flow: Flow) -> None:
        """A sink failed."""
        ...


class Flow:
    """Moves bytes from `source` to `sink`; tells its relay of everything that is not bytes."""

    __slots__ = (
        "holder",
        "last_moved",
        "meter",
        "now",
        "pending",
        "queued",
        "recv_into",
        "relay",
        "send",
        "sink",
        "source",
        "state",
        "upward",
    )

    def __init__(self, relay: FlowOwner, source: Side, sink: Side, *, upward: bool) -> None:
        self.relay = relay
        self.meter = relay.meter
        self.now = relay.loop.time
        self.upward = upward
        self.source = source
        self.sink = sink
        self.recv_into = source.sock.recv_into
        self.send = sink.sock.send
        self.state = FlowState.OPEN
        self.pending: memoryview | None = None
        self.holder: memoryview | None = None
        self.last_moved = self.now()
        self.queued = False

    def step(self, event: FlowEvent) -> None:
        """Go to the next state; an event that the table does not know is a fault of ours."""
        self.state = FLOW_NEXT[self.state, event]
        self.last_moved = self.now()

    @property
    def over(self) -> bool:
        return self.state is FlowState.ENDED or self.state is FlowState.LOST

    def pump(self) -> None:
        """Move what can be moved now, at most `PUMP_BYTES`."""
        if self.state is FlowState.HELD and not self._flush():
            return
        source = self.source
        if self.state is not FlowState.OPEN or not source.readable:
            return
        relay = self.relay
        throttle = relay.throttle
        size = relay.buffer_bytes
        buffer = room = relay.buffers.take(size)
        left = PUMP_BYTES
        try:
            while True:
                if throttle is not None:
                    way = not self.upward
                    size = min(len(buffer), throttle.credit(way))
                    if not size:
                        self.step(FlowEvent.NO_CREDIT)
                        relay.on_throttled(self, throttle.until(way))
                        return
                    room = buffer[:size]
                try:
                    count = self.recv_into(room)
                except BlockingIOError:
                    source.readable, source.alarmed = False, source.inconclusive
                    if not source.errno:
                        return
                    # It failed on a write: what came before that has been read, and no event may follow.
                    count = 0
                except OSError as error:
                    source.fail(error.errno or 0)
                    count = 0
                if not count:
                    self.step(FlowEvent.SOURCE_DONE)
                    relay.on_source_done(self)
                    return
                if throttle is not None:
                    throttle.used(way, count)
                if not self._offer(buffer[:count]):
                    if self.pending is not None:
                        self.holder = buffer
                    return
                if count < size and not source.alarmed:
                    # All there was, and no FIN came with it: new bytes bring a new edge.
                    source.readable = False
                    return
                left -= count
                if left <= 0:
                    self.wait_turn()
                    return
        finally:
            if self.holder is None:
                relay.buffers.give(buffer)

    def resume(self) -> None:
        """The time that it waited for has come."""
        if self.state is FlowState.THROTTLED and not self.relay.halted:
            self.step(FlowEvent.CREDIT)
            self.pump()

    def drop(self) -> None:
        """The sink is dead: forget what was meant for it."""
        if not self.over:
            self.step(FlowEvent.SINK_FAILED)
        self.release()

    def release(self) -> None:
        """Give the buffer back."""
        self.pending = None
        if self.holder is not None:
            self.relay.buffers.give(self.holder)
            self.holder = None

    def _flush(self) -> bool:
        """Write what is pending; whether the flow is open again."""
        if not self.sink.writable:
            return False
        assert self.pending is not None
        if not self._offer(self.pending):
            return False
        self.step(FlowEvent.TAKEN)
        self.release()
        return True

    def _offer(self, data: memoryview) -> bool:
        """Write `data`; if the sink takes less, keep the rest. Whether all of it was taken."""
        try:
            # Without the flag a dead peer would kill programs that left SIGPIPE at its default.
            count = self.send(data, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            count = 0
        except OSError as error:
            self.sink.fail(error.errno or 0)
            self.drop()
            self.relay.on_sink_failed(self)
            return False
        if count:
            self.last_moved = self.meter.moved_at = self.now()
            if self.upward:
                self.meter.bytes_up += count
            else:
                self.meter.bytes_down += count
            if count == len(data):
                return True
        # A short write has told the kernel that we wait for room, as EAGAIN does: the next room is an edge.
        self.sink.writable = False
        self.pending = data[count:]
        if self.state is FlowState.OPEN:
            self.step(FlowEvent.SHORT)
            self.relay.on_held(self)
        return False

    def wait_turn(self) -> None:
        """Pump again after the others had their turn."""
        if not self.queued:
            self.queued = True
            self.relay.poller.again(self._take_turn)

    def _take_turn(self) -> None:
        self.queued = False
        if not self.relay.halted:
            self.pump()
