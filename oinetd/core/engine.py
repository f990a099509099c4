"""The contract of an engine: what moves the bytes of one connection.

1. The engine owns both sockets from the call on, whatever happens: it closes them, also when it raises or is cancelled.
2. What peers do is never an exception. It is the `RelayResult`.
3. Cancelling aborts the relay (both peers see a reset) and still waits for the result, so that accounting is exact:
   the result of a cancelled relay is left in `Meter.result`.
4. A FIN is only ever passed on, never invented: an end that a peer did not ask for reaches the other one as a reset.

One suite of tests (tests/engine) holds every engine and every relay mode to this.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from oinetd.core.record import RelayResult
from oinetd.core.tap import SessionTap
from oinetd.core.throttle import Throttle
from oinetd.model import Settings

__all__ = ["Carried", "CountedMeter", "Departed", "Engine", "Leaving", "Meter"]


class Departed(Exception):
    """The relay goes on in another process, with both sockets."""


@dataclass(frozen=True, slots=True)
class Carried:
    """What another process had of a relay: its document, and bytes that were read and not yet written, up and down."""

    state: Mapping[str, Any]
    pending: tuple[bytes, bytes] = (b"", b"")


class Meter:
    """The counters of one running relay.

    The engine writes them, all others read them. `moved_at` is when something last moved, in seconds of the monotonic
    clock, 0 before that. `result` is set when the relay has ended, also when it was cancelled. `upstream` is set when
    the relay goes on with another address. `throttle` bounds what is moved, if there is a bound. `tap` is the hook for
    the bytes of this session, if the program has one.
    """

    __slots__ = (
        "bytes_down",
        "bytes_up",
        "datagrams_down",
        "datagrams_lost",
        "datagrams_up",
        "moved_at",
        "result",
        "tap",
        "throttle",
        "upstream",
    )

    def __init__(self) -> None:
        self.bytes_up = 0
        self.bytes_down = 0
        self.datagrams_up = 0
        self.datagrams_down = 0
        self.datagrams_lost = 0
        self.moved_at = 0.0
        self.result: RelayResult | None = None
        self.throttle: Throttle | None = None
        self.tap: SessionTap | None = None
        self.upstream: tuple[str, int] | None = None

    def count_on(self, counts: Sequence[int]) -> None:
        """Begin with what another process has counted, in the order of `COUNTERS`; a total has it already."""
        for name, count in zip(COUNTERS, counts, strict=True):
            Meter.__dict__[name].__set__(self, count)


def _counted(name: str) -> property:
    """A counter of a `CountedMeter`: what it grows by is added to the total as well."""
    slot = Meter.__dict__[name]

    def write(self: CountedMeter, count: int) -> None:
        setattr(self.total, name, getattr(self.total, name) + count - slot.__get__(self))
        slot.__set__(self, count)

    return property(slot.__get__, write)


class CountedMeter(Meter):
    """A meter of a session, which keeps the `total` of a rule up to date: nobody has to look at each session for it."""

    __slots__ = ("total",)

    def __init__(self, total: Meter) -> None:
        self.total = total
        for name in COUNTERS:
            Meter.__dict__[name].__set__(self, 0)
        self.moved_at = 0.0
        self.throttle = None
        self.tap = None
        self.result = None
        self.upstream = None


COUNTERS: Final = ("bytes_up", "bytes_down", "datagrams_up", "datagrams_down", "datagrams_lost")

for _name in COUNTERS:
    setattr(CountedMeter, _name, _counted(_name))


class Leaving(Protocol):
    """A relay that stands still, to go on in another process or, with `put_back`, here."""

    meter: Meter

    @property
    def descriptors(self) -> tuple[int, int]:
        """Of client and upstream."""
        ...

    @property
    def pending(self) -> tuple[bytes, bytes]:
        """Bytes that were read and not yet written, up and down."""
        ...

    def state(self) -> dict[str, Any]:
        """What `Carried.state` is to be."""
        ...

    def release(self) -> None:
        """Another process has it: close both sockets without a word; `relay` raises `Departed`."""
        ...

    def put_back(self) -> None:
        """Go on."""
        ...


class Engine(Protocol):
    """Relays connections. One engine serves all sessions of one event loop."""

    name: str

    async def relay(
        self,
        client: socket.socket,
        upstream: socket.socket,
        settings: Settings,
        meter: Meter,
        carried: Carried | None = None,
    ) -> RelayResult:
        """Move bytes both ways until both sides are done; both sockets are non-blocking and connected.

        With `carried`, go on with what an engine of the same name had in another process. Raises `Departed`.
        """
        ...

    def take_out(self, at_most: int) -> Sequence[Leaving]:
        """Let relays stand still that can move, between two reads."""
        ...

    async def close(self) -> None:
        """End every relay that still runs and give back what the engine holds."""
        ...
