"""Source addresses that no host can have; the same check as in `_fastpath/shared/forged.pxd`."""

from __future__ import annotations

from oinetd.net.sockets import SocketAddress

__all__ = ["MAPPED", "is_forged"]

MAPPED = "::ffff:"
"""The prefix of an IPv4-mapped IPv6 address."""


def is_forged(source: SocketAddress, over_four: bool) -> bool:
    """Whether `source` cannot be true; `over_four` is whether the datagram arrived over IPv4 (IP_PKTINFO)."""
    host, port = source[:2]
    if port == 0:
        return True
    if len(source) == 2:
        return _four_is_no_source(host)
    if host.startswith(MAPPED) and "." in host:
        return not over_four or _four_is_no_source(host[len(MAPPED) :])
    return host == "::" or (host.startswith("ff") and host.find(":") == 4)


def _four_is_no_source(host: str) -> bool:
    """Whether it is 0.0.0.0, multicast, or the broadcast address of all networks."""
    return host in ("0.0.0.0", "255.255.255.255") or 224 <= int(host.partition(".")[0]) < 240
