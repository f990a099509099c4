"""Token buckets of the Python lane: what connections, their sources and their rules may do in a second.

A bucket is one number: up to when what was taken has been paid for. It does what `_fastpath/shared/bucket.pxd`,
`meter.pxd` and `throttle.pxd` do, and tests hold the two together.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from oinetd.model import Rate, Settings

__all__ = ["Bucket", "Meters", "RuleBuckets", "Throttle"]

QUANTA_A_SECOND: Final = 4
QUANTUM_BYTES_MAX: Final = 262144
SHARE_BYTES_MIN: Final = 4096
IDLE_S: Final = 0.1
QUEUE_S: Final = 4.0
DATAGRAM_DEPTH_BYTES: Final = 65536
"""As in `_fastpath/shared/throttle.pxd`, where they are explained."""


class Bucket:
    """One token bucket; times are of the monotonic clock."""

    __slots__ = ("paid_until",)

    def __init__(self, now: float = 0.0) -> None:
        self.paid_until = now

    def reserve(self, cost_s: float, depth_s: float, most_s: float, now: float) -> float:
        """Take what costs `cost_s`; from when on it may be used. What waits for longer than `most_s` is forgotten."""
        begin = min(max(self.paid_until, now - depth_s), now + most_s)
        self.paid_until = begin + cost_s
        return begin

    def take(self, cost_s: float, depth_s: float, now: float) -> float:
        """Take what costs `cost_s` if it is there: 0, else when to ask again."""
        self.paid_until = min(self.paid_until, now + depth_s)  # beyond that is what was taken at a lower rate
        begin = max(self.paid_until, now)
        if begin + cost_s > now + depth_s + 1e-9:
            return begin + cost_s - depth_s
        self.paid_until = begin + cost_s
        return 0.0

    def book(self, cost_s: float, depth_s: float, now: float) -> float:
        """Take what costs `cost_s`; from when on it may be used, 0 for at once. Those that come later wait behind."""
        self.paid_until = max(self.paid_until, now) + cost_s
        return 0.0 if self.paid_until <= now + depth_s + 1e-9 else self.paid_until - depth_s

    def give(self, cost_s: float) -> None:
        """Give back what was taken and not used."""
        self.paid_until -= cost_s


@dataclass(slots=True, eq=False)
class Meter:
    """The buckets of one source: bytes up and down, and connections; `users` are its connections."""

    source: object
    bytes: tuple[Bucket, Bucket]
    connects: Bucket = field(default_factory=Bucket)
    users: int = 0

    def is_full(self, now: float) -> bool:
        """Whether nothing would change if it was forgotten."""
        return max(self.connects.paid_until, *(bucket.paid_until for bucket in self.bytes)) <= now


class Meters:
    """The sources of a rule; one that has left is kept until its buckets are full again."""

    __slots__ = ("_left", "_used")

    def __init__(self) -> None:
        self._used: dict[object, Meter] = {}
        self._left: OrderedDict[object, Meter] = OrderedDict()

    def __len__(self) -> int:
        return len(self._used) + len(self._left)

    def enter(self, source: object, now: float) -> Meter:
        """The meter of a source, which stays until `leave`."""
        meter = self._used.get(source) or self._left.pop(source, None)
        if meter is None:
            meter = Meter(source, (Bucket(now), Bucket(now)))
        self._used[source] = meter
        meter.users += 1
        self._forget(now)
        return meter

    def leave(self, meter: Meter, now: float) -> None:
        """One connection of it less."""
        meter.users -= 1
        if not meter.users:
            del self._used[meter.source]
            self._left[meter.source] = meter
        self._forget(now)

    def _forget(self, now: float) -> None:
        while self._left and next(iter(self._left.values())).is_full(now):
            self._left.popitem(last=False)


class RuleBuckets:
    """What the connections of one rule share. The rates are those of the last reload."""

    __slots__ = (
        "bandwidth",
        "bytes",
        "connects",
        "meters",
        "rate",
        "rate_per_source",
        "rule_rate",
        "source_rate",
        "users",
        "waiting",
        "waits",
    )

    def __init__(self) -> None:
        self.bytes = (Bucket(), Bucket())
        self.connects = Bucket()
        self.meters = Meters()
        self.users = 0
        self.rate = self.rate_per_source = Rate()
        self.bandwidth = self.rule_rate = self.source_rate = 0
        self.waiting = False  # the next connection has waited
        self.waits = 0  # connections that waited for their turn, ever

    def configure(self, settings: Settings) -> None:
        """Put the rates of a rule in force, for live connections as well but for the bandwidth of each."""
        self.bandwidth = settings.bandwidth_bytes
        self.rate, self.rate_per_source = settings.rate, settings.rate_per_source
        self.rule_rate, self.source_rate = settings.bandwidth_per_rule_bytes, settings.bandwidth_per_source_bytes

    def connect_at(self) -> float:
        """Take one connection of the rule's rate: 0, or the monotonic time at which there is one."""
        if not self.rate:
            return 0.0
        due = self.connects.take(self.rate.interval_s, self.rate.depth_s, time.monotonic())
        self.waiting = self.waiting or due > 0.0
        return due

    def connect_given_back(self) -> None:
        """Nobody was there."""
        self.waiting = False
        if self.rate:
            self.connects.give(self.rate.interval_s)

    def connected(self) -> None:
        """Somebody was there."""
        self.waits += self.waiting
        self.waiting = False

    def turn(self) -> float:
        """The turn of a connection by the rate: 0, or the monotonic time of it."""
        turn = self.connects.book(self.rate.interval_s, self.rate.depth_s, time.monotonic()) if self.rate else 0.0
        self.waits += turn > 0.0
        return turn

    def source_is_due(self, source: object) -> bool:
        """Whether the rate of a source allows one more connection; it is counted then."""
        rate = self.rate_per_source
        if not rate:
            return True
        now = time.monotonic()
        meter = self.meters.enter(source, now)
        due = not meter.connects.take(rate.interval_s, rate.depth_s, now)
        self.meters.leave(meter, now)
        return due

    def throttle(self, source: object) -> Throttle | None:
        """For a new connection; None if nothing bounds its bytes."""
        if not (self.bandwidth or self.rule_rate or self.source_rate):
            return None
        return Throttle(self.bandwidth, self, source)


class Throttle:
    """How much a connection or a UDP session may move; directions are 0 for up and 1 for down."""

    __slots__ = ("_bandwidth", "_credit", "_meter", "_own", "_shared", "_until")

    def __init__(self, bandwidth: int, shared: RuleBuckets, source: object) -> None:
        now = time.monotonic()
        self._bandwidth = bandwidth
        self._shared = shared
        self._own = (Bucket(now), Bucket(now))
        self._credit = [0, 0]
        self._until = [0.0, 0.0]
        self._meter = shared.meters.enter(source, now) if shared.source_rate else None
        shared.users += 1

    def _buckets(self, way: int) -> list[tuple[Bucket, int, int]]:
        """The buckets in force, each with its rate and the number of its users."""
        found = []
        if self._bandwidth:
            found.append((self._own[way], self._bandwidth, 0))
        if self._shared.rule_rate:
            found.append((self._shared.bytes[way], self._shared.rule_rate, self._shared.users))
        if self._shared.source_rate and self._meter is not None:
            found.append((self._meter.bytes[way], self._shared.source_rate, self._meter.users))
        return found

    def credit(self, way: int) -> int:
        """How many bytes a direction may read now; 0: it has to wait until `until`."""
        now = time.monotonic()
        buckets = self._buckets(way)
        if not buckets:
            return QUANTUM_BYTES_MAX
        quantum = max(1, min(QUANTUM_BYTES_MAX, *(_share(rate, users) for _, rate, users in buckets)))
        if now < self._until[way] <= now + max(_queue_s(rate, quantum, users) for _, rate, users in buckets):
            return 0
        self._until[way] = 0.0  # over, or a reload has raised the rate since
        if 2 * self._credit[way] >= quantum:
            return self._credit[way]
        begin = max(
            bucket.reserve(quantum / rate, IDLE_S, _queue_s(rate, quantum, users), now)
            for bucket, rate, users in buckets
        )
        self._credit[way] += quantum
        if begin <= now:
            return self._credit[way]
        self._until[way] = begin
        return 0

    def until(self, way: int) -> float:
        """When a direction that waits is to ask again: at its time, and within a second, in case the rate is raised."""
        return min(self._until[way], time.monotonic() + 1.0)

    def used(self, way: int, moved: int) -> None:
        """A direction has read so many bytes."""
        self._credit[way] = max(0, self._credit[way] - moved)

    def passes(self, way: int, size: int) -> bool:
        """Whether a datagram of this size may pass now; if not, nothing is taken."""
        now = time.monotonic()
        taken: list[tuple[Bucket, float]] = []
        for bucket, rate, _ in self._buckets(way):
            cost_s = size / rate
            if bucket.take(cost_s, max(IDLE_S, DATAGRAM_DEPTH_BYTES / rate), now):
                for each, each_s in taken:
                    each.give(each_s)
                return False
            taken.append((bucket, cost_s))
        return True

    def end(self) -> None:
        """The connection has ended: give back what it took and did not use."""
        for way in (0, 1):
            for bucket, rate, _ in self._buckets(way)[bool(self._bandwidth) :]:
                bucket.give(self._credit[way] / rate)
        self._shared.users -= 1
        if self._meter is not None:
            self._shared.meters.leave(self._meter, time.monotonic())


def _queue_s(rate: int, quantum: int, users: int) -> float:
    """The longest that a direction can have to wait for a bucket; see `_fastpath/shared/throttle.pxd`."""
    return 2 * max(users, 1) * quantum / rate + QUEUE_S


def _share(rate: int, users: int) -> int:
    """The quantum of a bucket that so many share; 0 users is one that nobody else has."""
    quantum = rate // QUANTA_A_SECOND
    return min(quantum, max(SHARE_BYTES_MIN, quantum // users)) if users else quantum
