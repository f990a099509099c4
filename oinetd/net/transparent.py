"""Whether packets for connections that we made from the addresses of clients are delivered to this machine."""

from __future__ import annotations

import socket
from typing import Final

from oinetd.net.route import RTN_LOCAL, route_type

__all__ = ["MARK", "TABLE", "delivers_marked"]

MARK: Final = 0x6F69
TABLE: Final = 28521
"""The mark of packets for connections of ours, and the table that delivers them here, whatever their destination."""

ELSEWHERE: Final = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
"""Addresses that no machine has."""


def delivers_marked(family: int) -> bool | None:
    """Whether a packet with the mark for an address of somebody else is delivered here; None if that is not known."""
    host = socket.inet_pton(family, ELSEWHERE[socket.AddressFamily(family)])
    found = route_type(family, host, MARK)
    return None if found is None else found == RTN_LOCAL
