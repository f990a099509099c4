"""A listening socket that a configuration needs, and its identity over reloads."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterable
from dataclasses import dataclass, replace

from oinetd.errors import BindError
from oinetd.model import KeepAlive, Protocol, Route, RuleOptions, Settings
from oinetd.net.options import NO_LISTEN_OPTIONS, ListenOptions
from oinetd.net.sockets import Address, start_listening, tune_datagrams, tune_listener
from oinetd.net.unix_sockets import FileAccess, UnixListener

__all__ = ["Port", "PortKey", "settle_port", "shared_ports"]

logger = logging.getLogger("oinetd")


@dataclass(frozen=True, slots=True)
class PortKey:
    """The identity of a listening socket. `nth` distinguishes sockets whose port the kernel chooses.

    A socket with different options is a different one: it replaces the other as an overlapping socket does.
    """

    address: Address
    v6only: bool
    nth: int = 0
    protocol: Protocol = Protocol.TCP
    options: ListenOptions = NO_LISTEN_OPTIONS

    @property
    def any_port(self) -> bool:
        """Whether the kernel chooses the port."""
        return not (self.address.port or self.address.is_unix)

    def overlaps(self, other: PortKey) -> bool:
        """Whether the two cannot be bound at the same time: they are equal, or one is a wildcard."""
        if self.protocol is not other.protocol or self.address.port != other.address.port:
            return False
        if self.address.is_wildcard or other.address.is_wildcard:
            return self.address.family == other.address.family or not (self.v6only or other.v6only)
        return self.address == other.address


@dataclass(frozen=True, slots=True)
class Port:
    """A listening socket that has to be there, for one route."""

    key: PortKey
    route: Route
    keepalive: KeepAlive
    backlog: int
    optional: bool = False
    """One of several addresses of a name: if the machine does not have it, the others do."""
    others: tuple[Route, ...] = ()
    """Of rules that share the socket by server names, in their order."""

    @property
    def routes(self) -> tuple[Route, ...]:
        return (self.route, *self.others)


def shared_ports(ports: Iterable[Port]) -> list[Port]:
    """The ports, with one for all routes that have the same address and port."""
    found: list[Port] = []
    places: dict[PortKey, int] = {}
    for port in ports:
        if port.key.any_port or port.key not in places:
            places.setdefault(port.key, len(found))
            found.append(port)
        else:
            first = found[places[port.key]]
            found[places[port.key]] = replace(first, others=(*first.others, port.route))
    return found


def settle_port(key: PortKey, sock: socket.socket, settings: Settings, options: RuleOptions, *, managed: bool) -> None:
    """Set the options of a rule on the socket of another process, in place of those that it had there; beside those of
    the service manager, if it is `managed` by one."""
    try:
        if isinstance(sock, UnixListener) and not managed:
            sock.set_access(FileAccess.of(options))
        (key.options.apply if managed else key.options.replace)(sock)
        if key.protocol is Protocol.TCP:
            tune_listener(sock, key.address, settings.keepalive)
            start_listening(sock, key.address, settings.listen_backlog)
        else:
            tune_datagrams(sock, key.address)
    except (OSError, LookupError, BindError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        logger.warning("%s: it has the options of before still, a new start would change them: %s", key.address, why)
