"""TCP streams in a capture, and the bytes that are missing in them."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

__all__ = ["Gap", "Stream", "covered_within", "missing_within"]

Gap = tuple[int, int]
"""Positions from the first to before the second."""


@dataclass(frozen=True, slots=True)
class Stream:
    """One direction of one connection. Positions are bytes after the SYN; `begun` says whether that was seen.

    `length` is known once the FIN was seen; `acknowledged` is how far the receiver said it has it (the FIN counts for
    one more), None if no answer was seen. `payload` counts bytes that were sent again each time, `head` is how the
    stream begins. `opposite` is the index of the other direction in the same list. Times are Unix nanoseconds.
    """

    source: str
    source_port: int
    target: str
    target_port: int
    base: int
    begun: bool
    ended: bool
    reset: bool
    length: int | None
    acknowledged: int | None
    intervals: tuple[Gap, ...]
    packets: int
    payload: int
    repeated: int
    spilled: int
    first_ns: int
    last_ns: int
    head: str
    opposite: int | None

    @classmethod
    def seen(cls, fields: Mapping[str, Any]) -> Self:
        """From what the native capture tells."""
        known = {name: fields[name] for name in cls.__slots__ if name in fields}
        known |= {
            "source": address_text(fields["source"]),
            "target": address_text(fields["target"]),
            "intervals": tuple(fields["intervals"]),
            "head": fields["head"].hex(),
            "begun": bool(fields["begun"]), "ended": bool(fields["ended"]), "reset": bool(fields["reset"]),
        }  # fmt: skip
        return cls(**known)

    @classmethod
    def load(cls, fields: Mapping[str, Any]) -> Self:
        """From what `as_dict` gave, after JSON made lists of tuples."""
        return cls(**{**fields, "intervals": tuple((start, end) for start, end in fields["intervals"])})

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def covered(self) -> int:
        return sum(end - start for start, end in self.intervals)

    @property
    def extent(self) -> int:
        """The length of the stream that the capture proves."""
        if self.length is not None:
            return self.length
        seen = self.intervals[-1][1] if self.intervals else 0
        # The last one that was acknowledged may be a FIN that was missed.
        return max(seen, (self.acknowledged or 0) - 1, 0)

    @property
    def gaps(self) -> list[Gap]:
        """What the capture missed for certain: positions before its end that it never saw."""
        first = 0 if self.begun or not self.intervals else self.intervals[0][0]
        return missing_within(self.intervals, first, max(first, self.extent))


def address_text(packed: bytes) -> str:
    address = ipaddress.IPv6Address(packed)
    return str(address.ipv4_mapped or address)


def missing_within(intervals: Iterable[Gap], first: int, end: int) -> list[Gap]:
    """The parts of [first, end) that are in none of the sorted intervals."""
    gaps = []
    at = first
    for begin, stop in intervals:
        if stop <= at:
            continue
        if begin >= end:
            break
        if begin > at:
            gaps.append((at, begin))
        at = stop
    if at < end:
        gaps.append((at, end))
    return gaps


def covered_within(intervals: Sequence[Gap], first: int, end: int) -> int:
    """How many positions of [first, end) are in the intervals."""
    return max(0, end - first) - sum(stop - begin for begin, stop in missing_within(intervals, first, end))
