"""The destination `original`: each connection goes to the address that its client wanted.

The packet filter has brought the connection here. With `tproxy` its local address is the one that the client wanted;
with `redirect` the connection tracking of the kernel knows it. Whoever may connect chooses where a connection of this
machine leads; so nothing of this machine, and no special address, is reached.

`_fastpath/tcp/original.pxd` does the same for the native lane.
"""

from __future__ import annotations

import logging
import socket
import sys

from oinetd.model import ORIGINAL, Rule
from oinetd.net.sockets import Address, bound_address, lookup
from oinetd.upstream.destination import Destination
from oinetd.upstream.loops import find_local
from oinetd.upstream.special import is_special

__all__ = ["Original", "is_forbidden", "redirected_from"]

log = logging.getLogger("oinetd")


_SO_ORIGINAL_DST = 80
"""From linux/netfilter_ipv4.h and linux/netfilter_ipv6/ip6_tables.h: the same number for both levels."""


def redirected_from(client: socket.socket) -> Address | None:
    """The address that a connection had before `redirect` changed it; None if nothing tracks connections."""
    try:
        if client.family == socket.AF_INET or bound_address(client).host.startswith("::ffff:"):
            place = client.getsockopt(socket.IPPROTO_IP, _SO_ORIGINAL_DST, 16)
            return Address(socket.AF_INET, (socket.inet_ntop(socket.AF_INET, place[4:8]), _port(place)))
        place = client.getsockopt(socket.IPPROTO_IPV6, _SO_ORIGINAL_DST, 28)
    except OSError:
        return None
    host, scope = socket.inet_ntop(socket.AF_INET6, place[8:24]), int.from_bytes(place[24:28], sys.byteorder)
    return Address(socket.AF_INET6, (host, _port(place), 0, scope))


def _port(place: bytes) -> int:
    return int.from_bytes(place[2:4], "big")


def is_forbidden(address: Address) -> bool:
    """Whether a client may not choose this address as its destination.

    Raises `OSError` if that cannot be found out now: then nobody is let through.
    """
    return is_special(address.host) or find_local(address)


def _may_be_here(address: Address) -> bool:
    try:
        return find_local(address)
    except OSError:
        return True  # not known: the connection tracking says whether it is the one before `redirect`


class Original(Destination):
    """Stands for the destinations of a rule's clients; it has no address itself, and nothing to resolve."""

    def __init__(self, rule: Rule) -> None:
        super().__init__(ORIGINAL, 0.0)
        self._rule = rule
        self._said = False

    @property
    def resolved(self) -> bool:
        return True

    def wanted_by(self, client: socket.socket) -> tuple[Destination, int]:
        """The destination of this client, and its port."""
        address = bound_address(client)
        if address.port == self._rule.bind.port and _may_be_here(address):
            address = redirected_from(client) or address
        host = address.host.removeprefix("::ffff:")  # of an IPv4 client of an IPv6 listener
        if host != address.host:
            (address,) = lookup(host, address.port)
        return Destination(host, 0.0, (address,)), address.port

    def refuses(self, address: Address) -> bool:
        """Whether no connection is made to what a client wants; this is logged once. Raises `OSError`."""
        if not is_forbidden(address):
            return False
        self.tell_refused(str(address))
        return True

    def tell_refused(self, address: str) -> None:
        """Log, once, that a client wants an address that is not connected to."""
        if not self._said:
            self._said = True
            log.warning(
                "%s: refused: a client wants %s, and original leads to no address of this machine, and to no loopback, "
                "link-local, multicast or unspecified one (ELOOP)",
                self._rule, address,
            )  # fmt: skip

    def look_up_again(self) -> None:
        """There is no name."""
