"""A rate limit on the log lines about refused clients: an attacker must not be able to fill the disk.

Each rule has a token bucket: `BURST_LINES` tokens, refilled at `LINES_PER_S`. A client that finds it empty has no line
and is counted; the count is logged within `GAP_S` seconds. Only lines are limited: counters and hooks see every client.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from oinetd.model import Route, Rule

__all__ = ["BURST_LINES", "GAP_S", "LINES_PER_S", "RefusedLines"]

BURST_LINES: Final = 1000
"""Lines that one rule may write in a burst: a scan of a small network, a restart of a wrongly configured fleet."""

LINES_PER_S: Final = 20.0
"""Lines in the long run: a flood that lasts a day writes 250 MB for each rule in rinetd's format."""

GAP_S: Final = 10.0
"""The time from the first omitted client to the line with the count."""


@dataclass(slots=True)
class _Bucket:
    rule: Rule  # keeps the rule alive, so that its id stays unique
    lines: float = field(default_factory=lambda: BURST_LINES)
    filled_at: float = field(default_factory=lambda: time.monotonic())
    left_out: int = 0
    route: Route | None = None  # the route of the first omitted client


class RefusedLines:
    """Decides for each refused client whether it gets a line, and counts those that do not."""

    def __init__(self) -> None:
        self._buckets: dict[int, _Bucket] = {}
        self.any_left_out = False

    @staticmethod
    def explain(route: Route) -> str:
        """The warning when clients of `route` begin to be omitted."""
        return (
            f"{route.rule}: more than {LINES_PER_S:g} refused clients per second; the connection log omits some of "
            "them and logs their number"
        )

    def admits(self, route: Route) -> bool:
        """Whether a refused client of `route` gets a line; if not, it is counted."""
        rule, now = route.rule, time.monotonic()
        # Keyed by id, because a rule's hash reads all its fields.
        bucket = self._buckets.get(id(rule))
        if bucket is None:
            bucket = self._buckets[id(rule)] = _Bucket(rule)
        bucket.lines = min(BURST_LINES, bucket.lines + (now - bucket.filled_at) * LINES_PER_S)
        bucket.filled_at = now
        if bucket.lines >= 1:
            bucket.lines -= 1
            return True
        if not bucket.left_out:
            bucket.route = route
        bucket.left_out += 1
        self.any_left_out = True
        return False

    def take_left_out(self) -> Iterator[tuple[Route, int]]:
        """A route of each rule that omitted clients since the last call, and their number."""
        self.any_left_out = False
        for bucket in self._buckets.values():
            count, bucket.left_out = bucket.left_out, 0
            if count and bucket.route is not None:
                yield bucket.route, count

    def forget(self) -> None:
        """Start again after a change of the rules; call `take_left_out` first."""
        self._buckets.clear()
