"""The listening sockets of a configuration: which there have to be, and how to get there from those there are.

Everything new is bound before anything old is touched. A socket that both the old and the new configuration want is
kept, and its queue with it.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from oinetd.errors import BindError
from oinetd.model import Config, Endpoint, Route
from oinetd.sockets import (
    Address,
    bind_listener,
    bound_address,
    is_numeric,
    lookup,
    share,
    start_listening,
    tune,
)

__all__ = ["Port", "PortKey", "open_ports", "plan_ports"]


@dataclass(frozen=True, slots=True)
class PortKey:
    """What makes two listening sockets the same one. `nth` tells those apart that let the kernel choose a port."""

    address: Address
    v6only: bool
    nth: int = 0


@dataclass(frozen=True, slots=True)
class Port:
    """A listening socket that has to be there, for one route."""

    key: PortKey
    route: Route
    optional: bool = False
    """One of several addresses of a name: where the machine does not have it, the others do."""


async def plan_ports(config: Config) -> list[Port]:
    """The sockets that `config` wants. Raises `BindError` for an address that cannot be resolved."""
    v4_ports = {port for rule in config.rules if not _is_v6(rule.bind) for port in rule.bind.ports}
    numbers: Counter[Address] = Counter()
    ports = []
    for rule in config.rules:
        for route in rule.routes():
            addresses = await _addresses(route)
            for address in addresses:
                v6only = address.family == socket.AF_INET6 and (
                    not address.is_wildcard or (address.port != 0 and address.port in v4_ports)
                )
                key = PortKey(address, v6only, numbers[address] if address.port == 0 else 0)
                numbers[address] += 1
                ports.append(Port(key, route, optional=len(addresses) > 1))
    return ports


def _is_v6(endpoint: Endpoint) -> bool:
    return ":" in endpoint.address


async def _addresses(route: Route) -> tuple[Address, ...]:
    loop = asyncio.get_running_loop()
    try:
        if is_numeric(route.bind.address):
            return lookup(route.bind.address, route.bind.port)
        return await loop.run_in_executor(None, lookup, route.bind.address, route.bind.port)
    except OSError as error:
        where = f"{route.rule.origin}: " if route.rule.origin.line else ""
        raise BindError(
            f"{where}cannot listen on {route.bind.host}: {error.strerror or error} (is the name known, is the scope an "
            "interface of this machine?)",
            errno.EADDRNOTAVAIL,
        ) from error


def open_ports(
    config: Config,
    ports: Iterable[Port],
    kept: Mapping[PortKey, socket.socket],
    inherited: Iterable[socket.socket] = (),
) -> dict[Port, socket.socket]:
    """A listening socket for each port: from `kept` where it is there, else from `inherited`, else a new one.

    Raises `BindError` with all that failed, and has then closed what it opened.
    """
    ports = list(ports)
    given = {bound_address(sock): sock for sock in inherited}
    wanted = {port.key for port in ports}
    retiring = [sock for key, sock in kept.items() if key not in wanted]
    opened: dict[Port, socket.socket] = {}
    new: list[Port] = []
    failures: list[tuple[Port, BindError]] = []
    for port in ports:
        if port.key in kept:
            opened[port] = kept[port.key]
            continue
        try:
            handed_over = given.get(port.key.address)
            opened[port] = _adopt(config, port, handed_over) if handed_over else _bind(config, port, retiring)
            new.append(port)
        except BindError as error:
            failures.append((port, error))
    for port in new:
        try:
            start_listening(opened[port], port.key.address, _backlog(config, port))
        except BindError as error:
            failures.append((port, error))
    for sock in (*retiring, *(opened[port] for port in new)):
        share(sock, False)
    served = {port.route for port in opened}
    fatal = [
        (port, error)
        for port, error in failures
        if not (port.optional and port.route in served and error.errno in _ABSENT)
    ]
    if fatal:
        for port in new:
            opened[port].close()
        lines = [
            f"{port.route.rule.origin}: {error}" if port.route.rule.origin.line else str(error) for port, error in fatal
        ]
        raise BindError("\n".join(lines), fatal[0][1].errno)
    return opened


_ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def _adopt(config: Config, port: Port, handed_over: socket.socket) -> socket.socket:
    """A descriptor of our own for the socket, set up like the others.

    The one that was handed over stays open: whoever made it holds the address, so that it could not be bound again
    for a rule that one reload takes away and another brings back.
    """
    sock = handed_over.dup()
    sock.setblocking(False)
    tune(sock, config.settings_of(port.route.rule).keepalive)
    return sock


def _bind(config: Config, port: Port, retiring: list[socket.socket]) -> socket.socket:
    address, keepalive = port.key.address, config.settings_of(port.route.rule).keepalive
    try:
        return bind_listener(address, keepalive, v6only=port.key.v6only)
    except BindError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        # Perhaps the port is taken by ourselves: by listeners that this very change takes away.
        ours = [sock for sock in retiring if bound_address(sock).port == address.port]
        if not ours:
            raise
        for sock in ours:
            share(sock, True)
        return bind_listener(address, keepalive, v6only=port.key.v6only, shared=True)


def _backlog(config: Config, port: Port) -> int:
    return config.settings_of(port.route.rule).listen_backlog
