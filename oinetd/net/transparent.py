"""Whether packets for connections that we made from the addresses of clients are delivered to this machine."""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import Final

__all__ = ["MARK", "TABLE", "delivers_marked"]

MARK: Final = 0x6F69
TABLE: Final = 28521
"""The mark of packets for connections of ours, and the table that delivers them here, whatever their destination."""

RTM_GETROUTE: Final = 26
NLM_F_REQUEST: Final = 1
RTA_DST, RTA_MARK = 1, 16
RTN_LOCAL: Final = 2
"""Of linux/rtnetlink.h."""

ELSEWHERE: Final = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
"""Addresses that no machine has."""


def delivers_marked(family: int) -> bool | None:
    """Whether a packet with the mark for an address of somebody else is delivered here; None if that is not known."""
    host = socket.inet_pton(family, ELSEWHERE[socket.AddressFamily(family)])
    with contextlib.suppress(OSError), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as route:
        route.settimeout(1.0)
        attributes = struct.pack("=HH", 4 + len(host), RTA_DST) + host + struct.pack("=HHI", 8, RTA_MARK, MARK)
        body = struct.pack("=8BI", family, 8 * len(host), 0, 0, 0, 0, 0, 0, 0) + attributes
        route.send(struct.pack("=IHHII", 16 + len(body), RTM_GETROUTE, NLM_F_REQUEST, 1, 0) + body)
        answer = route.recv(8192)
        # The head of the message, then rtmsg: its type is the eighth byte. An error (type 2) is no route.
        return struct.unpack_from("=H", answer, 4)[0] != 2 and answer[16 + 7] == RTN_LOCAL
    return None
