"""The hooks that decide of a client before it is dialled for: `admit` lets it in or not, `route` says where it goes."""

from __future__ import annotations

import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple, TypeAlias

from oinetd.core.hooks import Admit
from oinetd.core.record import SessionRecord
from oinetd.model import Endpoint, Protocol
from oinetd.net.sockets import is_numeric, lookup
from oinetd.upstream.destination import Destination

__all__ = ["Decide", "RouteAnswer", "RouteHook", "Routed", "Router"]

RouteAnswer: TypeAlias = Endpoint | str | bool | None
"""None or True: the destination of the rule. False: the client is refused. Otherwise the destination, perhaps as
`host:port`."""

RouteHook: TypeAlias = Callable[[SessionRecord], RouteAnswer | Awaitable[RouteAnswer]]

NAMES_MAX: Final = 1024
REFRESH_S: Final = 60.0
"""Names that the hook says are looked up again after this time."""


class Routed(NamedTuple):
    """Where a client goes in place of the destination of its rule."""

    destination: Destination
    port: int


Decide: TypeAlias = Callable[[SessionRecord], Awaitable["bool | Routed"]]


class Router:
    """Both hooks as one; either may be None. It remembers the names that `route` says."""

    def __init__(self, admit: Admit | None, route: RouteHook | None) -> None:
        self._admit = admit
        self._route = route
        self._known: dict[str, tuple[Destination, float]] = {}

    def __bool__(self) -> bool:
        """Whether there is a hook."""
        return self._admit is not None or self._route is not None

    async def decide(self, record: SessionRecord) -> bool | Routed:
        """What the hooks say of a client. Raises what they raise, and `ValueError` for an answer that is none."""
        if self._admit is not None and not await self._admit(record):
            return False
        if self._route is None:
            return True
        answer = self._route(record)
        if inspect.isawaitable(answer):
            answer = await answer
        if answer is None or isinstance(answer, bool):
            return answer is not False
        endpoint = _endpoint(answer)
        if Protocol.UDP in (record.route.bind.protocol, record.route.connect.protocol):
            raise ValueError(f"route: a UDP session goes to the destination of its rule, not to {endpoint}")
        return Routed(self._destination(endpoint.address), endpoint.port)

    def close(self) -> None:
        """Look nothing up any more."""
        for destination, _ in self._known.values():
            destination.stop()
        self._known.clear()

    def _destination(self, host: str) -> Destination:
        now = time.monotonic()
        known = self._known.pop(host, None)
        if known is None or now >= known[1]:
            if known is not None:
                known[0].stop()
            known = (Destination(host, REFRESH_S, lookup(host) if is_numeric(host) else ()), now + REFRESH_S)
        self._known[host] = known  # the last one used is the last one here
        if len(self._known) > NAMES_MAX:
            self._known.pop(next(iter(self._known)))[0].stop()
        return known[0]


def _endpoint(answer: Endpoint | str) -> Endpoint:
    if isinstance(answer, Endpoint):
        return answer
    host, colon, port = answer.rpartition(":")
    if not (colon and host and port.isascii() and port.isdecimal()):
        raise ValueError(f"route: {answer!r} is not host:port")
    return Endpoint(host, int(port))
