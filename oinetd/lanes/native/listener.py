"""Listening sockets of the native lane, TCP and UDP."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from oinetd.core.lane import Departing, Listener
from oinetd.core.service import Service
from oinetd.lanes.native.departure import DatagramDeparture
from oinetd.lanes.native.named import Chosen
from oinetd.lanes.native.plane import Hub, compile_policy
from oinetd.lanes.native.records import split_protocols
from oinetd.model import AccessRule, Endpoint, Rule

if TYPE_CHECKING:
    from oinetd import _fastpath
    from oinetd.lanes.native.lane import NativeLane

__all__ = ["ReactorDatagrams", "ReactorListener"]


class ReactorListener(Listener):
    """A listening TCP socket, which all reactors accept on. `tag` is that of the policy in force, 0 before `start`.

    `chosen` are the rules that share it, by their identity.
    """

    lane: NativeLane

    def __init__(self, lane: NativeLane, sock: socket.socket, service: Service) -> None:
        super().__init__(lane, sock, service)
        self.tag = 0
        self.chosen: dict[Endpoint | Rule, Chosen] = {}
        self._hub: Hub = lane.hub
        self._index = 0

    def start(self) -> None:
        if self.tag:
            return
        tag, policy = self.lane.compile(self)
        try:
            self._index = self._add(policy)
        except BaseException:
            self.lane.forget(tag)
            raise
        self.tag = tag
        self.lane.listeners.add(self)

    def replace_service(self, service: Service) -> None:
        self.service = service
        self._put_in_force(anew=True)

    def refresh(self) -> None:
        self._put_in_force(anew=False)

    def release(self) -> None:
        if self.tag:
            self._remove()
            self.lane.listeners.discard(self)
            self.tag = 0
            self.chosen = {}  # the lane forgets policies that are not in force
            self._hub.fetch_soon()

    def adopt(
        self, state: Mapping[str, Any], fds: tuple[int, ...], pending: tuple[bytes, bytes]
    ) -> Callable[[], object] | None:
        client, upstream = fds
        return self.lane.departures.adopt(self._tag_for(state), state, (client, upstream), pending)

    def _tag_for(self, state: Mapping[str, Any]) -> int:
        """Of the policy for a connection of another process: if rules share the listener, of the one for its names."""
        if self.service.names is None:
            return self.tag
        name, protocols = state.get("hello") or ("", "")
        service = self.service.names.choose(str(name), split_protocols(bytes.fromhex(protocols)))
        return 0 if service is None else self.chosen[service.route.rule.identity].tag

    def current(self, service: Service) -> Service:
        """What is in force now for the rule of a `service` of this listener; that one if the rule is no more."""
        if self.service.names is None:
            return self.service
        chosen = self.chosen.get(service.route.rule.identity)
        return service if chosen is None else chosen.service

    @property
    def tags(self) -> Iterator[int]:
        """Of the policies in force."""
        yield self.tag
        yield from (chosen.tag for chosen in self.chosen.values())

    def emptied(self) -> None:
        """The last session of a UDP socket that lingers has ended."""

    def _put_in_force(self, *, anew: bool) -> None:
        if self.tag:
            tag, policy = self.lane.compile(self)
            self._replace(policy, anew)
            self.tag = tag
            self._hub.fetch_soon()

    def _add(self, policy: _fastpath.Policy) -> int:
        return self._hub.add_listener(self.sock.fileno(), policy)

    def _replace(self, policy: _fastpath.Policy, anew: bool) -> None:
        self._hub.replace_listener(self._index, policy)

    def _remove(self) -> None:
        self._hub.remove_listener(self._index)


class ReactorDatagrams(ReactorListener):
    """A UDP socket, which belongs to one of the reactors."""

    _on_closed: Callable[[], object] | None = None
    _paused = False

    def start(self) -> None:
        if self._paused and self.tag:
            self._hub.resume_udp_listener(self._index)
        self._paused = False
        super().start()

    def pause(self) -> None:
        if self.tag and not self._paused:
            self._hub.pause_udp_listener(self._index)
            self._paused = True

    def take_out(self, at_most: int) -> list[Departing]:
        if not self.tag:
            return []
        self._hub.collect()  # the records of their opening
        return [DatagramDeparture(self, each) for each in self._hub.take_out_udp_sessions(self._index, at_most)]

    def put_in(self, passport: _fastpath.DatagramPassport) -> None:
        """Go on with a session."""
        self._hub.put_in_udp_session(self._index, passport)

    def adopt(
        self, state: Mapping[str, Any], fds: tuple[int, ...], pending: tuple[bytes, bytes]
    ) -> Callable[[], object] | None:
        if not self.tag:
            self._paused = True
            super().start()
        return self.lane.departures.adopt_datagrams(self, state, fds[0])

    def replace_service(self, service: Service) -> None:
        self._on_closed = None
        super().replace_service(service)

    @property
    def has_sessions(self) -> bool:
        return bool(self.tag) and self._hub.udp_sessions_of(self._index) > 0

    def linger(self, on_closed: Callable[[], object]) -> None:
        self._on_closed = on_closed
        if not self.tag or not self._hub.linger_udp_listener(self._index):
            self.end()

    def end(self) -> None:
        on_closed, self._on_closed = self._on_closed, None
        self.release()
        if on_closed is not None:
            self.sock.close()
            on_closed()

    def emptied(self) -> None:
        # It may be in force again, and linger again with other sessions.
        if self._on_closed is not None and not self.has_sessions:
            self.end()

    def _end_refused(self, access: tuple[tuple[AccessRule, ...], tuple[AccessRule, ...]]) -> int:
        if not self.tag:
            return 0
        policy = compile_policy(0, None, self.service.settings, access=access)
        return self._hub.revoke_udp_sessions(self._index, policy)

    def _add(self, policy: _fastpath.Policy) -> int:
        # Sessions of one rule can only make room for each other if they are of one thread.
        rule, indexes = self.service.route.rule, self.lane.datagram_indexes
        beside = indexes.get(rule.identity) if rule.options.max_connections else None
        index = self._hub.add_udp_listener(self.sock.fileno(), policy, beside, self._paused)
        indexes.setdefault(rule.identity, index)
        return index

    def _replace(self, policy: _fastpath.Policy, anew: bool) -> None:
        self._hub.replace_udp_listener(self._index, policy, anew)

    def _remove(self) -> None:
        self._hub.remove_udp_listener(self._index)
