"""The destination `original`: each connection goes to the address that its client wanted.

The packet filter (TPROXY) has brought the connection here, so its local address is that one. Whoever may connect
chooses where a connection of this machine leads; so nothing of this machine, and no special address, is reached.
"""

from __future__ import annotations

import logging
import socket

from oinetd.model import ORIGINAL, Rule
from oinetd.net.sockets import Address, bound_address, lookup
from oinetd.upstream.destination import Destination
from oinetd.upstream.loops import is_local
from oinetd.upstream.special import is_special

__all__ = ["Original"]

log = logging.getLogger("oinetd")


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
        host = address.host.removeprefix("::ffff:")  # of an IPv4 client of an IPv6 listener
        if host != address.host:
            (address,) = lookup(host, address.port)
        return Destination(host, 0.0, (address,)), address.port

    def refuses(self, address: Address) -> bool:
        """Whether no connection is made to what a client wants; this is logged once."""
        if not is_special(address.host) and not is_local(address):
            return False
        if not self._said:
            self._said = True
            log.warning(
                "%s: refused: a client wants %s, and original leads to no address of this machine, and to no loopback, "
                "link-local, multicast or unspecified one (ELOOP)",
                self._rule, address,
            )  # fmt: skip
        return True
