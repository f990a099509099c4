"""Sessions of the native lane on their way to another process, and those that come from one."""

from __future__ import annotations

import errno
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from oinetd.core.engine import COUNTERS
from oinetd.core.lane import Departing
from oinetd.core.record import Ending, SessionRecord, Try
from oinetd.core.registry import Registry
from oinetd.core.service import Service, Watcher
from oinetd.lanes.native.records import FOREIGN, address_of, set_names
from oinetd.model import Endpoint, Rule
from oinetd.net.sockets import bound_address
from oinetd.net.unix_sockets import Credentials

if TYPE_CHECKING:
    from oinetd import _fastpath
    from oinetd.lanes.native.lane import NativeLane
    from oinetd.lanes.native.listener import ReactorDatagrams
    from oinetd.lanes.native.plane import Hub

__all__ = ["DatagramDeparture", "Departure", "Departures", "Held"]

GONE: Final = (1 << 64) - 1
"""The tag of a server that the group no longer has."""


class Held:
    """A connection that the reactors of `hub` have let go of."""

    def __init__(self, hub: Hub, passport: _fastpath.Passport) -> None:
        self._hub = hub
        self._passport = passport

    @property
    def id(self) -> int:
        return self._passport.id

    @property
    def descriptors(self) -> tuple[int, int]:
        return self._passport.descriptors

    @property
    def pending(self) -> tuple[bytes, bytes]:
        return self._passport.pending

    def state(self) -> dict[str, Any]:
        return self._passport.state()

    def release(self) -> None:
        self._passport.release()

    def put_back(self) -> None:
        self._hub.put_in(self._passport)


class Departure(Held):
    """One that was accepted in the reactors; see `oinetd.core.lane.Departing`."""

    def __init__(self, lane: NativeLane, passport: _fastpath.Passport) -> None:
        super().__init__(lane.hub, passport)
        self._lane = lane
        self._service = lane.in_force(passport.tag).service

    def state(self) -> dict[str, Any]:
        state = super().state()
        return {**state, "bind": str(self._service.route.bind), **self._names(state)}

    def _names(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """What numbers of this process stand for: the server, a unix socket's path, and addresses that were tried."""
        in_force, known = self._lane.in_force(self._passport.tag), self._lane.live.get(self.id)
        policy, servers, server = in_force.policy, in_force.servers, self._passport.server
        tried = [
            [*address_of(policy, host, port, each), code, servers[each].name if each else ""]
            for host, port, code, each in state["tries"]
        ]
        host, port = state["texts"][2:]
        upstream, _ = address_of(policy, host, port, server)
        return {
            "server": servers[server].name if server else known.server if known is not None else "",
            "path": upstream or (known.upstream if known is not None else ""),
            "tried": [*(known.tries if known is not None else ()), *tried],
        }

    def release(self) -> None:
        session_id = self.id
        super().release()
        self._lane.departures.count(self._service, session_id)


class DatagramDeparture:
    """The same of a UDP session, which answers through `listener`."""

    def __init__(self, listener: ReactorDatagrams, passport: _fastpath.DatagramPassport) -> None:
        self._listener = listener
        self._passport = passport
        self._service = listener.lane.in_force(passport.tag).service

    @property
    def id(self) -> int:
        return self._passport.id

    @property
    def descriptors(self) -> tuple[int]:
        return (self._passport.descriptor,)

    @property
    def pending(self) -> tuple[bytes, bytes]:
        return b"", b""

    def state(self) -> dict[str, Any]:
        route = self._service.route
        return {**self._passport.state(), "bind": str(route.bind), "socket": str(bound_address(self._listener.sock))}

    def release(self) -> None:
        session_id = self._passport.id
        self._passport.release()
        self._listener.lane.departures.count(self._service, session_id)

    def put_back(self) -> None:
        self._listener.lane.departures.go_on_with_datagrams(self._listener, self._passport)


class Departures:
    """The sessions that leave a native lane, and those that come to it. `moved` counts the former by rule."""

    def __init__(self, lane: NativeLane, registry: Registry, watcher: Watcher) -> None:
        self._lane = lane
        self._registry = registry
        self._watcher = watcher
        self.moved: Counter[Endpoint | Rule] = Counter()

    def take_out(self, at_most: int) -> tuple[list[Departing], int]:
        """Take out at most this many sessions; the second value is how many of the others may be able to move soon."""
        self._lane.hub.collect()  # one whose opening is not reported stays
        passports, left = self._lane.hub.take_out(at_most)
        return [Departure(self._lane, each) for each in passports], left

    def count(self, service: Service, session_id: int) -> None:
        """A session has gone to another process."""
        self.moved[service.route.rule.identity] += 1
        self._lane.leave(session_id)

    def adopt_datagrams(
        self, listener: ReactorDatagrams, state: Mapping[str, Any], fd: int
    ) -> Callable[[], None] | None:
        """The same for a UDP session, which answers through `listener`."""
        if "key" not in state:
            return None
        client, port = state["client"]
        record = SessionRecord(
            int(state["id"]), listener.service.route, str(client), int(port), float(state["started"])
        )
        policy = self._lane.in_force(listener.tag).policy
        passport = self._lane.hub.adopt_udp_session(policy, state, fd)
        if passport is None:
            return None
        self._lane.enter(record)
        return lambda: self.go_on_with_datagrams(listener, passport)

    def go_on_with_datagrams(self, listener: ReactorDatagrams, passport: _fastpath.DatagramPassport) -> None:
        """Raises `OSError` or `MemoryError` if the reactor cannot take the session, which has ended then."""
        try:
            listener.put_in(passport)
        except (OSError, MemoryError) as error:
            self._end_datagrams(passport, getattr(error, "errno", errno.ENOMEM))
            raise

    def _end_datagrams(self, passport: _fastpath.DatagramPassport, code: int) -> None:
        """No reactor has a session, and none will report it."""
        state, record = passport.state(), self._lane.live.get(passport.id)
        rule = self._lane.in_force(passport.tag).service.route.rule
        self._lane.leave(passport.id)
        upstream = socket.socket(fileno=passport.descriptor)
        place = upstream.getpeername()
        upstream.detach()
        passport.release()
        if record is None:
            self._registry.native_counted(rule, Ending.ABORTED, 1)
            self._watcher.left()
            return
        for name, count in zip(COUNTERS, state["counts"], strict=True):
            setattr(record, name, count)
        record.upstream, record.upstream_port = place[:2]
        record.engine = "native"
        record.duration_s = max(time.monotonic() - state["started_us"] / 1e6, 0.0)
        record.ending, record.errno = Ending.ABORTED, code
        self._registry.native_closed(record)
        self._watcher.closed(record)

    def adopt(
        self, tag: int, state: Mapping[str, Any], fds: tuple[int, int], pending: tuple[bytes, bytes]
    ) -> Callable[[], None] | None:
        """Take a connection of another process over, by the service with this tag; None if it is of another lane.

        It goes on when the result is called.
        """
        if not tag or "flows" not in state:
            return None
        _, service, policy, servers = self._lane.in_force(tag)
        record = _adopted_record(state, service)
        server = at = 0
        if record.server:
            tags = {member.name: number for number, member in servers.items()}
            server = tags.get(record.server, GONE)
        if record.upstream:
            at = _number_of(policy, record.upstream, server)
        native = {**state, "tries": ()} if "tried" in state else state
        passport = self._lane.hub.adopt(policy, native, *fds, *pending, server=server, address_at=at)
        self._lane.enter(record)
        return lambda: self._lane.hub.put_in(passport)


def _adopted_record(state: Mapping[str, Any], service: Service) -> SessionRecord:
    """The record of a session that another process began."""
    client, port, *_ = state["texts"]
    record = SessionRecord(int(state["id"]), service.route, str(client), int(port), float(state["started"]))
    if state["credentials"] is not None:
        record.credentials = Credentials(*map(int, state["credentials"]))
    if (peer := state.get("peer")) is not None:
        record.peer, record.peer_port = str(peer[0]), int(peer[1])
    if (hello := state.get("hello")) is not None:
        set_names(record, str(hello[0]), bytes.fromhex(hello[1]))
    if service.group is not None:
        record.group, record.server = service.group.name, str(state.get("server", ""))
    if str(path := state.get("path", "")).startswith("unix:"):
        record.upstream = path
    record.tries = tuple(Try(str(a), int(p), int(code), str(server)) for a, p, code, server in state.get("tried", ()))
    return record


def _number_of(policy: _fastpath.Policy, path: str, server: int) -> int:
    """The number that the address of a unix socket has among those of the server, or of the destination."""
    for at in range(FOREIGN):
        try:
            found, _ = policy.address(at, server)
        except IndexError:
            break
        if found == path:
            return at
    return FOREIGN
