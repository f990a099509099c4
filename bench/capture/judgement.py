"""Compares sent with captured bytes: how much of the traffic on each leg of a forwarder a capture has seen."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.capture.streams import Gap, Stream, covered_within, missing_within
from bench.capture.traffic import Sent

__all__ = ["Leg", "acknowledged", "judge", "missed_by_both"]


@dataclass(frozen=True, slots=True)
class Leg:
    """The totals of one leg: bytes sent and, of these, captured; `gaps` is how many ranges are missing."""

    streams: int
    sent: int
    captured: int
    gaps: int

    @property
    def missed(self) -> int:
        return self.sent - self.captured


def ranges(sent: Sent, streams: Iterable[Stream]) -> list[Gap]:
    """What was captured of `sent`, counted from its first byte. Good for 2 GiB: sequence numbers tell no more."""
    found: list[Gap] = []
    for stream in streams:
        if (stream.source_port, stream.target_port) == (sent.source_port, sent.target_port):
            shift = ctypes.c_int32(stream.base - sent.first_seq).value
            if stream.begun and shift:
                continue  # an earlier connection of the same ports
            found += [(start + shift, end + shift) for start, end in stream.intervals]
    return sorted(found)


def judge(sent: Sequence[Sent], streams: Sequence[Stream]) -> Leg:
    """One capture of one leg."""
    captured = gaps = 0
    for each in sent:
        seen = ranges(each, streams)
        captured += covered_within(seen, 0, each.bytes)
        gaps += len(missing_within(seen, 0, each.bytes))
    return Leg(len(sent), sum(each.bytes for each in sent), captured, gaps)


def missed_by_both(sent: Sequence[Sent], one: Sequence[Stream], other: Sequence[Stream]) -> int:
    """Bytes that neither of two captures has seen."""
    missed = 0
    for each in sent:
        either = sorted(ranges(each, one) + ranges(each, other))
        missed += sum(end - start for start, end in missing_within(either, 0, each.bytes))
    return missed


def acknowledged(captures: Iterable[Sequence[Stream]], port: int) -> list[Sent]:
    """What was sent to and from `port`, from the receivers' acknowledgements, for senders that do not report it.

    A stream that no capture saw at all is not in it.
    """
    known: dict[tuple[int, int, int], Sent] = {}
    for streams in captures:
        for stream in streams:
            if port in (stream.source_port, stream.target_port) and stream.begun:
                key = (stream.source_port, stream.target_port, stream.base)
                if key not in known or known[key].bytes < stream.extent:
                    known[key] = Sent(*key, stream.extent)
    return list(known.values())
