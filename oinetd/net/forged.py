"""Source addresses that no host can have, as `_fastpath/shared/forged.pxd` tells of them."""

from __future__ import annotations

from oinetd.net.sockets import SocketAddress

__all__ = ["MAPPED", "is_forged"]

MAPPED = "::ffff:"
"""How the text of an IPv4 address of an IPv6 socket begins."""


def is_forged(source: SocketAddress, over_four: bool) -> bool:
    """Whether this cannot be the source of a datagram; `over_four` says that it arrived over IPv4 (IP_PKTINFO)."""
    host, port = source[:2]
    if port == 0:
        return True
    if len(source) == 2:
        return _four_is_no_source(host)
    if host.startswith(MAPPED) and "." in host:
        return not over_four or _four_is_no_source(host[len(MAPPED) :])
    return host == "::" or (host.startswith("ff") and host.find(":") == 4)


def _four_is_no_source(host: str) -> bool:
    """0.0.0.0, multicast, and the broadcast address of every network."""
    return host in ("0.0.0.0", "255.255.255.255") or 224 <= int(host.partition(".")[0]) < 240
