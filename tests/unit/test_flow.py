"""One direction of a relay against its table: whatever source and sink do, only what `FLOW_NEXT` knows may happen."""

from __future__ import annotations

import errno
import socket
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from oinetd.core.engine import Meter
from oinetd.lanes.python.buffers import BufferPool
from oinetd.lanes.python.flow import FLOW_NEXT, Flow, FlowEvent, FlowState, Side
from oinetd.net.poller import READABLE, WRITABLE

FINAL = {FlowState.ENDED, FlowState.LOST}


class Socket:
    """Answers reads and writes from a script: a number of bytes, None for EAGAIN, an errno below 0."""

    family = socket.AF_INET

    def __init__(self, script: list[int | None]) -> None:
        self.script = script
        self.stream = b""
        self.offset = 0

    def fileno(self) -> int:
        return -1

    def _next(self) -> int:
        answer = self.script.pop(0) if self.script else None
        if answer is None:
            raise BlockingIOError
        if answer < 0:
            raise OSError(-answer, "as the script says")
        return answer

    def recv_into(self, buffer: memoryview) -> int:
        count = min(self._next(), len(buffer))
        buffer[:count] = bytes((self.offset + position) % 251 for position in range(count))
        self.offset += count
        return count

    def send(self, data: memoryview, flags: int) -> int:
        count = min(max(1, self._next()), len(data))
        self.stream += bytes(data[:count])
        return count


class Relay:
    """The relay around one flow: its words are written down."""

    buffer_bytes = 16
    finished = False
    throttle = None

    def __init__(self) -> None:
        self.buffers = BufferPool()
        self.meter = Meter()
        self.loop = self
        self.poller = self
        self.said: list[str] = []
        self.turns: list[Any] = []

    def time(self) -> float:
        return 0.0

    def again(self, turn: Any) -> None:
        self.turns.append(turn)

    def on_held(self, flow: Flow) -> None:
        self.said.append("held")

    def on_source_done(self, flow: Flow) -> None:
        self.said.append("done")

    def on_sink_failed(self, flow: Flow) -> None:
        self.said.append("failed")


class Watched(Flow):
    """A flow whose every step is held against the table."""

    __slots__ = ("path",)

    def step(self, event: FlowEvent) -> None:
        before = self.state
        assert before not in FINAL, f"{event} after the end"
        super().step(event)
        assert self.state is FLOW_NEXT[before, event]
        self.path.append((before, event, self.state))


answers = st.one_of(st.none(), st.integers(1, 40))
reads = st.lists(st.one_of(answers, st.sampled_from([0, -errno.ECONNRESET, -errno.ETIMEDOUT])), max_size=12)
writes = st.lists(st.one_of(answers, st.sampled_from([-errno.EPIPE, -errno.ECONNRESET])), max_size=12)
turns = st.lists(st.sampled_from(["readable", "writable", "drop", "both"]), max_size=20)


@given(reads, writes, turns)
def test_whatever_happens_is_in_the_table(reads: list[int | None], writes: list[int | None], turns: list[str]) -> None:
    relay, source, sink = Relay(), Socket(reads), Socket(writes)
    flow = Watched(relay, Side(source), Side(sink), upward=True)  # type: ignore[arg-type]
    flow.path = []
    for turn in turns:
        if turn == "drop":
            flow.drop()
        if turn in ("readable", "both"):
            flow.source.note(READABLE)
        if turn in ("writable", "both"):
            flow.sink.note(WRITABLE)
        flow.pump()
        while relay.turns:
            relay.turns.pop()()
        # What was taken is a beginning of what was read, and in the meter.
        assert sink.stream == bytes(position % 251 for position in range(len(sink.stream)))
        assert relay.meter.bytes_up == len(sink.stream) <= source.offset
        # A buffer is held where bytes pend, and nowhere else.
        assert (flow.state is FlowState.HELD) == (flow.pending is not None) == (relay.buffers.taken == 1)
        if flow.state is FlowState.HELD:
            assert flow.pending is not None
            assert len(sink.stream) + len(flow.pending) == source.offset
        elif flow.state is not FlowState.LOST:
            assert len(sink.stream) == source.offset
        assert flow.over == (flow.state in FINAL)
        # Only the end of a source that comes after all its bytes is told of, and once.
        assert relay.said.count("done") == (flow.state is FlowState.ENDED)
        assert relay.said.count("failed") <= 1
    assert relay.said.count("held") == sum(
        event is FlowEvent.SHORT and s is FlowState.OPEN for s, event, _ in flow.path
    )


def test_the_table_is_whole() -> None:
    """From every state that is not final each event that can come leads somewhere; nothing leads out of an end."""
    assert {state for state, _ in FLOW_NEXT} == set(FlowState) - FINAL
    assert set(FLOW_NEXT.values()) == set(FlowState)
    assert {event for _, event in FLOW_NEXT} == set(FlowEvent)


def test_a_pool_keeps_no_more_than_it_may() -> None:
    pool = BufferPool()
    buffers = [pool.take(1 << 20) for _ in range(20)]
    for buffer in buffers:
        pool.give(buffer)
    assert pool.taken == 0
    # Sizes of an earlier configuration must not keep the present ones out.
    small = pool.take(64 * 1024)
    pool.give(small)
    assert pool.take(64 * 1024) is small
