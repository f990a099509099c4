"""The latency histogram of the native load client: 128 steps for each power of two, so an error of at most 0.8 %."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

__all__ = ["PERCENTILES", "bucket_of", "count_above", "lower_bound", "percentile_ns", "percentiles_us"]

PERCENTILES = (50.0, 90.0, 99.0, 99.9)
_STEPS = 128
BUCKETS = 4096

Histogram = Sequence[tuple[int, int]]
"""`(bucket, count)` in ascending order, empty buckets left out."""


def bucket_of(value_ns: int) -> int:
    """The bucket that counts `value_ns`; everything beyond the last one's reach is in the last."""
    if value_ns < 2 * _STEPS:
        return value_ns
    shift = value_ns.bit_length() - 8
    return min(shift * _STEPS + (value_ns >> shift), BUCKETS - 1)


def lower_bound(bucket: int) -> int:
    """The least value in nanoseconds that `bucket` counts."""
    if bucket < 2 * _STEPS:
        return bucket
    shift = bucket // _STEPS - 1
    return (bucket - shift * _STEPS) << shift


def percentile_ns(histogram: Histogram, percent: float) -> float | None:
    """The middle of the bucket that holds the value below which `percent` of all lie; None if there are none."""
    total = sum(count for _, count in histogram)
    if total == 0:
        return None
    rank = max(1, math.ceil(total * percent / 100))
    seen = 0
    for bucket, count in histogram:
        seen += count
        if seen >= rank:
            return (lower_bound(bucket) + lower_bound(bucket + 1) - 1) / 2
    raise AssertionError("the counts add up to the total")


def count_above(histogram: Iterable[Sequence[int]], seconds: float) -> int:
    """How many were longer; exact to the width of a bucket."""
    return sum(int(count) for bucket, count in histogram if lower_bound(int(bucket)) >= seconds * 1e9)


def percentiles_us(histogram: Iterable[Sequence[int]]) -> dict[str, float | None]:
    """`p50_us`, `p90_us`, `p99_us`, `p99.9_us`."""
    pairs = [(int(bucket), int(count)) for bucket, count in histogram]
    values = {percent: percentile_ns(pairs, percent) for percent in PERCENTILES}
    return {f"p{percent:g}_us": None if ns is None else ns / 1000 for percent, ns in values.items()}
