"""What the kernel's routing does with an address. It is asked; nothing is sent to the address."""

from __future__ import annotations

import socket
import struct
from typing import Final

from oinetd.net.address import Address
from oinetd.net.sockets import SHORTAGE

__all__ = ["RTN_LOCAL", "is_delivered_here", "route_type"]

RTN_LOCAL: Final = 2
"""To this machine. Of linux/rtnetlink.h, as the numbers below."""

_RTM_NEWROUTE, _RTM_GETROUTE = 24, 26
_NLM_F_REQUEST: Final = 1
_RTA_DST, _RTA_MARK = 1, 16


def route_type(family: int, host: bytes, mark: int | None = None) -> int | None:
    """The type of the route of a packet to `host`, perhaps with a mark; 0 if it has none, None if that is not known.

    Raises `OSError` without a descriptor or memory to ask.
    """
    attributes = struct.pack("=HH", 4 + len(host), _RTA_DST) + host
    if mark is not None:
        attributes += struct.pack("=HHI", 8, _RTA_MARK, mark)
    body = struct.pack("=8BI", family, 8 * len(host), 0, 0, 0, 0, 0, 0, 0) + attributes
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as route:
            route.settimeout(1.0)
            route.send(struct.pack("=IHHII", 16 + len(body), _RTM_GETROUTE, _NLM_F_REQUEST, 1, 0) + body)
            answer = route.recv(8192)
    except OSError as error:
        if error.errno in SHORTAGE:
            raise
        return None
    # The head of the message, then rtmsg: its type is the eighth byte. Another message is an error: no route.
    return answer[16 + 7] if struct.unpack_from("=H", answer, 4)[0] == _RTM_NEWROUTE else 0


def is_delivered_here(address: Address) -> bool | None:
    """Whether a packet to `address` comes to this machine, which has it, or a local route to it; None if not known."""
    host = address.host.partition("%")[0].removeprefix("::ffff:")
    family = socket.AF_INET if "." in host and ":" not in host else socket.AF_INET6
    found = route_type(family, socket.inet_pton(family, host))
    return None if found is None else found == RTN_LOCAL
