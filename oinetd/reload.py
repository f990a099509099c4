"""The one atomic change of what is in force: plan, open, put in force, retire.

Planning and opening change nothing that clients see. Putting in force is one step of the event loop: if it fails at any
place, every listener serves again as before, and what was opened is closed. After it the change stands: what it took
away is retired, and an error there is logged and stops nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from oinetd.core.access import AccessControl, access_control
from oinetd.core.hooks import Hooks
from oinetd.core.lane import Listener
from oinetd.core.names import NameTable
from oinetd.core.preamble import preamble_of
from oinetd.core.revocation import Revocation
from oinetd.core.router import Decide
from oinetd.core.service import Service, Watcher
from oinetd.core.sharing import entry_of_listener
from oinetd.core.socket_check import check_options
from oinetd.core.tap import Tap
from oinetd.core.unix_peer import peer_uid_of
from oinetd.lanes.choose import Choice, Lanes
from oinetd.lanes.datagrams import settle_datagrams
from oinetd.lanes.limits import Limits
from oinetd.lanes.unresolved import Unresolved
from oinetd.model import Config, Endpoint, Protocol, Route, Rule
from oinetd.net.options import ConnectOptions
from oinetd.net.ports import Port, PortKey, open_ports, plan_ports
from oinetd.net.sockets import Address, bound_address, start_listening, tune_listener
from oinetd.observe.announcement import listening, no_longer
from oinetd.observe.connection_log import ConnectionLog
from oinetd.upstream.destination import Destination
from oinetd.upstream.destinations import Destinations
from oinetd.upstream.group import Group
from oinetd.upstream.groups import Groups, Known
from oinetd.upstream.loops import LoopGuard, Loops

__all__ = ["Reload"]

log = logging.getLogger("oinetd")


@dataclass(frozen=True, slots=True)
class _Plan:
    """A configuration that can come into force: what was computed and resolved for it."""

    config: Config
    choices: dict[int, Choice]
    access: dict[int, AccessControl]
    destinations: Destinations
    groups: Groups

    def destination_of(self, rule: Rule) -> Destination:
        """The destination of `rule`; its group if it has one."""
        return self.destinations.of(rule) if rule.upstream is None else self.groups.destination_of(rule)


@dataclass(slots=True)
class _Before:
    """What was in force before a change, and what the change has done so far."""

    config: Config | None
    listeners: dict[PortKey, Listener]
    lingering: dict[PortKey, Listener]
    standing: dict[PortKey, Listener]  # both
    services: dict[PortKey, Service]
    done: dict[PortKey, Listener] = field(default_factory=dict)


def _lane_and_reason(choice: Choice) -> tuple[str, str]:
    return choice.lane.name, choice.why


class Reload:
    """Puts configurations in force, the first one included. `listeners` are those in force, by their ports."""

    def __init__(
        self,
        listeners: dict[PortKey, Listener],
        lanes: Lanes,
        limits: Limits,
        loops: Loops,
        unresolved: Unresolved,
        known: Known,
        *,
        connection_log: ConnectionLog,
        watcher: Watcher,
        hooks: Hooks,
        admit: Decide | None,
        tap: Tap | None,
        inherited: Iterable[socket.socket],
        lent: Sequence[socket.socket],
    ) -> None:
        self.destinations: Destinations | None = None
        self.lanes_of: dict[Endpoint | Rule, tuple[str, str]] = {}
        self.groups: Groups | None = None
        self._known = known
        self._listeners = listeners
        self._lanes = lanes
        self._limits = limits
        self._loops = loops
        self._unresolved = unresolved
        self._connection_log = connection_log
        self._watcher = watcher
        self._hooks = hooks
        self._admit = admit
        self._tap = tap
        self._inherited = inherited
        self._lent = lent
        self._revocation = Revocation(limits.registry)
        self._config: Config | None = None

    async def apply(self, config: Config, check: Callable[[], None]) -> None:
        """Put `config` in force, or raise and leave everything as it was. `check` raises to prevent it."""
        plan = self._plan(config)
        with plan.destinations.unless_it_fails():
            await plan.destinations.resolve()
            await plan.groups.prepare()
            routes = {key: each.service.route for key, each in self._listeners.items()}
            ports = await plan_ports(config, routes)
            check()
            self._lanes.close_retired(only_unix=True)  # two sockets cannot share a name
            kept = {key: each.sock for key, each in {**self._lanes.lingering, **self._listeners}.items()}
            before = self._remember()
            sockets = open_ports(ports, kept, self._inherited, self._lent, leaving=self._lanes.retired)
            self._lanes.close_retired()
            gone = self._put_in_force(plan, sockets, before)
        before_groups, self.groups = self.groups, plan.groups
        self._config, self.destinations = config, plan.destinations
        self.lanes_of = {rule.identity: _lane_and_reason(plan.choices[id(rule)]) for rule in config.rules}
        self._retire(config, gone, plan.destinations)
        plan.groups.on_change = self._refresh_group
        self._attempt(plan.groups.start, before_groups)

    def _plan(self, config: Config) -> _Plan:
        self._connection_log.check_change(config.log)
        choices = {id(rule): self._lanes.choose(config, rule) for rule in config.rules}
        access = {id(rule): access_control(config, rule) for rule in config.rules}
        for rule in config.rules:
            peer_uid_of(rule)
        check_options(config.rules)
        destinations = Destinations(config, self.destinations)
        return _Plan(config, choices, access, destinations, Groups(config, destinations, self._known))

    # Put in force

    def _remember(self) -> _Before:
        lingering: dict[PortKey, Listener] = dict(self._lanes.lingering)
        standing = {**lingering, **self._listeners}
        services = {key: listener.service for key, listener in standing.items()}
        return _Before(self._config, dict(self._listeners), lingering, standing, services)

    def _put_in_force(
        self, plan: _Plan, sockets: Mapping[Port, socket.socket], before: _Before
    ) -> dict[PortKey, Listener]:
        """Exchange what is in force; the listeners that are gone. If it fails, everything is as it was."""
        news: list[tuple[Route, Address, str]] = []
        self._unresolved.begin()
        try:
            plan.groups.enforce()
            guards = self._set_limits(plan, sockets)
            for (port, sock), guard in zip(sockets.items(), guards, strict=True):
                listener, choice = before.standing.get(port.key), self._choice(plan, port)
                service = self._listener_service(plan, port, choice, guard)
                choice = self._unresolved.choose(port.key, choice, service, listener)
                rule = listener.service.route.rule if listener is not None else None
                if listener is None or rule != port.route.rule or listener.lane is not choice.lane:
                    news.extend((route, bound_address(sock), str(choice)) for route in port.routes)
                self._lanes.lingering.pop(port.key, None)
                before.done[port.key] = self._serve(listener, port, sock, service, choice)
            gone = {key: each for key, each in before.listeners.items() if key not in before.done}
            lines = [*listening(news), *no_longer(gone)]
        except BaseException:
            self._roll_back(before, sockets)
            raise
        self._listeners.clear()
        self._listeners.update(before.done)
        for warning in plan.config.warnings:
            log.warning("%s", warning)
        for line in lines:
            log.info(line)
        return gone

    def _set_limits(self, plan: _Plan, sockets: Mapping[Port, socket.socket]) -> list[LoopGuard]:
        """Put everything in force that does not belong to one listener; the guards of the listeners."""
        self._lanes.reconfigure(plan.config)
        self._limits.apply(plan.config, len(sockets) + len(self._lanes.lingering), self._lanes.reactors)
        self._known.checks.at_once = self._limits.descriptors.checks
        guards = self._loops.renew(
            (sock, [(route, plan.destination_of(route.rule)) for route in port.routes])
            for port, sock in sockets.items()
        )
        self._lanes.set_own_listeners(self._loops.datagrams)
        return guards

    def _choice(self, plan: _Plan, port: Port) -> Choice:
        """How a port is served: in the native lane only if that serves every rule that shares it."""
        choices = [plan.choices[id(route.rule)] for route in port.routes]
        return next((choice for choice in choices if choice.lane is not self._lanes.native), choices[0])

    def _listener_service(self, plan: _Plan, port: Port, choice: Choice, guard: LoopGuard) -> Service:
        """The service of a port; that of one of its rules, or one that chooses among them by the TLS hello."""
        service = self._service(plan, port.route, choice, guard)
        settings = service.settings
        service.preamble = preamble_of(plan.config, port.routes, settings)
        if not any(route.rule.options.sni or route.rule.options.alpn for route in port.routes):
            return service
        each = [service, *(self._service(plan, route, choice, guard) for route in port.others)]
        options = [one.route.rule.options for one in each]
        table = NameTable((said.sni or (), said.alpn or (), one) for said, one in zip(options, each, strict=True))
        return replace(service, names=table, rule=entry_of_listener(service.rule))

    def _service(self, plan: _Plan, route: Route, choice: Choice, guard: LoopGuard) -> Service:
        rule, config, registry = route.rule, plan.config, self._limits.registry
        registry.of(rule).buckets.configure(config.settings_of(rule))
        return Service(
            route=route,
            settings=config.settings_of(rule),
            access=plan.access[id(rule)],
            global_access=config.access,
            destination=plan.destination_of(rule),
            group=plan.groups.destination_of(rule).group if rule.upstream is not None else None,
            source_host=plan.destinations.source_of(rule),
            rule=registry.of(rule),
            registry=registry,
            dialer=choice.dialer,
            engine=choice.engine,
            watcher=self._watcher,
            admit=self._admit,
            tap=self._tap,
            source_prefix=config.source_prefix,
            guard=guard,
            peer_uid=peer_uid_of(rule),
            connect_options=ConnectOptions.of(rule.options),
        )

    def _serve(
        self, listener: Listener | None, port: Port, sock: socket.socket, service: Service, choice: Choice
    ) -> Listener:
        """Let `sock` be served as `service` says, by the `listener` that has it already if there is one."""
        if listener is None:
            return self._lanes.serve(choice, sock, service)
        if port.key.protocol is Protocol.TCP:
            start_listening(sock, port.key.address, port.backlog)
        if listener.lane is choice.lane:
            listener.replace_service(service)
            return listener
        return self._lanes.change_lane(listener, choice, service)

    def _roll_back(self, before: _Before, sockets: Mapping[Port, socket.socket]) -> None:
        """Put everything back. A step that fails does not prevent the others."""
        self._unresolved.roll_back()
        for key, listener in before.done.items():
            if before.standing.get(key) is not listener:
                self._attempt(listener.release)
        for port, sock in sockets.items():
            if port.key not in before.services:
                sock.close()
        if before.config is None:
            return
        config, registry = before.config, self._limits.registry
        if self.groups is not None:
            self._attempt(self.groups.enforce)
        self._attempt(self._lanes.reconfigure, config)
        self._attempt(lambda: self._limits.apply(config, len(before.services), self._lanes.reactors))
        guards = self._loops.renew(
            (each.sock, [(one.route, one.destination) for one in before.services[key].each])
            for key, each in before.listeners.items()
        )
        self._attempt(self._lanes.set_own_listeners, self._loops.datagrams)
        for key, guard in zip(before.listeners, guards, strict=True):
            for one in (before.services[key], *before.services[key].each):
                one.guard = guard
        for key, service in before.services.items():
            registry.of(service.route.rule)
            self._attempt(self._put_back, key, before.standing[key], service)
            if key in before.lingering and key not in self._lanes.lingering:
                self._attempt(self._lanes.retire, key, before.standing[key])

    @staticmethod
    def _put_back(key: PortKey, listener: Listener, service: Service) -> None:
        if key.protocol is Protocol.TCP:
            tune_listener(listener.sock, key.address, service.settings.keepalive)
            start_listening(listener.sock, key.address, service.settings.listen_backlog)
        listener.replace_service(service)
        listener.start()

    @staticmethod
    def _attempt(step: Callable[..., object], *arguments: object, **named: object) -> None:
        try:
            step(*arguments, **named)
        except Exception:
            log.exception("reload: a step failed")

    # Retire

    def _retire(self, config: Config, gone: Mapping[PortKey, Listener], destinations: Destinations) -> None:
        """Take out of service what the change took away; every listener is in its new place already."""
        self._attempt(self._lanes.report_each_session, bool(config.log.file or self._hooks))
        self._attempt(self._connection_log.reconfigure, config.log)
        self._attempt(lambda: self._lanes.limit_datagrams(self._limits.udp_sessions(config)))
        for key, listener in gone.items():
            self._attempt(self.retire, key, listener, handshakes=True)
        self._attempt(settle_datagrams, config, self._lanes, self._listeners)
        self._attempt(self._revocation.apply, config, self._lanes.check_access)
        self._attempt(destinations.start, on_change=self._refresh)

    def check_access(self) -> None:
        """Check the sessions that another process let in by the rules in force."""
        if self._config is None:
            return
        for listener in self._listeners.values():
            self._attempt(listener.revoke, self._config.access, anew=True)
        self._attempt(self._revocation.check_every, self._config, self._lanes.check_access)

    def retire(self, key: PortKey, listener: Listener, *, handshakes: bool = False) -> None:
        """Serve the queue of a listener, then close it; with `handshakes` those under way complete first."""
        address = bound_address(listener.sock)
        ours = all(bound_address(sock) != address for sock in self._inherited)
        self._lanes.retire(key, listener, ours=ours, handshakes=handshakes)

    def _refresh_group(self, group: Group) -> None:
        """Servers of a group have come or gone."""
        for listener in self._listeners.values():
            if any(one.group is group for one in listener.service.each):
                listener.refresh()

    def _refresh(self, destination: Destination) -> None:
        looping = self._loops.refresh()
        for listener in self._listeners.values():
            service = listener.service
            if service.guard in looping or service.concerns(destination):
                listener.refresh()
        asyncio.get_running_loop().call_soon(self._unresolved.move, self._listeners)
