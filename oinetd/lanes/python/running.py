"""What relays and engines in Python have in common: one timer for all deadlines, one result, the relays that run."""

from __future__ import annotations

import asyncio
from typing import Any

from oinetd.core.engine import Carried, Departed, Meter
from oinetd.core.record import Ending, RelayResult
from oinetd.model import Settings

__all__ = ["RunningRelay", "RunningRelays"]


class RunningRelay:
    """A relay that can be begun and aborted; `done` gets its result. A subclass moves bytes and knows its deadlines.

    It is a `Leaving`, too: `stand_still` is followed by `release` or `put_back`. `halted` says that nothing is to be
    moved now, because it stands still or has ended.
    """

    __slots__ = (
        "_began",
        "_expires_at",
        "_settings",
        "_timer",
        "_timer_at",
        "done",
        "finished",
        "halted",
        "loop",
        "meter",
    )

    def __init__(
        self, loop: asyncio.AbstractEventLoop, settings: Settings, meter: Meter, carried: Carried | None = None
    ) -> None:
        self.loop = loop
        self.meter = meter
        self.done: asyncio.Future[RelayResult] = loop.create_future()
        self.finished = self.halted = False
        self._settings = settings
        self._began = loop.time() - (float(carried.state["lived_s"]) if carried is not None else 0.0)
        self._expires_at = self._began + settings.max_lifetime_s if settings.max_lifetime_s else 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0  # uvloop's timer does not tell it if it is due at once

    def start(self) -> None:
        """Begin. What is ready already is the first event of each side."""
        raise NotImplementedError

    def abort(self) -> None:
        """End now, with a reset on both sides; does nothing if it has ended."""
        if not self.finished:
            self._end(Ending.ABORTED)

    def _end(self, ending: Ending, code: int = 0) -> None:
        """Close both sides and `_finish`."""
        raise NotImplementedError

    # On its way to another process

    @property
    def descriptors(self) -> tuple[int, int]:
        raise NotImplementedError

    @property
    def pending(self) -> tuple[bytes, bytes]:
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        return {"lived_s": self.loop.time() - self._began}

    def stand_still(self) -> bool:
        """Move nothing from now on; False, and nothing is done, if it is about to end."""
        if self.halted or not self._may_leave():
            return False
        self.halted = True
        self._unwatch()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return True

    def put_back(self) -> None:
        self.halted = False
        self.start()

    def release(self) -> None:
        self.finished = True
        self._let_go()
        if not self.done.done():
            self.done.set_exception(Departed())

    def _may_leave(self) -> bool:
        """Whether nothing has failed."""
        raise NotImplementedError

    def _unwatch(self) -> None:
        """Hear nothing of the sockets."""
        raise NotImplementedError

    def _let_go(self) -> None:
        """Close the sockets without a word to the peers, and free the rest."""
        raise NotImplementedError

    def _finish(self, ending: Ending, code: int) -> None:
        """Give the result. Runs once."""
        assert not self.finished
        self.finished = self.halted = True
        if self._timer is not None:
            self._timer.cancel()
        meter = self.meter
        meter.result = RelayResult(ending, meter.bytes_up, meter.bytes_down, code)
        if not self.done.done():
            self.done.set_result(meter.result)

    # The timer is moved only when it fires, or for a deadline that is earlier

    def _deadlines(self, moved: float) -> list[tuple[float, Ending]]:
        """The deadlines of every relay; `moved` is when something last moved."""
        found = []
        if self._settings.idle_timeout_s:
            found.append((moved + self._settings.idle_timeout_s, Ending.IDLE_TIMEOUT))
        if self._expires_at:
            found.append((self._expires_at, Ending.MAX_LIFETIME))
        return found

    def _due(self) -> list[tuple[float, Ending]]:
        """Every deadline of this moment."""
        raise NotImplementedError

    def _arm(self) -> None:
        """See to it that the timer fires no later than the next deadline."""
        due = self._due()
        if not due or self.finished:
            return
        when = min(when for when, _ in due)
        if self._timer is not None:
            if self._timer_at <= when:
                return
            self._timer.cancel()
        self._timer_at = when
        self._timer = self.loop.call_at(when, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if not (due := self._due()):
            return
        when, ending = min(due, key=lambda deadline: deadline[0])
        if when <= self.loop.time():
            self._end(ending)
        else:
            self._arm()


class RunningRelays:
    """The relays of one engine."""

    def __init__(self) -> None:
        self._relays: set[RunningRelay] = set()

    async def run(self, relay: RunningRelay) -> RelayResult:
        """Begin, and wait for the end; a cancelled relay is aborted."""
        self._relays.add(relay)
        try:
            relay.start()
            return await relay.done
        finally:
            relay.abort()
            self._relays.discard(relay)

    def take_out(self, at_most: int) -> list[RunningRelay]:
        """Let relays stand still that can move to another process."""
        found: list[RunningRelay] = []
        for relay in self._relays:
            if len(found) == at_most:
                break
            if relay.stand_still():
                found.append(relay)
        return found

    def abort_all(self) -> None:
        for relay in tuple(self._relays):
            relay.abort()
