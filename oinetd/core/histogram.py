"""Durations counted in fixed buckets, the same in both lanes (`_fastpath/shared/histogram.pxd`)."""

from __future__ import annotations

from bisect import bisect_left
from typing import Final, NamedTuple

from oinetd.core.record import SessionRecord

__all__ = ["CONNECT_BOUNDS_S", "DURATION_BOUNDS_S", "Histogram", "HistogramCounts", "SessionTimes"]

DURATION_BOUNDS_S: Final = (0.01, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0, 43200.0, 86400.0)
"""Of the life of a session."""

CONNECT_BOUNDS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 3.0, 10.0)
"""From the accept of a client to the connection with its upstream."""


class HistogramCounts(NamedTuple):
    """The counts of each bucket alone, the last one is what is above all bounds; and the sum of all, in seconds."""

    counts: tuple[int, ...]
    sum_s: float

    def plus(self, other: HistogramCounts) -> HistogramCounts:
        """Both together."""
        together = tuple(one + more for one, more in zip(self.counts, other.counts, strict=True))
        return HistogramCounts(together, self.sum_s + other.sum_s)


class Histogram:
    """Counts durations between `bounds`."""

    __slots__ = ("_bounds", "_counts", "_sum_s")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum_s = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum_s += seconds

    def count_on(self, more: HistogramCounts) -> None:
        """Add what another process has counted. Raises `ValueError` if it has other buckets."""
        self._counts = [one + other for one, other in zip(self._counts, more.counts, strict=True)]
        self._sum_s += more.sum_s

    @property
    def now(self) -> HistogramCounts:
        """The counts of this moment."""
        return HistogramCounts(tuple(self._counts), self._sum_s)


class SessionTimes:
    """How long the sessions of a rule lasted, and their connects took."""

    __slots__ = ("_connects", "_durations")

    def __init__(self) -> None:
        self._durations = Histogram(DURATION_BOUNDS_S)
        self._connects = Histogram(CONNECT_BOUNDS_S)

    def count(self, record: SessionRecord) -> None:
        """A session has ended; one that was refused never began."""
        if record.ending is None or record.ending.refused:
            return
        self._durations.add(record.duration_s)
        if record.connect_s:
            self._connects.add(record.connect_s)

    def count_on(self, durations: HistogramCounts, connects: HistogramCounts) -> None:
        """Add what another process has counted."""
        self._durations.count_on(durations)
        self._connects.count_on(connects)

    @property
    def now(self) -> tuple[HistogramCounts, HistogramCounts]:
        """Durations and connect times of this moment."""
        return self._durations.now, self._connects.now
