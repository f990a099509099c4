"""Values of a configuration that are more than one number: keep-alive, prefix lengths, rates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from oinetd.bounds import check_numbers

__all__ = ["KEEP_ALIVE", "NO_RATE", "SOURCE_PREFIX", "KeepAlive", "Rate", "SourcePrefix"]


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """TCP keep-alive: first probe after `idle_s` of silence, then every `interval_s`, `count` times; off at `idle_s` 0.

    60:10:6 finds a dead peer within two minutes, while the kernel's own default takes more than two hours.
    """

    idle_s: int = 60
    interval_s: int = 10
    count: int = 6

    def __post_init__(self) -> None:
        check_numbers(self)

    def __bool__(self) -> bool:
        return self.idle_s > 0


KEEP_ALIVE = KeepAlive()


class SourcePrefix(NamedTuple):
    """How many bits of a client's address make it one source for limits: a whole IPv4 address, a network of IPv6.

    Whoever has an IPv6 network has 2^64 addresses in it and would otherwise be as many sources.
    """

    ipv4: int = 32
    ipv6: int = 64


SOURCE_PREFIX = SourcePrefix()


class Rate(NamedTuple):
    """`number` connections in `period_s` seconds, evenly.

    `burst` of them may come at once; 0 is one second's worth, at least 1.

    A number of 0 is no limit.
    """

    number: int = 0
    period_s: int = 1
    burst: int = 0

    def __bool__(self) -> bool:
        return self.number > 0

    @property
    def interval_s(self) -> float:
        """The time between two connections."""
        return self.period_s / self.number

    @property
    def at_once(self) -> int:
        """How many may come at once."""
        return self.burst or max(1, self.number // self.period_s)

    @property
    def depth_s(self) -> float:
        """The time of those that may come at once."""
        return self.at_once * self.interval_s


NO_RATE = Rate()
