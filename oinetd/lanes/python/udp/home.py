"""What a UDP session has around it: the listener that it answers through, and the addresses that it may write to."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Protocol, TypeAlias

from oinetd.core.service import Service
from oinetd.lanes.python.udp.plane import DatagramPlane
from oinetd.net.datagrams import Batch
from oinetd.net.sockets import Address

if TYPE_CHECKING:
    from oinetd.lanes.python.udp.session import DatagramSession

__all__ = ["Home", "Places", "places_of"]

Places: TypeAlias = tuple[tuple[Address, ...], tuple[Address, ...]]
"""The addresses that a session may write to, and those that it may write from; if there is none, any."""


class Home(Protocol):
    """The listener of a session."""

    sock: socket.socket
    batch: Batch
    plane: DatagramPlane

    def gone(self, session: DatagramSession) -> None:
        """The session has ended."""
        ...

    def let_go(self, session: DatagramSession) -> None:
        """The session is on its way to another process."""
        ...

    def take_back(self, session: DatagramSession) -> None:
        """The session goes on here."""
        ...


def places_of(service: Service) -> Places:
    """Where sessions of `service` may write to and from at the moment."""
    return service.destination.at(service.route.place), service.source
