"""The listening sockets of a configuration: which ones it needs, and how to open them beside those in use.

Everything new is bound before anything old is touched. A socket that is in the old and the new configuration is kept
with its accept queue.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import socket
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

from oinetd.errors import BindError
from oinetd.model import Config, Endpoint, KeepAlive, Protocol, Route, Rule
from oinetd.net.options import ListenOptions
from oinetd.net.port import Port, PortKey, shared_ports
from oinetd.net.resolver import GIVE_UP_S, is_temporary, resolve
from oinetd.net.sockets import (
    Address,
    bind_datagrams,
    bind_error,
    bind_listener,
    bound_address,
    keepalive_of,
    share,
    start_listening,
    tune,
    tune_datagrams,
    tune_listener,
)
from oinetd.net.unix_sockets import FileAccess, UnixListener, bind_unix

__all__ = ["BoundAddress", "Port", "PortKey", "open_ports", "plan_ports"]

logger = logging.getLogger("oinetd")

RELOAD_PATIENCE_S = 1.0
"""How long a reload waits for the name of an address to listen on."""


class BoundAddress(NamedTuple):
    """A listening address as the kernel has it, and the route it serves."""

    route: Route
    host: str
    port: int


async def plan_ports(config: Config, before: Mapping[PortKey, Route]) -> list[Port]:
    """The sockets that `config` needs; `before` are those of the configuration in force.

    Raises `BindError` for a name that cannot be resolved, or not in time. A name that is listened on already keeps its
    addresses if the name server does not answer.
    """
    patience_s = RELOAD_PATIENCE_S if before else GIVE_UP_S
    known: dict[str, dict[Address, None]] = {}
    for key, route in before.items():
        known.setdefault(route.bind.address, {})[key.address.at(0)] = None
    hosts = {rule.bind.address: rule for rule in config.rules}
    answers = await asyncio.gather(
        *(_addresses(rule, tuple(known.get(host, ())), patience_s) for host, rule in hosts.items())
    )
    addresses = dict(zip(hosts, answers, strict=True))
    v4_ports = {
        (rule.bind.protocol, port) for rule in config.rules if not _is_v6(rule.bind) for port in rule.bind.ports
    }
    free = _FreePorts(before)
    ports = []
    for rule in config.rules:
        found = addresses[rule.bind.address]
        protocol, settings = rule.bind.protocol, config.settings_of(rule)
        for route in rule.routes():
            for address in (each.at(route.bind.port) for each in found):
                v6only = address.family == socket.AF_INET6 and (
                    not address.is_wildcard or (address.port != 0 and (protocol, address.port) in v4_ports)
                )
                v6only = v6only and not address.host.startswith("::ffff:")  # which is IPv4, on an IPv6 socket
                key = PortKey(address, v6only, 0, protocol, ListenOptions.of(rule.options))
                ports.append(Port(key, route, settings.keepalive, settings.listen_backlog, len(found) > 1))
    return [free.place(port, ports) if port.key.any_port else port for port in shared_ports(ports)]


class _FreePorts:
    """Numbers the sockets whose port the kernel chooses.

    A rule keeps its port. A new or changed rule takes the port of a rule that was removed, if there is one. So the port
    stays if the destination of a rule changes, and never goes from one rule to another that stays.
    """

    def __init__(self, before: Mapping[PortKey, Route]) -> None:
        self._had: dict[tuple[Address, Route], list[int]] = {}
        self._left: dict[tuple[Protocol, Address], list[int]] | None = None
        self._before = {key: route for key, route in before.items() if key.any_port}
        for key, route in self._before.items():
            self._had.setdefault((key.address, route), []).append(key.nth)

    def place(self, port: Port, ports: list[Port]) -> Port:
        """`port` with its number."""
        address = port.key.address
        had = self._had.get((address, port.route))
        nth = had.pop(0) if had else self._another(port.key, ports)
        return replace(port, key=replace(port.key, nth=nth))

    def _another(self, wanted: PortKey, ports: list[Port]) -> int:
        if self._left is None:
            stay = Counter((port.key.address, port.route) for port in ports)
            self._left = {}
            for key, route in self._before.items():
                if stay[key.address, route] > 0:
                    stay[key.address, route] -= 1
                else:
                    self._left.setdefault((key.protocol, key.address), []).append(key.nth)
        left = self._left.get((wanted.protocol, wanted.address))
        return left.pop(0) if left else next(_numbers)


_numbers = itertools.count()


def _is_v6(endpoint: Endpoint) -> bool:
    return ":" in endpoint.address


async def _addresses(rule: Rule, known: tuple[Address, ...], patience_s: float) -> tuple[Address, ...]:
    """The addresses that a rule listens on; `known` are those it has."""
    try:
        return await resolve(rule.bind.address, patience_s)
    except OSError as error:
        temporary = is_temporary(error)
        if temporary and known:
            return known
        where = f"{rule.origin}: " if rule.origin.line else ""
        remedy = "try again later" if temporary else "is the name known, is the scope an interface of this machine?"
        raise BindError(
            f"{where}cannot listen on {rule.bind.host}: {error.strerror or error} ({remedy})",
            errno.EAGAIN if temporary else errno.EADDRNOTAVAIL,
        ) from error


def open_ports(
    ports: Iterable[Port],
    kept: Mapping[PortKey, socket.socket],
    inherited: Iterable[socket.socket] = (),
    lent: Collection[socket.socket] = (),
    leaving: Iterable[socket.socket] = (),
) -> dict[Port, socket.socket]:
    """A listening socket for each port: the one in `kept` if there is one, else one of `inherited`, else a new one.

    Of those inherited, `lent` ones may stay unused, and are used as they are until `settle_port`: the process that has
    them may go on with them. New ones may share a port with those that are `leaving`. Kept
    sockets get their new keep-alive settings. Raises `BindError` with all failures; then new sockets are closed again,
    and the others are as before.
    """
    ports = list(ports)
    given = {(sock.type, bound_address(sock)): sock for sock in inherited}
    wanted = {port.key for port in ports}
    retiring = _by_port([*leaving, *(sock for key, sock in kept.items() if key not in wanted)])
    changed: list[tuple[socket.socket, KeepAlive]] = []
    opened: dict[Port, socket.socket] = {}
    new, others = list[Port](), list[Port]()
    failures: list[tuple[Port, BindError]] = []
    kept_files: list[tuple[Port, UnixListener]] = []
    for port in ports:
        try:
            if port.key in kept:
                opened[port] = sock = kept[port.key]
                if port.key.protocol is Protocol.UDP:
                    continue
                if isinstance(sock, UnixListener):
                    kept_files.append((port, sock))
                    continue
                changed.append((sock, keepalive_of(sock)))
                tune_listener(sock, port.key.address, port.keepalive)
                continue
            handed_over = given.get((_KIND[port.key.protocol], port.key.address))
            borrowed = handed_over in lent
            opened[port] = _open(port, handed_over, retiring, borrowed=borrowed)
            (others if borrowed else new).append(port)
        except BindError as error:
            taken = _taken_by(port.key, given.values()) if error.errno == errno.EADDRINUSE else None
            failures.append((port, taken or error))
    for port in new:
        if port.key.protocol is Protocol.UDP:
            continue
        try:
            start_listening(opened[port], port.key.address, port.backlog)
        except BindError as error:
            failures.append((port, error))
    for sock in (*itertools.chain.from_iterable(retiring.values()), *(opened[port] for port in new)):
        share(sock, False)
    served = {port.route for port in opened}
    fatal = [
        (port, error)
        for port, error in failures
        if not (port.optional and port.route in served and error.errno in _ABSENT)
    ]
    if fatal:
        for port in (*new, *others):
            opened[port].close()
        for sock, keepalive in changed:
            tune(sock, keepalive)
        lines = [
            f"{port.route.rule.origin}: {error}" if port.route.rule.origin.line else str(error) for port, error in fatal
        ]
        raise BindError("\n".join(lines), fatal[0][1].errno)
    for port, file in kept_files:
        _set_access(port, file)
    _warn_of_unserved((key for key, sock in given.items() if sock not in lent), opened)
    return opened


def _set_access(port: Port, listener: UnixListener) -> None:
    """Give the file of a kept socket the mode and owner of the new rule."""
    try:
        listener.set_access(FileAccess.of(port.route.rule.options))
    except (OSError, LookupError) as error:
        logger.warning("%s: cannot set mode and owner of the socket's file: %s", port.key.address, error)


_KIND = {Protocol.TCP: socket.SOCK_STREAM, Protocol.UDP: socket.SOCK_DGRAM}
_ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def _taken_by(wanted: PortKey, inherited: Iterable[socket.socket]) -> BindError | None:
    """The error that names the inherited socket with this address; None if there is none."""
    for sock in inherited:
        if sock.family == socket.AF_UNIX:
            continue
        address = bound_address(sock)
        v6only = address.family == socket.AF_INET6 and bool(sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY))
        if sock.type != _KIND[wanted.protocol] or not wanted.overlaps(PortKey(address, v6only, 0, wanted.protocol)):
            continue
        remedy = f"write the rule with {address.host}"
        if wanted.address.family != address.family:
            remedy += " or set BindIPv6Only=ipv6-only in the socket unit"
        return BindError(
            f"cannot listen on {wanted.address}: the inherited socket {address} holds the port ({remedy})",
            errno.EADDRINUSE,
        )
    return None


def _warn_of_unserved(inherited: Iterable[tuple[int, Address]], ports: Iterable[Port]) -> None:
    """Warn of each inherited socket that no port uses: its clients are never served."""
    used = {(_KIND[port.key.protocol], port.key.address) for port in ports}
    for kind, address in inherited:
        if (kind, address) not in used:
            where = f"{address}/udp" if kind == socket.SOCK_DGRAM else str(address)
            logger.warning("inherited socket %s: no rule has this address, its clients are not served", where)


def _adopt(port: Port, handed_over: socket.socket) -> socket.socket:
    """A duplicate of the socket's descriptor, with the options of other listeners.

    The inherited descriptor stays open: the service manager holds the address, so it could not be bound again if one
    reload removes the rule and another adds it.
    """
    address = port.key.address
    sock = _copy(address, handed_over)
    try:
        port.key.options.apply(sock)
        if port.key.protocol is Protocol.TCP:
            tune_listener(sock, address, port.keepalive)
        else:
            tune_datagrams(sock, address)
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError):
            raise bind_error(address, error) from error
        raise
    return sock


def _open(
    port: Port,
    handed_over: socket.socket | None,
    retiring: Mapping[tuple[int, int], list[socket.socket]],
    *,
    borrowed: bool,
) -> socket.socket:
    """The socket of a port: a new one, or that of another process, `borrowed` as it is. Raises `BindError`."""
    if handed_over is None:
        return _bind(port, retiring)
    return _copy(port.key.address, handed_over) if borrowed else _adopt(port, handed_over)


def _copy(address: Address, handed_over: socket.socket) -> socket.socket:
    """A copy of the socket's descriptor. Raises `BindError`."""
    try:
        sock = handed_over.dup()
    except OSError as error:
        raise bind_error(address, error) from error
    try:
        sock.setblocking(False)
        if isinstance(sock, UnixListener) and isinstance(handed_over, UnixListener) and handed_over.path:
            sock.lent = handed_over.lent
            sock.own_file(handed_over.path)
            handed_over.leave_file()
    except OSError as error:
        sock.close()
        raise bind_error(address, error) from error
    return sock


def _by_port(sockets: Iterable[socket.socket]) -> dict[tuple[int, int], list[socket.socket]]:
    found: dict[tuple[int, int], list[socket.socket]] = {}
    for sock in sockets:
        found.setdefault((sock.type, bound_address(sock).port), []).append(sock)
    return found


def _bind(port: Port, retiring: Mapping[tuple[int, int], list[socket.socket]]) -> socket.socket:
    if port.key.address.is_unix:
        return bind_unix(port.key.address, FileAccess.of(port.route.rule.options))
    try:
        return _bind_once(port, shared=False)
    except BindError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        # Perhaps our own listeners have the port, and this change removes them.
        ours = retiring.get((_KIND[port.key.protocol], port.key.address.port))
        if not ours:
            raise
        for sock in ours:
            share(sock, True)
        return _bind_once(port, shared=True)


def _bind_once(port: Port, *, shared: bool) -> socket.socket:
    if port.key.protocol is Protocol.UDP:
        return bind_datagrams(port.key.address, v6only=port.key.v6only, shared=shared, options=port.key.options)
    return bind_listener(
        port.key.address, port.keepalive, v6only=port.key.v6only, shared=shared, options=port.key.options
    )
