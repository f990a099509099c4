"""The native lane: listening sockets served from accept to end by the reactors, without Python.

A listening socket is bound and non-blocking, and has the options that accepted sockets inherit
(`oinetd.net.sockets.tune`). After `release` no reactor touches it: what is in its queue can still be accepted by
others. A rule's own limits are counted by its `identity`, so that they hold over a reload.

A UDP socket is served by one reactor, and its sessions answer through it: `release` aborts them.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from oinetd.core.engine import Engine
from oinetd.core.histogram import HistogramCounts
from oinetd.core.lane import AccessCheck, Departing
from oinetd.core.record import Ending, SessionRecord, Totals
from oinetd.core.registry import Registry
from oinetd.core.service import Service, Watcher
from oinetd.errors import EngineUnavailable
from oinetd.lanes.native.departure import Departures
from oinetd.lanes.native.engine import NativeEngine
from oinetd.lanes.native.groups import compile_group, servers_by_tag, session_parts
from oinetd.lanes.native.listener import ReactorDatagrams, ReactorListener
from oinetd.lanes.native.named import Chosen, compile_chooser
from oinetd.lanes.native.plane import (
    CLOSED,
    COUNTED,
    ENDINGS,
    OPENED,
    Hub,
    compile_policy,
    new_gate,
)
from oinetd.lanes.native.rates import set_bounds
from oinetd.lanes.native.records import InForce, fill_record, new_record, tell_invalid
from oinetd.lanes.native.reports import listen_for_reports
from oinetd.lanes.native.unserved import why_unserved
from oinetd.model import Config, Endpoint, EngineChoice, Protocol, Rule, Settings
from oinetd.net.forking import Held
from oinetd.net.sockets import Address, is_numeric
from oinetd.upstream.loops import Bound, Loops
from oinetd.upstream.member import Member

if TYPE_CHECKING:
    from oinetd import _fastpath

__all__ = ["NativeLane"]

LIVE_RECORDS = 128  # taken from a snapshot at a time


class NativeLane:
    """Serves rules in the reactors, which `eligible` starts; see `oinetd.core.lane.Lane`.

    Everything is reported on the loop's thread, within some milliseconds: `watcher.opened` once for each admitted
    session, before its upstream leg is there, and `watcher.closed` once for each that ended, with the same record. A
    client that was refused, or could not be served over UDP, has only `closed`. After `report_each_session(False)` the
    ends are counted, and `watcher.left` is called.
    """

    name = "native"
    hub: Hub
    engine: Engine

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        registry: Registry,
        watcher: Watcher,
        loops: Loops,
        held: Held,
        *,
        hooked: bool = False,
        tapped: bool = False,
    ) -> None:
        self.running = False
        self.listeners: set[ReactorListener] = set()
        self.datagram_indexes: dict[Endpoint | Rule, int] = {}
        self._loop = loop
        self._registry = registry
        self._watcher = watcher
        self._loops = loops
        self._held = held
        self._hooked = hooked
        self._tapped = tapped
        self._tags = itertools.count(1)
        self._in_force: dict[int, InForce] = {}
        self._gates: dict[Endpoint | Rule, _fastpath.Gate] = {}
        self._fronts: dict[Endpoint | Rule, _fastpath.Gate] = {}  # of listeners that rules share, by their first one
        self.live: dict[int, SessionRecord] = {}
        self._unused: list[int] = []
        self._ended = 0
        self.departures = Departures(self, registry, watcher)

    def start(self, config: Config) -> None:
        """Start the reactors; a second call does nothing. Raises `EngineUnavailable` if they cannot run."""
        if self.running:
            return
        self.hub = hub = Hub(
            self._loop,
            gate=self._registry.gate,
            udp_gate=self._registry.datagrams,
            threads=config.threads,
            busy_poll_us=config.busy_poll_us,
        )
        self.engine = NativeEngine(hub)
        self._held.reactors = hub
        hub.take(OPENED, self._opened)
        hub.take(CLOSED, self._closed)
        hub.take(COUNTED, self._counted)
        listen_for_reports(hub, self._in_force, self._registry, self._gates, self._loops)
        hub.on_empty = self._sweep
        self.running = True

    def eligible(self, config: Config, rule: Rule) -> str | None:
        wanted = config.settings_of(rule).engine
        if wanted is EngineChoice.PYTHON:
            return "asked for"
        if (unserved := why_unserved(rule)) is not None:
            reason, error = unserved
        else:
            try:
                self.start(config)
                if not (self._tapped and rule.bind.protocol is Protocol.TCP):
                    return "the program has an admit hook" if self._hooked else None
                reason, error = "the program has a tap", "a tap needs the Python lane: write engine=auto"
            except EngineUnavailable as unavailable:
                reason = str(unavailable)
                error = f"{reason}; `engine auto` would fall back to the Python lane"
        if wanted is EngineChoice.NATIVE:
            raise EngineUnavailable(f"{rule.origin}: {error}" if rule.origin.line else error)
        return reason

    def label(self, engine: Engine) -> str:
        return "native lane"

    def serve(self, sock: socket.socket, service: Service, *, start: bool = True) -> ReactorListener:
        kind = ReactorDatagrams if service.route.bind.protocol is Protocol.UDP else ReactorListener
        listener = kind(self, sock, service)
        if start:
            listener.start()
        return listener

    @property
    def reactors(self) -> int:
        return self.hub.reactors

    def reconfigure(self, config: Config) -> None:
        self.hub.reconfigure(config.threads, config.busy_poll_us)

    def set_own_listeners(self, datagrams: Iterable[Bound]) -> None:
        own = [(bound.address.sockaddr, bound.v6only) for bound in datagrams]
        self.hub.set_own_listeners(sorted(own, key=lambda each: each[0][1]))

    def trim_datagrams(self) -> None:
        self.hub.trim_udp_sessions()

    def check_access(self, rules: AccessCheck) -> dict[Rule, int]:
        cases = [
            (rule, gate, compile_policy(0, None, Settings(), access=(access, rule.access)), ends)
            for rule, (access, ends) in rules.items()
            if (gate := self._gates.get(rule.identity)) is not None
        ]
        found = self.hub.judge([case[1:] for case in cases])
        return {case[0]: count for case, count in zip(cases, found, strict=True)}

    def report_each_session(self, each: bool) -> None:
        self.hub.collect()  # those that ended before are reported as before
        self.hub.totals_only = not each
        if not each:
            self.live.clear()

    @property
    def busy(self) -> bool:
        return sum(gate.admitted for gate in (*self._gates.values(), *self._fronts.values())) > self._ended

    def settle(self) -> None:
        if self.hub.totals_only:  # otherwise it would call hooks
            self.hub.collect()
        for identity, gate in self._gates.items():
            if lost := gate.take_lost():
                self._registry.native_lost(identity, lost, gate.take_forged())

    def histograms(self) -> Mapping[Endpoint | Rule, tuple[HistogramCounts, HistogramCounts]]:
        counted = ((identity, gate.histograms) for identity, gate in self._gates.items())
        return {identity: (HistogramCounts(*two[0]), HistogramCounts(*two[1])) for identity, two in counted}

    def totals(self) -> Mapping[Endpoint | Rule, Totals]:
        found = {identity: Totals(*gate.totals, gate.rate_waits) for identity, gate in self._gates.items()}
        for identity, gate in self._fronts.items():
            found[identity] = found[identity].plus(Totals(*gate.totals))
        return found

    def sessions(self) -> Iterator[SessionRecord]:
        live = self.hub.snapshot_parts()
        while natives := live.take(LIVE_RECORDS):
            for native in natives:
                if (in_force := self._in_force.get(native.tag)) is not None:
                    yield fill_record(new_record(native, in_force.service, self.live.get(native.id)), native, in_force)

    def kill(self, session_id: int, *, known: bool = False) -> bool:
        if not (known or session_id in self.live or any(each.id == session_id for each in self.hub.snapshot())):
            # The second look is for one that `sessions` shows already, while the record of its opening is in the ring.
            return False
        self.hub.kill(session_id)
        return True

    def in_force(self, tag: int) -> InForce:
        """What this tag stands for."""
        return self._in_force[tag]

    def enter(self, record: SessionRecord) -> None:
        """A session of another process goes on here."""
        if not self.hub.totals_only:
            self.live[record.id] = record

    def leave(self, session_id: int) -> None:
        """Another process goes on with a session."""
        self.live.pop(session_id, None)
        self._ended += 1

    def server_sessions(self, member: Member) -> Iterable[Callable[[Ending], object]]:
        """The sessions of a server, in parts, each as the function that ends it."""
        return session_parts(self.hub, member) if self.running else ()

    def take_out(self, at_most: int) -> tuple[list[Departing], int]:
        return self.departures.take_out(at_most)

    def end_quiet(self) -> None:
        self.hub.end_quiet_udp_sessions()

    def abort_all(self) -> None:
        self.hub.abort_all()  # those of `engine` too

    async def close(self) -> None:
        await self.engine.close()
        await self.hub.close()

    # Policies

    def compile(self, listener: ReactorListener) -> tuple[int, _fastpath.Policy]:
        """A policy for the service of `listener`, and its tag; what the one in force knows of addresses is kept."""
        service, names = listener.service, listener.service.names
        if names is None:
            listener.chosen = {}
            return self._compile(listener, service, listener.tag)
        found = [self._compile_chosen(listener, one) for one in service.each]
        listener.chosen = {one.service.route.rule.identity: one for one in found}
        tag, identity = next(self._tags), service.route.rule.identity
        gate = self._fronts.setdefault(identity, new_gate())
        policy = compile_chooser(tag, gate, service, tuple(one.policy for one in found))
        self._in_force[tag] = InForce(listener, service, policy, {})
        return tag, policy

    def _compile_chosen(self, listener: ReactorListener, service: Service) -> Chosen:
        """The policy of a rule that shares a listener; the one in force if nothing changed."""
        known = listener.chosen.get(service.route.rule.identity)
        if known is not None and known.is_of(service):
            return known
        return Chosen.of(service, *self._compile(listener, service, 0 if known is None else known.tag))

    def _compile(self, listener: ReactorListener, service: Service, known: int) -> tuple[int, _fastpath.Policy]:
        """A policy for a service; `known` is the tag of the one before."""
        tag = next(self._tags)
        rule, settings, guard, options = service.route.rule, service.settings, service.guard, service.route.rule.options
        gate = self._gates.setdefault(rule.identity, new_gate())
        set_bounds(gate, options, settings)
        before = self._in_force[known].policy if known else None
        group = None
        addresses: tuple[Address, ...] = ()
        if service.group is None:
            addresses = service.destination.at(service.route.place)
        else:
            group = compile_group(
                service.group, service, self.hub.local_ports, None if before is None else before.group
            )
        policy = compile_policy(
            tag,
            gate,
            settings,
            udp_timeout_s=options.datagram_timeout_s if service.route.bind.protocol is Protocol.UDP else None,
            flip_bytes=self.hub.flip_bytes,
            move_turns=self.hub.move_turns,
            local_ports=self.hub.local_ports,
            addresses=tuple(address.sockaddr for address in addresses),
            may_broadcast=is_numeric(service.route.connect.address),
            sources=tuple(address.sockaddr for address in service.source),
            looping=tuple(address in guard.addresses for address in addresses) if guard is not None else (),
            access=(service.global_access, rule.access),
            source_prefix=service.source_prefix,
            peer_uid=service.peer_uid,
            trusts=service.preamble.trusts if service.preamble is not None else (),
            options=service.connect_options,
            original_port=service.route.bind.port if service.route.connect.is_original else -1,
            group=group,
            before=before,
        )
        self._in_force[tag] = InForce(listener, service, policy, servers_by_tag(service.group))
        return tag, policy

    def forget(self, tag: int) -> None:
        """The policy with this tag did not come into force."""
        del self._in_force[tag]

    def _sweep(self) -> None:
        """Every record has been handed out: forget the policies that nothing uses.

        In two steps, because a connection writes its last record before it lets go: a policy that was not used before
        the rings were found empty has no record on the way.
        """
        for tag in self._unused:
            del self._in_force[tag]
        current = {tag for listener in self.listeners for tag in listener.tags}
        self._unused = [
            tag for tag, in_force in self._in_force.items() if tag not in current and not in_force.policy.in_use
        ]

    # Records

    def _opened(self, native: _fastpath.Record) -> None:
        if self.hub.totals_only:  # it began while that came into force, and its end is counted
            return
        record = self.live[native.id] = new_record(native, self._in_force[native.tag].service)
        self._watcher.opened(record)

    def _closed(self, native: _fastpath.Record) -> None:
        in_force = self._in_force[native.tag]
        opened = self.live.pop(native.id, None)
        record = fill_record(opened or new_record(native, in_force.service), native, in_force)
        record.ending, record.errno = ENDINGS[native.ending], native.errno
        self._ended += not record.ending.refused
        if native.token and in_force.listener.tag:
            in_force.listener.emptied()
        tell_invalid(record, native, self._registry.invalid_preambles)
        self._registry.native_closed(record)
        self._watcher.closed(record)

    def _counted(self, native: _fastpath.Record) -> None:
        ending, count = ENDINGS[native.ending], native.id
        self._ended += 0 if ending.refused else count
        self._registry.native_counted(self._in_force[native.tag].service.route.rule, ending, count)
        self._watcher.left()
