"""Profiles in pprof's format, which `go tool pprof` and many viewers read: gzipped protocol buffers.

Field numbers are those of pprof's `profile.proto`; the few message kinds need no library.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Mapping

from bench.stacks import Stacks

__all__ = ["encode", "varint"]


def varint(number: int) -> bytes:
    """A number of 64 bits at most, seven bits a byte, least ones first."""
    if number < 0:
        raise ValueError("only counts and indexes are written here")
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(value)) + value


def _packed(field: int, values: Iterable[int]) -> bytes:
    return _bytes(field, b"".join(map(varint, values)))


class _Table:
    """Things numbered in the order they come, from `first` on."""

    def __init__(self, first: int) -> None:
        self._first = first
        self.numbers: dict[str, int] = {}

    def __call__(self, name: str) -> int:
        return self.numbers.setdefault(name, len(self.numbers) + self._first)


def encode(profiles: Mapping[str, Stacks], period_ns: int, started_ns: int) -> bytes:
    """One profile of several subjects, with the label `subject`. `period_ns` is the time of one sample."""
    string, function = _Table(0), _Table(1)
    string("")  # the format wants the empty string first
    body = [
        _bytes(1, _number(1, string("samples")) + _number(2, string("count"))),
        _bytes(1, _number(1, string("cpu")) + _number(2, string("nanoseconds"))),
    ]
    for subject, stacks in profiles.items():
        label = _number(1, string("subject")) + _number(2, string(subject))
        for stack, count in stacks.items():
            # One location for each function: addresses say nothing once they have names. The leaf comes first.
            locations = _packed(1, (function(name) for name in reversed(stack)))
            body.append(_bytes(2, locations + _packed(2, (count, count * period_ns)) + _bytes(3, label)))
    for name, number in function.numbers.items():
        body.append(_bytes(4, _number(1, number) + _bytes(4, _number(1, number))))
        body.append(_bytes(5, _number(1, number) + _number(2, string(name)) + _number(3, string(name))))
    body.append(_number(9, started_ns))
    body.append(_bytes(11, _number(1, string("cpu")) + _number(2, string("nanoseconds"))))
    body.append(_number(12, period_ns))
    body += (_bytes(6, name.encode()) for name in string.numbers)
    return gzip.compress(b"".join(body), mtime=0)
