"""What a listening socket of the native lane does."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from oinetd.lanes.native.plane import SocketAddress
from oinetd.model import SOURCE_PREFIX, AccessRule, Protocol, Route, Settings, SourcePrefix

__all__ = ["Served", "Serving"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """What a listening socket of the native lane does: `access` are the global rules, the rule's own come with it.

    `sources` are the local addresses from which it connects; none where the kernel chooses. `looping` says of each
    address whether it leads back here where it is one of this machine.
    """

    route: Route
    settings: Settings
    addresses: tuple[SocketAddress, ...]
    sources: tuple[SocketAddress, ...] = ()
    access: tuple[AccessRule, ...] = ()
    source_prefix: SourcePrefix = SOURCE_PREFIX
    looping: tuple[bool, ...] = ()


@dataclass(slots=True)
class Served:
    """A listener of the lane: its number in the data plane, its socket, kept open, and what is in force for it."""

    index: int
    sock: socket.socket
    serving: Serving
    tag: int

    @property
    def datagrams(self) -> bool:
        """Whether it is a UDP socket."""
        return self.serving.route.bind.protocol is Protocol.UDP
