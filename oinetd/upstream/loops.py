"""Forwarding loops: connections and datagrams that would come back to one of oinetd's own listeners.

The destination of a rule may be the listener of another rule. A cycle of rules must be broken: one client would use all
descriptors, one datagram a whole core. `find_loops` finds the destinations in a cycle. Whether such an address belongs
to this machine is checked at each connect, because addresses change.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from oinetd.model import Protocol, Route
from oinetd.net.route import is_delivered_here
from oinetd.net.sockets import SHORTAGE, Address, SocketAddress, bound_address, client_address, host_and_port
from oinetd.upstream.destination import Destination

__all__ = ["LOOP_ERRNO", "Bound", "Leg", "LoopGuard", "Loops", "Way", "find_local", "find_loops", "is_local"]

log = logging.getLogger("oinetd")

LOOP_ERRNO = errno.ELOOP
"""With `Ending.CONNECT_FAILED`: the destination is one of oinetd's own listeners and closes a cycle."""


class Bound(NamedTuple):
    """The address of a listening TCP socket or a UDP socket, to match destinations against."""

    protocol: Protocol
    address: Address
    v6only: bool

    @classmethod
    def of(cls, sock: socket.socket) -> Bound:
        """The address of `sock`."""
        six = sock.family == socket.AF_INET6
        v6only = bool(six and sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY))
        protocol = Protocol.UDP if sock.type == socket.SOCK_DGRAM else Protocol.TCP
        return cls(protocol, bound_address(sock), v6only)

    def takes(self, address: Address) -> bool:
        """Whether this socket gets packets to `address`, an address of this machine with the same port."""
        if self.address.is_unix or address.is_unix:
            return self.address == address
        if self.address.host == "::":
            return not (self.v6only and _plain(address.host)[0] == socket.AF_INET)
        if self.address.host == "0.0.0.0":
            return _plain(address.host)[0] == socket.AF_INET
        return _plain(self.address.host) == _plain(address.host)


Way = tuple[Route, Destination]
"""A route that a listener serves, and where it leads."""


class Leg(NamedTuple):
    """A listening socket and its destinations."""

    bound: Bound
    protocol: Protocol
    destinations: tuple[Address, ...]


def _plain(host: str) -> tuple[int, str]:
    """Family and text of an address in one form, so that equal addresses compare equal."""
    text, _, scope = host.partition("%")
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            # A connect to the unspecified address reaches this machine.
            return socket.AF_INET6, f"{address}%{scope}" if int(address) else "::1%"
        address = address.ipv4_mapped
    return socket.AF_INET, str(address) if int(address) else "127.0.0.1"


def find_loops(legs: Sequence[Leg]) -> list[frozenset[Address]]:
    """For each leg, its destinations that lead back to it if they are addresses of this machine.

    A destination that leads to another rule and from there out of the machine is not included. Linear in the legs and
    their destinations.
    """
    at: dict[tuple[Protocol, int | str], list[int]] = {}
    for index, leg in enumerate(legs):
        at.setdefault((leg.bound.protocol, _place_of(leg.bound.address)), []).append(index)
    next_of: dict[int, dict[int, list[Address]]] = {}
    for index, leg in enumerate(legs):
        for address in leg.destinations:
            for other in at.get((leg.protocol, _place_of(address)), ()):
                if legs[other].bound.takes(address):
                    next_of.setdefault(index, {}).setdefault(other, []).append(address)
    _cut_ends(next_of)
    found: list[frozenset[Address]] = [frozenset()] * len(legs)
    for index, following in next_of.items():
        found[index] = frozenset(address for addresses in following.values() for address in addresses)
    return found


def _place_of(address: Address) -> int | str:
    """The key by which listeners and destinations match: the port, or the whole address of a unix socket."""
    return str(address) if address.is_unix else address.port


def _cut_ends(next_of: dict[int, dict[int, list[Address]]]) -> None:
    """Remove the legs without a next or a previous leg, repeatedly; the rest are in cycles or between two cycles."""
    before: dict[int, set[int]] = {}
    for index, following in next_of.items():
        for other in following:
            before.setdefault(other, set()).add(index)
    ends = [index for index in before if index not in next_of]
    while ends:  # bounded: each leg is an end once
        end = ends.pop()
        for index in before.pop(end, ()):
            del next_of[index][end]
            if not next_of[index]:
                del next_of[index]
                ends.append(index)
    heads = [index for index in next_of if not before.get(index)]
    while heads:
        head = heads.pop()
        for other in next_of.pop(head):
            before[other].discard(head)
            if not before[other] and other in next_of:
                heads.append(other)


def is_local(address: Address) -> bool:
    """Whether `address` belongs to this machine now; no if there is no descriptor to find out."""
    try:
        return find_local(address)
    except OSError:
        return False  # The connect that follows fails in the same way and reports it.


def find_local(address: Address) -> bool:
    """Whether `address` belongs to this machine now. Nothing is sent: the kernel's routing decides.

    Raises `OSError` for want of a descriptor or memory.
    """
    if address.is_unix:
        return True
    host = address.host.removeprefix("::ffff:").partition("%")[0]
    if host.startswith("127.") or host in ("0.0.0.0", "::", "::1"):
        return True
    if (here := is_delivered_here(address)) is not None:
        return here
    # Netlink is not allowed here. The source address of a socket that is connected to an address of its own machine is
    # this address, except for second IPv4 addresses of a network.
    try:
        with socket.socket(address.family, socket.SOCK_DGRAM) as probe:
            probe.connect(address.sockaddr)
            own: SocketAddress = probe.getsockname()
            peer: SocketAddress = probe.getpeername()
            return own[0] == peer[0]
    except OSError as error:
        if error.errno in SHORTAGE:
            raise
        return False  # no route


class Loops:
    """The listeners of one forwarder, and the loops that were logged since the last reload."""

    def __init__(self) -> None:
        self._guards: list[LoopGuard] = []
        self._datagrams: dict[int, list[Bound]] = {}
        self._logged: set[tuple[Route, bool]] = set()

    def renew(self, services: Iterable[tuple[socket.socket, Sequence[Way]]]) -> list[LoopGuard]:
        """Replace the sockets, with the ways that share each, and log loops again. Returns a guard for each."""
        self._logged.clear()
        self._guards = [LoopGuard(self, Bound.of(sock), tuple(ways)) for sock, ways in services]
        self._datagrams = {}
        for guard in self._guards:
            if guard.bound.protocol is Protocol.UDP:
                self._datagrams.setdefault(guard.bound.address.port, []).append(guard.bound)
        self.refresh()
        return self._guards

    def refresh(self) -> set[LoopGuard]:
        """Find the loops again after a change of addresses. Returns the guards that changed."""
        legs = [Leg(guard.bound, guard.route.connect.protocol, guard.destinations) for guard in self._guards]
        changed = set()
        for guard, addresses in zip(self._guards, find_loops(legs), strict=True):
            if guard.addresses != addresses:
                guard.addresses = addresses
                changed.add(guard)
        return changed

    @property
    def datagrams(self) -> list[Bound]:
        """The UDP sockets."""
        return [bound for bounds in self._datagrams.values() for bound in bounds]

    def is_own(self, sender: SocketAddress) -> bool:
        """Whether `sender` is the address of one of our UDP listeners, forged or not."""
        bounds = self._datagrams.get(sender[1])
        if bounds is None:
            return False
        address = Address(socket.AF_INET if len(sender) == 2 else socket.AF_INET6, sender)
        return any(bound.takes(address) for bound in bounds) and is_local(address)

    def log_destination(self, route: Route, address: str) -> None:
        """Log that a destination was refused, once for each route."""
        if self._first_time(route, True):
            log.warning(
                "%s: refused: %s is one of oinetd's own listeners and leads back here (ELOOP); change the destination "
                "or the bind address%s",
                route, address, _place(route),
            )  # fmt: skip

    def log_source(self, route: Route, address: str) -> None:
        """Log that datagrams were dropped, once for each route."""
        if self._first_time(route, False):
            log.warning(
                "%s: dropping datagrams from %s, one of oinetd's own listeners (a loop, or a forged source); they are "
                "counted as lost",
                route, address,
            )  # fmt: skip

    def _first_time(self, route: Route, destination: bool) -> bool:
        key = route, destination
        if key in self._logged:
            return False
        self._logged.add(key)
        return True


def _place(route: Route) -> str:
    origin = route.rule.origin
    return f" in {origin}" if origin.line else ""


@dataclass(slots=True, eq=False)
class LoopGuard:
    """Refuses loops of one listener: destinations in `addresses` lead back if they are addresses of this machine."""

    loops: Loops
    bound: Bound
    ways: tuple[Way, ...]
    addresses: frozenset[Address] = frozenset()

    @property
    def route(self) -> Route:
        """The first of those that share the listener."""
        return self.ways[0][0]

    @property
    def destinations(self) -> tuple[Address, ...]:
        """All of them, each once."""
        return tuple(dict.fromkeys(address for route, to in self.ways for address in to.at(route.place)))

    def refuses(self, address: Address) -> bool:
        """Whether a connect to `address` would come back; this is logged once."""
        if address not in self.addresses or not is_local(address):
            return False
        leading = (route for route, to in self.ways if address in to.at(route.place))
        self.loops.log_destination(next(leading, self.route), str(address))
        return True

    def is_own(self, sender: SocketAddress) -> bool:
        """Whether a datagram's sender is one of our UDP listeners; this is logged once."""
        if not self.loops.is_own(sender):
            return False
        self.loops.log_source(self.route, host_and_port(*client_address(sender)))
        return True
