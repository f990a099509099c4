"""A bound on the lines about refused clients: strangers must not be able to fill the disk.

Each rule has a bucket of `BURST_LINES` that fills up again by `LINES_PER_S`. A client that finds it empty is counted
and has no line; the gap is told within `GAP_S` seconds. Only lines are bounded: counters and hooks have every client.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from oinetd.model import Route, Rule

__all__ = ["BURST_LINES", "GAP_S", "LINES_PER_S", "RefusedLines"]

BURST_LINES: Final = 1000
"""As many refused clients of one rule have their lines at one moment: a scan of a small network, a restart of a wrongly
configured fleet."""

LINES_PER_S: Final = 20.0
"""As many in the long run: a flood that lasts a day writes 250 MB for each rule in rinetd's format."""

GAP_S: Final = 10.0
"""From the first client that was left out to the line that tells how many were."""


@dataclass(slots=True)
class _Bucket:
    rule: Rule  # kept, so that its id stays its own
    lines: float = field(default_factory=lambda: BURST_LINES)
    filled_at: float = field(default_factory=lambda: time.monotonic())
    left_out: int = 0
    route: Route | None = None  # that of the first client that was left out


class RefusedLines:
    """Decides, client by client, whether a refusal has a line, and knows what was left out since it was last told."""

    def __init__(self) -> None:
        self._buckets: dict[int, _Bucket] = {}
        self.any_left_out = False

    @staticmethod
    def explain(route: Route) -> str:
        """What an operator is told when clients of `route` begin to be left out."""
        return (
            f"{route.rule}: refused clients come faster than {LINES_PER_S:g} a second: the connection log leaves some "
            "of them out, and tells how many"
        )

    def admits(self, route: Route) -> bool:
        """Whether the line of a refused client of `route` may be written; otherwise the client is counted."""
        rule, now = route.rule, time.monotonic()
        # By identity: a rule's hash walks through all that it says.
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
        """A route of each rule that left clients out since the last call, and how many they were."""
        self.any_left_out = False
        for bucket in self._buckets.values():
            count, bucket.left_out = bucket.left_out, 0
            if count and bucket.route is not None:
                yield bucket.route, count

    def forget(self) -> None:
        """The rules have changed: begin anew, after `take_left_out`."""
        self._buckets.clear()
