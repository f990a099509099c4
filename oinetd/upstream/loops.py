"""Loops: connections and datagrams that would come back to a listener of oinetd itself.

A rule may lead to another rule of the same configuration; a circle of rules is what has to be broken, for it takes all
descriptors with one client, or a core with one datagram. `find_loops` marks the destinations that close a circle.
Whether such an address belongs to this machine is asked when it is dialled, because addresses come and go.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from oinetd.model import Protocol, Route
from oinetd.net.sockets import Address, SocketAddress, bound_address, client_address, host_and_port
from oinetd.upstream.destination import Destination

__all__ = ["LOOP_ERRNO", "Bound", "Leg", "LoopGuard", "Loops", "find_loops", "is_local"]

log = logging.getLogger("oinetd")

LOOP_ERRNO = errno.ELOOP
"""With `Ending.CONNECT_FAILED`: the destination is a listener of oinetd itself and closes a circle."""


class Bound(NamedTuple):
    """A listening or UDP socket: what it takes, if it belongs to this machine."""

    protocol: Protocol
    address: Address
    v6only: bool

    @classmethod
    def of(cls, sock: socket.socket) -> Bound:
        """That of a socket of ours."""
        six = sock.family == socket.AF_INET6
        v6only = bool(six and sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY))
        protocol = Protocol.UDP if sock.type == socket.SOCK_DGRAM else Protocol.TCP
        return cls(protocol, bound_address(sock), v6only)

    def takes(self, address: Address) -> bool:
        """Whether packets to `address`, which is one of this machine with the right port, come to this socket."""
        if self.address.host == "::":
            return not (self.v6only and _plain(address.host)[0] == socket.AF_INET)
        if self.address.host == "0.0.0.0":
            return _plain(address.host)[0] == socket.AF_INET
        return _plain(self.address.host) == _plain(address.host)


class Leg(NamedTuple):
    """A listening socket, and where its clients go."""

    bound: Bound
    protocol: Protocol
    destinations: tuple[Address, ...]


def _plain(host: str) -> tuple[int, str]:
    """Family and text of an address, by which the same addresses compare equal."""
    text, _, scope = host.partition("%")
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            # Connecting to the unspecified address is connecting to this machine.
            return socket.AF_INET6, f"{address}%{scope}" if int(address) else "::1%"
        address = address.ipv4_mapped
    return socket.AF_INET, str(address) if int(address) else "127.0.0.1"


def find_loops(legs: Sequence[Leg]) -> list[frozenset[Address]]:
    """The destinations of each leg that lead back to it, where they are addresses of this machine.

    What only leads to another rule, and from there out, is none of them. Linear in the legs and their destinations.
    """
    at: dict[tuple[Protocol, int], list[int]] = {}
    for index, leg in enumerate(legs):
        at.setdefault((leg.bound.protocol, leg.bound.address.port), []).append(index)
    next_of: dict[int, dict[int, list[Address]]] = {}
    for index, leg in enumerate(legs):
        for address in leg.destinations:
            for other in at.get((leg.protocol, address.port), ()):
                if legs[other].bound.takes(address):
                    next_of.setdefault(index, {}).setdefault(other, []).append(address)
    _cut_ends(next_of)
    found: list[frozenset[Address]] = [frozenset()] * len(legs)
    for index, following in next_of.items():
        found[index] = frozenset(address for addresses in following.values() for address in addresses)
    return found


def _cut_ends(next_of: dict[int, dict[int, list[Address]]]) -> None:
    """Take everything away that leads out, or to which nothing leads; what is left goes in circles."""
    before: dict[int, set[int]] = {}
    for index, following in next_of.items():
        for other in following:
            before.setdefault(other, set()).add(index)
    ends = [index for index in before if index not in next_of]
    while ends:  # each leg is an end once
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
    """Whether `address` belongs to this machine now. Sends nothing; asks the kernel which way it would go.

    A socket that is connected to an address of its own machine comes from that very address, but for 127.0.0.0/8.
    """
    host = address.host.removeprefix("::ffff:").partition("%")[0]
    if host.startswith("127.") or host in ("0.0.0.0", "::", "::1"):
        return True
    with contextlib.suppress(OSError), socket.socket(address.family, socket.SOCK_DGRAM) as probe:
        probe.connect(address.sockaddr)
        own: SocketAddress = probe.getsockname()
        peer: SocketAddress = probe.getpeername()
        return own[0] == peer[0]
    return False  # no route, or no descriptor: what follows meets the same and says so


class Loops:
    """What one forwarder has to do with itself: its listeners, and what was said of loops since the last reload."""

    def __init__(self) -> None:
        self._guards: list[LoopGuard] = []
        self._datagrams: dict[int, list[Bound]] = {}
        self._said: set[tuple[Route, bool]] = set()

    def renew(self, services: Iterable[tuple[socket.socket, Route, Destination]]) -> list[LoopGuard]:
        """These sockets listen now, for these routes, and what loops is said again. A guard for each of them."""
        self._said.clear()
        self._guards = [LoopGuard(self, Bound.of(sock), route, destination) for sock, route, destination in services]
        self._datagrams = {}
        for guard in self._guards:
            if guard.bound.protocol is Protocol.UDP:
                self._datagrams.setdefault(guard.bound.address.port, []).append(guard.bound)
        self.refresh()
        return self._guards

    def refresh(self) -> set[LoopGuard]:
        """A destination has other addresses: rules may have come into a circle, or out of one. The guards of those."""
        legs = [
            Leg(guard.bound, guard.route.connect.protocol, guard.destination.at(guard.route.connect.port))
            for guard in self._guards
        ]
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
        """Whether datagrams of this sender were sent, or are said to be, by a UDP listener of ours."""
        bounds = self._datagrams.get(sender[1])
        if bounds is None:
            return False
        address = Address(socket.AF_INET if len(sender) == 2 else socket.AF_INET6, sender)
        return any(bound.takes(address) for bound in bounds) and is_local(address)

    def say_destination(self, route: Route, address: str) -> None:
        """A destination was refused."""
        if self._say_once(route, True):
            log.warning(
                "%s: refused: %s is a listener of oinetd itself, and what is sent there comes back here (ELOOP); "
                "change the destination or the bind address%s",
                route, address, _place(route),
            )  # fmt: skip

    def say_source(self, route: Route, address: str) -> None:
        """Datagrams were dropped."""
        if self._say_once(route, False):
            log.warning(
                "%s: dropping datagrams from %s: the source is a listener of oinetd itself (a loop, or a forged "
                "source); they are counted as lost",
                route, address,
            )  # fmt: skip

    def _say_once(self, route: Route, destination: bool) -> bool:
        key = route, destination
        if key in self._said:
            return False
        self._said.add(key)
        return True


def _place(route: Route) -> str:
    origin = route.rule.origin
    return f" in {origin}" if origin.line else ""


@dataclass(slots=True, eq=False)
class LoopGuard:
    """What closes a circle for one route: `addresses` come back, where they are addresses of this machine."""

    loops: Loops
    bound: Bound
    route: Route
    destination: Destination
    addresses: frozenset[Address] = frozenset()

    def refuses(self, address: Address) -> bool:
        """Whether connecting to `address` would come back; it is said once."""
        if address not in self.addresses or not is_local(address):
            return False
        self.loops.say_destination(self.route, str(address))
        return True

    def is_own(self, sender: SocketAddress) -> bool:
        """Whether a datagram's sender is a UDP listener of ours; it is said once."""
        if not self.loops.is_own(sender):
            return False
        self.loops.say_source(self.route, host_and_port(*client_address(sender)))
        return True
