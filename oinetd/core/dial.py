"""The dial stage: what a dialer is asked for, and what comes of it."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from oinetd.core.record import Ending, Try
from oinetd.model import Settings
from oinetd.net.options import NO_CONNECT_OPTIONS, ConnectOptions
from oinetd.net.poller import Poller
from oinetd.net.sockets import Address, lookup
from oinetd.upstream.destination import Destination
from oinetd.upstream.group import Group
from oinetd.upstream.loops import LoopGuard
from oinetd.upstream.member import Cut, Member
from oinetd.upstream.name_wait import wait_for_names
from oinetd.upstream.original import Original

__all__ = ["UNRESOLVED", "DialRequest", "Dialed", "Dialer"]


@dataclass(slots=True, eq=False)
class DialRequest:
    """An upstream leg to make: to `destination`, from an address of `source_host` if there is one.

    `client` waits for it and is watched meanwhile; a UDP client has no socket to watch. `guard` refuses addresses that
    lead back to a listener of ours. The dialer appends to `tries` each address that did not take the connection, also
    if the dial is cancelled. `timeout_s` stands before the connect timeout of the settings.
    After `overdue_s` it ends if `goes_on` says that there is something better to do than to wait; None: not yet.

    With a `group`, its servers are searched for the client at `host`, and `port` is the offset in the rule's range;
    `from_client` is the address that it comes from if that is the client's, empty if the client has none.
    `member` is then the server that was found, in which the session is counted until `leave_server`.
    """

    destination: Destination
    port: int
    settings: Settings
    source_host: Destination | None = None
    client: socket.socket | None = None
    guard: LoopGuard | Original | None = None
    options: ConnectOptions = NO_CONNECT_OPTIONS
    tries: list[Try] = field(default_factory=list)
    timeout_s: float | None = None
    group: Group | None = None
    host: str = ""
    member: Member | None = None
    cut: Cut | None = None
    from_client: str | None = None
    overdue_s: float = 0.0
    goes_on: Callable[[], bool | None] | None = None

    def to_server(self, member: Member, timeout_s: float | None = None) -> DialRequest:
        """The same for one server of the group."""
        return DialRequest(
            member.destination,
            member.port(self.port),
            self.settings,
            member.source or self.source_host,
            self.client,
            self.guard,
            self.options,
            timeout_s=timeout_s,
            from_client=None if member.source is not None else self.from_client,
        )

    def enter_server(self, cut: Cut) -> None:
        """The session is one of its server's from now on, which ends it by `cut`."""
        self.cut = cut
        if self.member is not None:
            self.member.sessions[self] = cut

    def resume_server(self, name: str, cut: Cut) -> None:
        """The session of another process goes on with its server, if that is still in the group."""
        members = self.group.members if self.group is not None else []
        self.member = next((each for each in members if each.name == name), None)
        if self.member is not None:
            self.member.load.force()
            self.enter_server(cut)

    def change_server(self, member: Member) -> None:
        """The session, which selected `member`, goes on there."""
        cut = self.cut
        self.leave_server()
        self.member = member
        if cut is not None:
            self.enter_server(cut)

    def leave_server(self) -> None:
        """The session ends, or goes on with another server. A second call does nothing."""
        member, self.member = self.member, None
        if member is not None and self.group is not None:
            member.sessions.pop(self, None)
            self.group.leave(member)

    @property
    def limit_s(self) -> float:
        """The time for all of it; 0 is no limit."""
        return self.settings.connect_timeout_s if self.timeout_s is None else self.timeout_s

    @property
    def has_source(self) -> bool:
        """Whether the connection has to come from a certain address."""
        return self.source_host is not None or self.from_client is not None

    @property
    def sources(self) -> tuple[Address, ...]:
        """The source addresses of this moment; empty if the kernel chooses."""
        if self.from_client is not None:
            return lookup(self.from_client)[:1] if self.from_client else ()
        return self.source_host.at(0) if self.source_host is not None else ()

    def source_for(self, address: Address) -> Address | None:
        """The source address of the family of `address`; None if there is none, or the kernel chooses."""
        return next((source for source in self.sources if source.family == address.family), None)

    async def wait_for_names(self, poller: Poller) -> Dialed | None:
        """Wait until the names have addresses; returns the failure if the client disconnects or a name has none."""
        names = (self.destination, self.source_host)
        if not await wait_for_names(poller, names, self.settings, self.client):
            return CLIENT_GONE
        return None if all(name is None or name.resolved for name in names) else UNRESOLVED


@dataclass(frozen=True, slots=True)
class Dialed:
    """The result of a dial: the connected `upstream` and its address, or how it `failed` and the errno.

    `Ending.UPSTREAM_RESET` is an upstream that took the connection and reset it at once.
    """

    upstream: socket.socket | None
    address: Address | None
    failed: Ending | None = None
    errno: int = 0

    @property
    def taken_by(self) -> Address | None:
        """The address that took the connection; None if none did."""
        return self.address if self.upstream is not None or self.failed is Ending.UPSTREAM_RESET else None


UNRESOLVED = Dialed(None, None, Ending.RESOLVE_FAILED)
CLIENT_GONE = Dialed(None, None, Ending.CLIENT_RESET, errno.ECONNRESET)


class Dialer(Protocol):
    """Makes the upstream leg of a connection."""

    @property
    def poller(self) -> Poller:
        """Watches the sockets of a dial."""
        ...

    async def dial(self, request: DialRequest) -> Dialed:
        """Connect; what the network does is a result, never an exception."""
        ...
