"""What reactors report beside sessions: full gates, addresses and servers that fail, names to resolve again, loops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from oinetd.core.registry import Registry
from oinetd.lanes.native.groups import server_changed
from oinetd.lanes.native.plane import FULL, LOOPED, SERVER, TARGET, UNREACHABLE, Hub
from oinetd.lanes.native.records import InForce, upstream_of
from oinetd.model import Endpoint, Rule
from oinetd.net.sockets import host_and_port
from oinetd.upstream.loops import Loops
from oinetd.upstream.original import Original

if TYPE_CHECKING:
    from oinetd import _fastpath

__all__ = ["listen_for_reports"]

GROUP_FULL: Final = 2
"""The token of such a record."""


def listen_for_reports(
    hub: Hub,
    in_force: Mapping[int, InForce],
    registry: Registry,
    gates: Mapping[Endpoint | Rule, _fastpath.Gate],
    loops: Loops,
) -> None:
    """Act on such records of `hub` from now on; `in_force` are the policies that they name, by their tags."""
    reports = _Reports(in_force, registry, gates, loops)
    hub.take(FULL, reports.full)
    hub.take(TARGET, reports.address_changed)
    hub.take(SERVER, reports.server_changed)
    hub.take(UNREACHABLE, reports.unreachable)
    hub.take(LOOPED, reports.looped)


class _Reports:
    """The handlers of such records. A record whose policy is forgotten is one of the past."""

    def __init__(
        self,
        in_force: Mapping[int, InForce],
        registry: Registry,
        gates: Mapping[Endpoint | Rule, _fastpath.Gate],
        loops: Loops,
    ) -> None:
        self._in_force = in_force
        self._registry = registry
        self._gates = gates
        self._loops = loops

    def full(self, native: _fastpath.Record) -> None:
        """Clients wait at the gate of a rule, or of the process, or for room in a server of a group."""
        if (in_force := self._in_force.get(native.tag)) is None:
            return
        rule, group = in_force.service.route.rule, in_force.service.group
        if native.token == GROUP_FULL:
            if group is not None:
                group.found_full()
        elif native.token:
            self._registry.on_full(rule, self._gates[rule.identity])
        else:
            self._registry.on_full(None, self._registry.gate)

    def address_changed(self, native: _fastpath.Record) -> None:
        """An address of a destination, or of a server, begins to fail, or works again."""
        in_force = self._in_force.get(native.tag)
        if in_force is not None and in_force.listener.tag:
            destination = in_force.listener.current(in_force.service).destination
            if native.server:
                destination = in_force.servers[native.server].destination
            destination.health.changed(*upstream_of(native, in_force.policy), native.errno)

    def server_changed(self, native: _fastpath.Record) -> None:
        """Connects to a server fail, or it works again."""
        in_force = self._in_force.get(native.tag)
        if in_force is not None and in_force.service.group is not None:
            server_changed(in_force.service.group, in_force.servers[native.server], native.errno, native.id)

    def unreachable(self, native: _fastpath.Record) -> None:
        """Several connects failed in a row: names are resolved again."""
        in_force = self._in_force.get(native.tag)
        if in_force is not None and in_force.listener.tag:
            service = in_force.listener.current(in_force.service)
            service.destination.look_up_again()
            if service.source_host is not None:
                service.source_host.look_up_again()

    def looped(self, native: _fastpath.Record) -> None:
        """A destination, or the sender of a datagram, is a listener of ours."""
        if (in_force := self._in_force.get(native.tag)) is None:
            return
        route, destination = in_force.service.route, in_force.service.destination
        if native.upstream:
            address = host_and_port(*upstream_of(native, in_force.policy))
            if isinstance(destination, Original):
                destination.tell_refused(address)
            else:
                self._loops.log_destination(route, address)
        else:
            self._loops.log_source(route, host_and_port(native.client, native.client_port))
