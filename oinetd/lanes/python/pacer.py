"""Calls at times of the monotonic clock: one timer for all who wait, however many those are."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable

__all__ = ["Pacer"]

TOGETHER_S = 0.004
"""Those whose times are so close are called together."""


class Pacer:
    """Belongs to one event loop."""

    __slots__ = ("_loop", "_numbers", "_timer", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self._timer: asyncio.TimerHandle | None = None

    def call_at(self, when: float, call: Callable[[], object]) -> None:
        """Call when the monotonic clock says `when`, or a little later."""
        heapq.heappush(self._waiting, (when, next(self._numbers), call))
        if self._waiting[0][2] is call:
            self._arm()

    def close(self) -> None:
        """Call nobody any more."""
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        delay_s = max(0.0, self._waiting[0][0] - time.monotonic()) + TOGETHER_S
        self._timer = self._loop.call_later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        now = time.monotonic()
        due = []
        while self._waiting and self._waiting[0][0] <= now:
            due.append(heapq.heappop(self._waiting)[2])
        for call in due:
            call()
        if self._waiting and self._timer is None:
            self._arm()
