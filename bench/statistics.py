"""Medians with an interval, and a straight line through measurements: what tables and plots show of raw samples."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Line", "Summary", "fit_line", "summarise"]

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Summary:
    """A median of `count` samples. `low` to `high` holds the true one with `confidence`, 0 if it is the range."""

    median: float
    low: float
    high: float
    count: int
    confidence: float

    @property
    def spread(self) -> float:
        """Half the interval as a share of the median."""
        return (self.high - self.low) / 2 / abs(self.median) if self.median else 0.0


def summarise(values: Sequence[float], confidence: float = CONFIDENCE) -> Summary | None:
    """The median and its interval of at least that confidence; None of nothing.

    The interval lies between two order statistics and supposes nothing about the distribution: the number of samples
    below the true median is binomial with p = 1/2. Below six samples no pair reaches 95 %, and the range is given.
    """
    if not values:
        return None
    ordered = sorted(values)
    count = len(ordered)
    median = statistics.median(ordered)
    for rank in range(count // 2, 0, -1):  # from the narrowest pair outwards: the rank-th from either end
        outside = 2 * sum(math.comb(count, below) for below in range(rank)) / 2**count
        if 1 - outside >= confidence:
            return Summary(median, ordered[rank - 1], ordered[count - rank], count, 1 - outside)
    return Summary(median, ordered[0], ordered[-1], count, 0.0)


@dataclass(frozen=True, slots=True)
class Line:
    intercept: float
    slope: float


def fit_line(points: Sequence[tuple[float, float]]) -> Line | None:
    """The line through `(x, y)` with the least relative squared errors; None below two different x.

    Relative, because a payload of 1 MiB costs a thousand times one of 1 KiB: an ordinary fit would see only the last.
    """
    weighted = [(x, y, 1 / (y * y)) for x, y in points if y > 0]
    if len({x for x, _, _ in weighted}) < 2:
        return None
    total = sum(w for _, _, w in weighted)
    mean_x = sum(w * x for x, _, w in weighted) / total
    mean_y = sum(w * y for _, y, w in weighted) / total
    variance = sum(w * (x - mean_x) ** 2 for x, _, w in weighted)
    slope = sum(w * (x - mean_x) * (y - mean_y) for x, y, w in weighted) / variance
    return Line(mean_y - slope * mean_x, slope)
