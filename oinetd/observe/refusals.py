"""A rate limit on the log lines that an attacker can cause with forged addresses: they must not fill the disk.

These are the lines about refused clients, and about UDP sessions that failed without an answer. Each rule has a token
bucket: `BURST_LINES` tokens, refilled at `LINES_PER_S`. A client that finds it empty has no line and is counted; the
count is logged within `GAP_S` seconds. Only lines are limited: counters and hooks see every client.

A session has both of its lines or none. While the bucket is empty the `opened` line of a UDP session is held back
until the session ends.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from oinetd.core.record import Ending, SessionRecord
from oinetd.model import Protocol, Route, Rule

__all__ = ["BURST_LINES", "GAP_S", "LINES_PER_S", "RefusedLines", "is_bounded"]

BURST_LINES: Final = 1000
"""Lines that one rule may write in a burst: a scan of a small network, a restart of a wrongly configured fleet."""

LINES_PER_S: Final = 20.0
"""Lines in the long run: a flood that lasts a day writes 250 MB for each rule in rinetd's format."""

GAP_S: Final = 10.0
"""The time from the first omitted client to the line with the count."""


_OF_TIME: Final = frozenset({Ending.IDLE_TIMEOUT, Ending.ABORTED, Ending.REVOKED})
"""Endings that a flood cannot cause faster than `max-udp-sessions` per `timeout`, or that an operator causes."""


def is_bounded(record: SessionRecord) -> bool:
    """Whether the lines about this ended session are limited: forged addresses can cause them at any rate."""
    ending = record.ending
    assert ending is not None
    if ending.refused:
        return True
    return record.route.bind.protocol is Protocol.UDP and not record.datagrams_down and ending not in _OF_TIME


@dataclass(slots=True)
class _Bucket:
    rule: Rule  # keeps the rule alive, so that its id stays unique
    lines: float = field(default_factory=lambda: BURST_LINES)
    filled_at: float = field(default_factory=lambda: time.monotonic())
    left_out: int = 0
    route: Route | None = None  # the route of the first omitted client

    def fill(self) -> float:
        """Refill it; the number of tokens."""
        now = time.monotonic()
        self.lines = min(BURST_LINES, self.lines + (now - self.filled_at) * LINES_PER_S)
        self.filled_at = now
        return self.lines


class RefusedLines:
    """Decides for each such client whether it gets lines, and counts those that do not."""

    def __init__(self) -> None:
        self._buckets: dict[int, _Bucket] = {}
        self._held: dict[int, tuple[Route, bytes]] = {}
        self.any_left_out = False

    @staticmethod
    def explain(route: Route) -> str:
        """The warning when clients of `route` begin to be omitted."""
        udp = route.bind.protocol is Protocol.UDP
        what = "refused clients or unanswered UDP sessions" if udp else "refused clients"
        return (
            f"{route.rule}: more than {LINES_PER_S:g} {what} per second; the connection log omits some of "
            "them and logs their number"
        )

    def holds(self, record: SessionRecord, opened: bytes) -> bool:
        """Whether the `opened` line of a session is held back here until the session ends."""
        bucket = self._buckets.get(id(record.route.rule))
        if bucket is None or record.route.bind.protocol is not Protocol.UDP or bucket.fill() >= 1:
            return False
        self._held[record.id] = record.route, opened
        return True

    def release(self, record: SessionRecord) -> bytes | None:
        """The line that was held back when this session began; None if it was written."""
        held = self._held.pop(record.id, None)
        return held[1] if held is not None else None

    @property
    def any_held(self) -> bool:
        """Whether a line is held back."""
        return bool(self._held)

    def take_held(self, *, every: bool = False) -> Iterator[bytes]:
        """Held lines of live sessions, one for each token; or every one."""
        for number, (route, line) in tuple(self._held.items()):
            bucket = self._buckets.get(id(route.rule))
            if every or bucket is None or bucket.fill() >= 1:
                del self._held[number]
                if bucket is not None:
                    bucket.lines -= 1
                yield line

    def admits(self, route: Route, *, begun: bool = False) -> bool:
        """Whether such a client of `route` gets its lines; if not, it is counted. `begun` says that its `opened` line
        was written: then it gets the other line, too, and the bucket may have a negative number of tokens."""
        rule = route.rule
        # Keyed by id, because a rule's hash reads all its fields.
        bucket = self._buckets.get(id(rule))
        if bucket is None:
            bucket = self._buckets[id(rule)] = _Bucket(rule)
        if bucket.fill() >= 1 or begun:
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
