"""What is in force for a route: one `Service` that all its sessions share, and the parts that lanes give to it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from oinetd.core.access import AccessControl
from oinetd.core.dial import Dialer, DialRequest
from oinetd.core.engine import Engine
from oinetd.core.names import NameTable
from oinetd.core.preamble import Preamble
from oinetd.core.record import SessionRecord
from oinetd.core.registry import Registry, RuleEntry
from oinetd.core.router import Decide
from oinetd.core.tap import Tap
from oinetd.model import SOURCE_PREFIX, AccessRule, Route, SendProxy, Settings, SourcePrefix
from oinetd.net.options import NO_CONNECT_OPTIONS, ConnectOptions
from oinetd.net.sockets import Address
from oinetd.upstream.destination import Destination
from oinetd.upstream.group import Group
from oinetd.upstream.loops import LoopGuard
from oinetd.upstream.member import Member
from oinetd.upstream.original import Original

__all__ = ["Callbacks", "Service", "Watcher"]


class Watcher(Protocol):
    """What is told of sessions: the connection log, and the hooks of an embedding program."""

    def opened(self, record: SessionRecord) -> None: ...
    def closed(self, record: SessionRecord) -> None: ...
    def left(self) -> None:
        """Sessions have ended that are not reported one by one, because of `Lanes.report_each_session`."""
        ...


@dataclass(frozen=True, slots=True)
class Callbacks:
    """A `Watcher` of three functions."""

    opened: Callable[[SessionRecord], None]
    closed: Callable[[SessionRecord], None]
    left: Callable[[], None]


@dataclass(slots=True)
class Service:
    """What all sessions of one route share; a reload puts another in its place, for later sessions."""

    route: Route
    settings: Settings
    access: AccessControl
    global_access: tuple[AccessRule, ...]
    destination: Destination
    source_host: Destination | None
    rule: RuleEntry
    registry: Registry
    dialer: Dialer
    engine: Engine
    watcher: Watcher
    admit: Decide | None = None
    tap: Tap | None = None
    guard: LoopGuard | None = None
    source_prefix: SourcePrefix = SOURCE_PREFIX
    peer_uid: int | None = None
    connect_options: ConnectOptions = NO_CONNECT_OPTIONS
    preamble: Preamble | None = None
    names: NameTable[Service] | None = None
    group: Group | None = None

    @property
    def each(self) -> Iterable[Service]:
        """The services of the rules that share a listener; this one if it is that of one rule."""
        return (self,) if self.names is None else (service for _, _, service in self.names.entries)

    @property
    def resolved(self) -> bool:
        """Whether every destination has an address, and so has the source if one is asked for."""
        return all(
            one.destination.resolved and (one.source_host is None or one.source_host.resolved) for one in self.each
        )

    def concerns(self, destination: Destination) -> bool:
        """Whether a change of the addresses of `destination` is one of this service."""
        return any(destination in (one.destination, one.source_host) or one.group is not None for one in self.each)

    @property
    def source(self) -> tuple[Address, ...]:
        """The local addresses that outgoing connections may have at the moment; none if the kernel chooses."""
        return self.source_host.at(0) if self.source_host is not None else ()

    @property
    def sends_headers(self) -> bool:
        """Whether a server can get a PROXY header: before a connection's bytes, or a datagram's."""
        return self.route.bind.protocol is self.route.connect.protocol

    def header_for(self, member: Member | None) -> SendProxy:
        """The PROXY header that the destination gets, or this server of the group."""
        if not self.sends_headers:
            return SendProxy.OFF
        return self.settings.send_proxy if member is None else member.header(self.settings.send_proxy)

    def dial_request(
        self, client: socket.socket | None = None, host: str = "", *, unknown: bool = False
    ) -> DialRequest:
        """What to ask the dialer for, for one session of the client at `host`; `unknown` if it has no address."""
        destination, port = self.destination, self.route.place
        guard: LoopGuard | Original | None = self.guard
        if isinstance(destination, Original) and client is not None:
            guard = destination
            destination, port = destination.wanted_by(client)
        return DialRequest(
            destination,
            port,
            self.settings,
            self.source_host,
            client,
            guard,
            self.connect_options,
            group=self.group,
            host=host,
            from_client=("" if unknown else host) if self.route.rule.options.from_client else None,
        )
