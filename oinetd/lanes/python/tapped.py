"""The engine for programs that have a `tap`: what a flow reads goes through the hook before it is written.

A flow waits for an answer as it waits for its sink: nothing is read meanwhile, so the sender feels it, and each
direction has at most one call of the hook under way. A FIN or a reset comes after the bytes before it. What the hook
raises ends the session with a reset for both peers.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import socket
from collections.abc import Awaitable

from oinetd.core.engine import Carried, Meter
from oinetd.core.record import RelayResult
from oinetd.core.tap import Direction, SessionTap, TapAnswer
from oinetd.lanes.python.flow import Flow, FlowEvent, FlowState, Side
from oinetd.lanes.python.relay import PortableEngine, Relay
from oinetd.model import Settings
from oinetd.net.poller import Poller

__all__ = ["TappedEngine"]

log = logging.getLogger("oinetd")


class TappedEngine(PortableEngine):
    """Relays in Python, through `Meter.tap`. `tasks` holds what the hook leaves to be awaited."""

    def __init__(self, loop: asyncio.AbstractEventLoop, poller: Poller, tasks: set[asyncio.Task[None]]) -> None:
        super().__init__(loop, poller)
        self.tasks = tasks

    async def relay(
        self,
        client: socket.socket,
        upstream: socket.socket,
        settings: Settings,
        meter: Meter,
        carried: Carried | None = None,
    ) -> RelayResult:
        assert meter.tap is not None
        assert carried is None, "a session with a hook stays in its process"
        return await self._running.run(_TappedRelay(self, client, upstream, settings, meter, meter.tap))


class _TappedRelay(Relay):
    __slots__ = ("tap", "tasks")

    def __init__(
        self,
        engine: TappedEngine,
        client: socket.socket,
        upstream: socket.socket,
        settings: Settings,
        meter: Meter,
        tap: SessionTap,
    ) -> None:
        self.tap = tap
        self.tasks = engine.tasks
        super().__init__(engine, client, upstream, settings, meter)

    def _flow(self, source: Side, sink: Side, *, upward: bool) -> Flow:
        return _TappedFlow(self, source, sink, upward=upward)


class _TappedFlow(Flow):
    __slots__ = ("_tapped", "_waiting")

    def __init__(self, relay: _TappedRelay, source: Side, sink: Side, *, upward: bool) -> None:
        super().__init__(relay, source, sink, upward=upward)
        self._tapped = relay
        self._waiting: asyncio.Task[None] | None = None

    def release(self) -> None:
        """Give the buffer back, and wait for the hook no longer."""
        super().release()
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _offer(self, data: memoryview) -> bool:
        if self.state is not FlowState.OPEN:  # the hook has had it, and the sink took only a part
            return super()._offer(data)
        relay, taken = self._tapped, bytes(data)
        try:
            answer = relay.tap(Direction.UP if self.upward else Direction.DOWN, taken)
            if not inspect.isawaitable(answer):
                return self._pass(taken, answer)
        except BaseException as error:
            self._fail(error)
            return False
        self.step(FlowEvent.ASKED)
        self._waiting = task = relay.loop.create_task(self._wait(taken, answer))
        relay.tasks.add(task)
        task.add_done_callback(relay.tasks.discard)
        if inspect.iscoroutine(answer):
            task.add_done_callback(lambda _: answer.close())  # a task that is cancelled before it begins awaits nothing
        return False

    def _pass(self, taken: bytes, answer: TapAnswer) -> bool:
        """Write what the hook lets pass of what was `taken`; whether all of it was taken by the sink."""
        if not isinstance(answer, bytes | None):
            raise TypeError(f"tap: {type(answer).__name__} is neither bytes nor None")
        data = taken if answer is None else answer
        return super()._offer(memoryview(data)) if data else True

    async def _wait(self, taken: bytes, answer: Awaitable[TapAnswer]) -> None:
        try:
            said = await answer
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and self._waiting is not asyncio.current_task():
                raise  # the relay has ended
            self._fail(error)
            return
        if self._waiting is not asyncio.current_task():
            return  # it was cancelled, and answered all the same
        self._waiting = None
        self.step(FlowEvent.ANSWERED)
        try:
            passed = self._pass(taken, said)
        except TypeError as error:
            self._fail(error)
            return
        if passed:
            self.pump()

    def _fail(self, error: BaseException) -> None:
        """The hook failed: both peers see a reset."""
        self._waiting = None
        relay = self._tapped
        if isinstance(error, KeyboardInterrupt | SystemExit):
            relay.loop.call_soon(_raise, error)  # once the accounting is done
        else:
            log.error("the tap hook failed; its session is reset", exc_info=error)
        relay.abort()


def _raise(error: BaseException) -> None:
    raise error
