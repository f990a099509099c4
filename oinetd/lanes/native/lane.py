"""The native lane: listening sockets served from accept to close by the reactors, without Python.

The forwarder drives it:

    hub = Hub(loop, threads=config.threads)                     # EngineUnavailable where it cannot run
    hub.gate.set_limits(max_connections, max_per_source)        # of the process, both lanes; see `plane.py`
    lane = NativeLane(hub, on_opened=..., on_closed=..., on_unreachable=look_up_again)
    key = lane.add(sock, service)
    lane.replace(key, service)                                  # reload: socket and queue stay
    lane.refresh(key)                                           # a name of the service has other addresses
    lane.sessions(); lane.kill(id); lane.abort_all()
    lane.remove(key)                                            # on return no reactor touches `sock`
    await hub.close()                                           # aborts what is left, delivers every record

`sock` is bound, non-blocking, listening, and carries the options that accepted sockets inherit
(`oinetd.net.sockets.tune`). The caller keeps it, and closes it after `remove`; what is in its queue then can still be
accepted by the caller. A rule's own limits are counted by its `identity`, so that they hold over a reload.

A UDP socket is served by one reactor, and its sessions answer through it: `remove` aborts them. `linger` lets no new
client in and leaves them; when the last of them has ended, `on_emptied(key)` is called, before `on_closed`.
"""

from __future__ import annotations

import dataclasses
import itertools
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from oinetd.core.admission import Gate
from oinetd.core.record import Ending, SessionRecord, Totals
from oinetd.core.service import Service
from oinetd.lanes.native.plane import (
    CLOSED,
    COUNTED,
    ENDINGS,
    FULL,
    LOOPED,
    OPENED,
    TARGET,
    UNREACHABLE,
    Hub,
    compile_policy,
    new_gate,
)
from oinetd.lanes.native.records import fill_record, new_record, upstream_of
from oinetd.model import UDP_TIMEOUT_S, AccessRule, Endpoint, Protocol, Route, Rule, Settings
from oinetd.net.sockets import host_and_port, is_numeric
from oinetd.upstream.loops import Bound

if TYPE_CHECKING:
    from oinetd import _fastpath

__all__ = ["NativeLane"]


@dataclass(slots=True)
class _Served:
    """A socket of the lane: its number in the hub, the socket, kept open, and the tag of the policy in force."""

    index: int
    sock: socket.socket
    service: Service
    tag: int

    @property
    def datagrams(self) -> bool:
        return self.service.route.bind.protocol is Protocol.UDP


class NativeLane:
    """Listening sockets served from accept to close by the reactors of `hub`.

    `on_opened(record)` is called once for each admitted session, before its upstream leg is there, and
    `on_closed(record)` once for each that ended, with the same object; a refused client has only `on_closed`, and so
    has one that cannot be served over UDP. All come on the loop's thread, within some milliseconds. After
    `report_each_session(False)` neither is called: ends are counted, and `on_counted(route, ending, count)` is.
    `on_address(key, host, port, errno)`: an address of the destination begins to fail, or works again (errno 0).
    `on_unreachable(key)` is called when three connects of a listener failed in a native; the moment to resolve again.
    `on_looped(route, address, source)` is called once for each route when an address of its destination, or a sender of
    datagrams, was found to be a listener of ours.
    `on_full(rule, gate)` is called when clients have to wait at the gate of a rule, or at that of the process (None).
    """

    def __init__(
        self,
        hub: Hub,
        *,
        on_opened: Callable[[SessionRecord], object],
        on_closed: Callable[[SessionRecord], object],
        on_counted: Callable[[Route, Ending, int], object] | None = None,
        on_unreachable: Callable[[int], object] | None = None,
        on_address: Callable[[int, str, int, int], object] | None = None,
        on_emptied: Callable[[int], object] | None = None,
        on_looped: Callable[[Route, str, bool], object] | None = None,
        on_full: Callable[[Rule | None, Gate], object] | None = None,
    ) -> None:
        self._hub = hub
        self._on_opened = on_opened
        self._on_closed = on_closed
        self._on_counted = on_counted
        self._on_unreachable = on_unreachable
        self._on_address = on_address
        self._on_emptied = on_emptied
        self._on_looped = on_looped
        self._on_full = on_full
        self._listeners: dict[int, _Served] = {}
        self._keys = itertools.count(1)
        self._tags = itertools.count(1)
        self._in_force: dict[int, tuple[int, Service, _fastpath.Policy]] = {}
        self._gates: dict[Endpoint | Rule, _fastpath.Gate] = {}
        self._datagrams_at: dict[Endpoint | Rule, int] = {}
        self._live: dict[int, SessionRecord] = {}
        self._unused: list[int] = []
        self._ended = 0
        hub.take(OPENED, self._opened)
        hub.take(CLOSED, self._closed)
        hub.take(COUNTED, self._counted)
        hub.take(UNREACHABLE, self._unreachable)
        hub.take(LOOPED, self._looped)
        hub.take(FULL, self._full)
        hub.take(TARGET, self._address_changed)
        hub.on_empty = self._sweep

    def add(self, sock: socket.socket, service: Service) -> int:
        """Serve a listening or UDP socket from now on, its queue included; the answer is the key for the other calls.

        Raises `OSError` where it cannot be watched.
        """
        key = next(self._keys)
        tag, policy = self._compile(key, service)
        served = _Served(0, sock, service, tag)
        hub, rule = self._hub, service.route.rule
        try:
            if served.datagrams:
                # One rule's sessions can only make room for each other where they are of one thread.
                beside = self._datagrams_at.get(rule.identity) if rule.options.max_connections else None
                served.index = hub.add_udp_listener(sock.fileno(), policy, beside)
                self._datagrams_at.setdefault(rule.identity, served.index)
            else:
                served.index = hub.add_listener(sock.fileno(), policy)
        except BaseException:
            del self._in_force[tag]
            raise
        self._listeners[key] = served
        return key

    def replace(self, key: int, service: Service) -> None:
        """Put something else in force for sessions to come; those that live keep what they began with."""
        self._put_in_force(key, service, anew=True)

    def refresh(self, key: int) -> None:
        """The destination, or where its sockets are bound to, has other addresses."""
        self._put_in_force(key, self._listeners[key].service, anew=False)

    def _put_in_force(self, key: int, service: Service, *, anew: bool) -> None:
        served = self._listeners[key]
        tag, policy = self._compile(key, service, self._in_force[served.tag][2])
        if served.datagrams:
            self._hub.replace_udp_listener(served.index, policy, anew)
        else:
            self._hub.replace_listener(served.index, policy)
        served.service, served.tag = service, tag
        self._hub.fetch_soon()

    def remove(self, key: int) -> None:
        """Accept no more. On return no reactor touches the socket; who is in its queue is still there."""
        served = self._listeners.pop(key)
        if served.datagrams:
            self._hub.remove_udp_listener(served.index)
        else:
            self._hub.remove_listener(served.index)
        self._hub.fetch_soon()

    def linger(self, key: int) -> bool:
        """Let nobody new in over a UDP socket until `replace`; whether it has sessions."""
        return self._hub.linger_udp_listener(self._listeners[key].index) > 0

    def is_empty(self, key: int) -> bool:
        """Whether a UDP socket has no session."""
        return self._hub.udp_sessions_of(self._listeners[key].index) == 0

    def revoke(self, key: int, access: tuple[AccessRule, ...]) -> int:
        """End the sessions of a UDP socket whose clients the global rules `access`, or the rule's own, refuse."""
        served = self._listeners[key]
        policy = compile_policy(0, None, served.service.settings, access=(access, served.service.route.rule.access))
        return self._hub.revoke_udp_sessions(served.index, policy)

    def judge(self, rules: Mapping[Rule, tuple[tuple[AccessRule, ...], bool]]) -> dict[Rule, int]:
        """How many live connections of rules are refused by global access rules and their own; True ends them."""
        cases = [
            (rule, gate, compile_policy(0, None, Settings(), access=(access, rule.access)), ends)
            for rule, (access, ends) in rules.items()
            if (gate := self._gates.get(rule.identity)) is not None
        ]
        found = self._hub.judge([case[1:] for case in cases])
        return {case[0]: count for case, count in zip(cases, found, strict=True)}

    def trim(self) -> None:
        """The bound of UDP sessions has changed: end those above it."""
        self._hub.trim_udp_sessions()

    def end_quiet(self) -> None:
        """End the UDP sessions in which nothing is under way."""
        self._hub.end_quiet_udp_sessions()

    def lost(self) -> Iterator[tuple[Endpoint | Rule, int, int]]:
        """Datagrams of clients without a session dropped since the last call, and those of them that were forged."""
        for identity, gate in self._gates.items():
            if lost := gate.take_lost():
                yield identity, lost, gate.take_forged()

    def know_own(self, datagrams: Iterable[Bound]) -> None:
        """Take nobody in whose datagrams come from one of these UDP sockets: they are listeners of ours."""
        own = [(bound.address.sockaddr, bound.v6only) for bound in datagrams]
        self._hub.set_own_listeners(sorted(own, key=lambda each: each[0][1]))

    def report_each_session(self, each: bool) -> None:
        """Whether to report each session or totals, from now on; those that ended before are reported as before."""
        self._hub.collect()
        self._hub.totals_only = not each
        if not each:
            self._live.clear()

    @property
    def anybody(self) -> bool:
        """Whether a session lives, or has ended and was not told or counted yet."""
        return sum(gate.admitted for gate in self._gates.values()) > self._ended

    def totals(self) -> dict[Endpoint | Rule, Totals]:
        """What sessions have moved, by the `identity` of rules; no live session is looked at."""
        return {identity: Totals(*gate.totals) for identity, gate in self._gates.items()}

    def sessions(self) -> list[SessionRecord]:
        """Live sessions with their counts of this moment, oldest first."""
        records = []
        for native in self._hub.snapshot():
            in_force = self._in_force.get(native.tag)
            if in_force is not None:
                records.append(fill_record(new_record(native, in_force[1]), native, in_force[1], in_force[2]))
        return sorted(records, key=lambda record: record.id)

    def kill(self, session_id: int) -> bool:
        """End a session; both its peers see a reset. False where no such session is known."""
        if session_id not in self._live and all(native.id != session_id for native in self._hub.snapshot()):
            # The second look is for one that `sessions` shows already, while the word of its opening is on its way.
            return False
        self._hub.kill(session_id)
        return True

    def abort_all(self) -> None:
        """End every session, those of `NativeEngine` too."""
        self._hub.abort_all()

    def _compile(
        self, key: int, service: Service, before: _fastpath.Policy | None = None
    ) -> tuple[int, _fastpath.Policy]:
        tag = next(self._tags)
        rule, settings, guard = service.route.rule, service.settings, service.guard
        options = rule.options
        gate = self._gates.setdefault(rule.identity, new_gate())
        gate.set_limits(options.max_connections or 0, options.max_connections_per_source or 0)
        gate.calm()
        addresses = service.destination.at(service.route.connect.port)
        if service.route.bind.protocol is Protocol.UDP:
            said = options.udp_timeout_s
            settings = dataclasses.replace(settings, idle_timeout_s=UDP_TIMEOUT_S if said is None else said)
        policy = compile_policy(
            tag,
            gate,
            settings,
            flip_bytes=self._hub.flip_bytes,
            move_turns=self._hub.move_turns,
            local_ports=self._hub.local_ports,
            addresses=tuple(address.sockaddr for address in addresses),
            may_broadcast=is_numeric(service.route.connect.address),
            sources=tuple(address.sockaddr for address in service.source),
            looping=tuple(address in guard.addresses for address in addresses) if guard is not None else (),
            access=(service.global_access, rule.access),
            source_prefix=service.source_prefix,
            peer_uid=service.peer_uid,
            options=service.connect_options,
            before=before,
        )
        self._in_force[tag] = (key, service, policy)
        return tag, policy

    def _sweep(self) -> None:
        """Every record has been handed out: forget what nothing goes by any more.

        In two steps, because a connection writes its last record before it lets go: what nothing went by before the
        rings were found empty has no record on the way.
        """
        for tag in self._unused:
            del self._in_force[tag]
        current = {served.tag for served in self._listeners.values()}
        self._unused = [
            tag for tag, in_force in self._in_force.items() if tag not in current and not in_force[2].in_use
        ]

    def _opened(self, native: _fastpath.Record) -> None:
        if self._hub.totals_only:  # it began while that came into force, and its end will be a sum
            return
        record = self._live[native.id] = new_record(native, self._in_force[native.tag][1])
        self._on_opened(record)

    def _closed(self, native: _fastpath.Record) -> None:
        key, service, policy = self._in_force[native.tag]
        opened = self._live.pop(native.id, None)
        record = fill_record(opened or new_record(native, service), native, service, policy)
        record.ending, record.errno = ENDINGS[native.ending], native.errno
        self._ended += not record.ending.refused
        if native.token and self._on_emptied is not None and key in self._listeners:
            self._on_emptied(key)
        self._on_closed(record)

    def _counted(self, native: _fastpath.Record) -> None:
        ending, count = ENDINGS[native.ending], native.id
        self._ended += 0 if ending.refused else count
        if self._on_counted is not None:
            self._on_counted(self._in_force[native.tag][1].route, ending, count)

    def _full(self, native: _fastpath.Record) -> None:
        in_force = self._in_force.get(native.tag)
        if self._on_full is None or in_force is None:
            return
        rule = in_force[1].route.rule
        if native.token:
            self._on_full(rule, self._gates[rule.identity])
        else:
            self._on_full(None, self._hub.gate)

    def _address_changed(self, native: _fastpath.Record) -> None:
        if self._on_address is not None and (in_force := self._in_force.get(native.tag)) is not None:
            self._on_address(in_force[0], *upstream_of(native, in_force[2]), native.errno)

    def _unreachable(self, native: _fastpath.Record) -> None:
        in_force = self._in_force.get(native.tag)
        if self._on_unreachable is not None and in_force is not None and in_force[0] in self._listeners:
            self._on_unreachable(in_force[0])

    def _looped(self, native: _fastpath.Record) -> None:
        in_force = self._in_force.get(native.tag)
        if self._on_looped is not None and in_force is not None:
            self._on_looped(
                in_force[1].route,
                host_and_port(native.upstream or native.client, native.upstream_port or native.client_port),
                not native.upstream,
            )
