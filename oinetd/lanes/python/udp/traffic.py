"""What moves in a UDP session: datagrams of the client to its upstream, and back, within its bandwidth."""

from __future__ import annotations

import socket
from collections.abc import Hashable, Iterable

from oinetd.core.record import Ending
from oinetd.core.registry import Live, RuleEntry
from oinetd.lanes.python.udp.held import HeldDatagrams
from oinetd.lanes.python.udp.home import Home
from oinetd.lanes.python.udp.plane import NOWHERE
from oinetd.lanes.python.udp.table import Queue
from oinetd.net.datagrams import Group
from oinetd.preamble.proxy_protocol import Header
from oinetd.upstream.silence import Trail

__all__ = ["Traffic"]


class Traffic:
    """The part of a session that each datagram passes; its fields are explained where the session begins."""

    __slots__ = (
        "_held",
        "answered",
        "asked",
        "ended",
        "header",
        "home",
        "key",
        "last",
        "live",
        "queue",
        "rule",
        "sock",
        "timeout_s",
        "trail",
    )

    home: Home
    key: Hashable
    live: Live
    sock: socket.socket | None
    header: Header | None
    trail: Trail
    ended: bool
    answered: bool
    asked: float
    last: float
    queue: Queue
    rule: RuleEntry
    timeout_s: float
    _held: HeldDatagrams

    def end(self, ending: Ending, code: int = 0) -> None:
        """End the session."""
        raise NotImplementedError

    def forward(self, group: Group) -> None:
        """Datagrams of the client, which are still in the batch, go to the upstream."""
        raise NotImplementedError

    def forward_each(self, datagrams: list[bytes]) -> None:
        """Datagrams of the client, which are in no batch, go to the upstream."""
        raise NotImplementedError

    def heard(self) -> None:
        """Something moved: the session is not silent."""
        if not self.ended:
            self.home.plane.table.touch(self)
            self.live.meter.moved_at = self.last

    def heard_answer(self) -> None:
        """The same, and it was the destination."""
        if not self.ended:
            self.asked = 0.0
            self.trail = NOWHERE
            if not self.answered:
                self.home.plane.table.answer(self)
            self.home.plane.table.touch(self)

    def take_up(self, group: Group) -> None:
        """Datagrams of the client."""
        if not self.asked:
            self.asked = self.home.plane.loop.time()
        group = self.within_bandwidth(0, group)
        if not group.length:
            return
        if self.sock is None:
            self.hold(self.home.batch.take(group))
        else:
            self.forward(group)

    def take_up_each(self, datagrams: list[bytes], header: Header) -> None:
        """Datagrams of the client, which came behind `header`."""
        if not self.asked:
            self.asked = self.home.plane.loop.time()
        passing = datagrams[: self.passing(0, datagrams)]
        if header != self.header:
            self.replace_header(header)
        if self.sock is None:
            self.hold(passing)
        elif passing:
            self.forward_each(passing)

    def replace_header(self, header: Header) -> None:
        """The peer says something else of the client from now on."""
        self.header = header

    def within_bandwidth(self, way: int, group: Group) -> Group:
        """The datagrams of a group that may pass, the first ones; the others are lost."""
        if self.live.meter.throttle is None:
            return group
        return group._replace(length=self.passing(way, self.home.batch.take(group)))

    def passing(self, way: int, datagrams: list[bytes]) -> int:
        """How many of these datagrams may pass, the first ones; the others are lost."""
        throttle = self.live.meter.throttle
        if throttle is None:
            return len(datagrams)
        passing = 0
        for datagram in datagrams:
            if not throttle.passes(way, len(datagram)):
                break
            passing += 1
        self.live.meter.datagrams_lost += len(datagrams) - passing
        return passing

    def hold(self, datagrams: Iterable[bytes]) -> None:
        """Keep datagrams until there is an upstream to take them; what is too much is lost."""
        self.live.meter.datagrams_lost += self._held.hold(datagrams)

    def release_held(self) -> list[bytes]:
        """What was held, which is then held no more."""
        return self._held.release()

    @property
    def holds(self) -> bool:
        """Whether anything is held."""
        return bool(self._held)

    def send_down(self, group: Group) -> None:
        """Datagrams in the batch go to the client."""
        meter = self.live.meter
        group = self.within_bandwidth(1, group)
        if not group.length:
            return
        sent = self.home.batch.send(self.home.sock, group, self.key)
        meter.bytes_down += sent.size
        meter.datagrams_down += sent.datagrams
        meter.datagrams_lost += group.length - sent.datagrams
