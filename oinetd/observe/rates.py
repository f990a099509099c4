"""Rates of the last second and the last minute, from samples of the counters.

A sample is taken every `IDLE_S` seconds, and every second for a time after a question. So rates that are not read cost
almost nothing, and the first answer has a rate, too.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["Rate", "Rates"]

ACTIVE_S: Final = 1.0
IDLE_S: Final = 10.0
ASKED_S: Final = 30.0
"""How long after the last question a sample is taken every second."""

MINUTE_S: Final = 60.0
SHORTEST_S: Final = 0.05
"""A rate over less time says nothing."""

Sample = Mapping[Hashable, tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Rate:
    """The growth of each counter per second, over the last `seconds`."""

    seconds: float
    values: tuple[float, ...]


class Rates:
    """Samples of `take()`, whose values are tuples of counters, each under a key."""

    def __init__(self, take: Callable[[], Sample]) -> None:
        self._take = take
        self._samples: deque[tuple[float, Sample]] = deque()
        self._asked = -ASKED_S
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to take samples."""
        self._loop = asyncio.get_running_loop()
        self._sample()

    def stop(self) -> None:
        """Take no more samples."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def ask(self) -> None:
        """The rates are read: take a sample every second for a time."""
        now = self._loop.time()
        idle = now - self._asked > ASKED_S
        self._asked = now
        if idle and self._timer is not None:
            self._timer.cancel()
            self._timer = self._loop.call_later(ACTIVE_S, self._sample)

    def of(self, key: Hashable, now: tuple[float, ...], over_s: float = ACTIVE_S) -> Rate | None:
        """The rate of the counters of `key`, which are `now`, over about `over_s`; None before there is a sample."""
        at = self._loop.time()
        # Not in each of them: the hash of a key may read a whole rule.
        since = next((n for n, (when, _) in enumerate(reversed(self._samples), 1) if at - when >= over_s * 0.9), 0)
        first = len(self._samples) - since if since else 0
        for when, sample in itertools.islice(self._samples, first, None):
            seconds = at - when
            if seconds < SHORTEST_S:
                return None
            if (then := sample.get(key)) is not None:
                return Rate(seconds, tuple((new - old) / seconds for new, old in zip(now, then, strict=True)))
        return None

    def _sample(self) -> None:
        now = self._loop.time()
        self._samples.append((now, self._take()))
        while now - self._samples[0][0] > MINUTE_S + IDLE_S:
            self._samples.popleft()
        pause_s = ACTIVE_S if now - self._asked <= ASKED_S else IDLE_S
        self._timer = self._loop.call_later(pause_s, self._sample)
