"""Socket options of rules: for the listening socket, and for the sockets to the server.

The start tries each option on a new socket, so that an option that the kernel refuses is an error before anything
listens.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Final, NamedTuple, Self

from oinetd.model import Protocol, RuleOptions

__all__ = [
    "IPPROTO_MPTCP",
    "NO_CONNECT_OPTIONS",
    "NO_LISTEN_OPTIONS",
    "ConnectOptions",
    "ListenOptions",
    "RawOption",
    "RefusedOption",
    "fastopen_is_off",
    "probe",
]

IPPROTO_MPTCP: Final = 262
"""From linux/in.h."""
_IP_TOS, _IP_FREEBIND = 1, 15
_IPV6_TCLASS, _IPV6_FREEBIND = 67, 78
_IP_TRANSPARENT, _IPV6_TRANSPARENT = 19, 75
_SO_BINDTODEVICE, _SO_MARK = 25, 36
_TCP_DEFER_ACCEPT, _TCP_CONGESTION, _TCP_FASTOPEN, _TCP_FASTOPEN_CONNECT = 9, 13, 23, 30
"""From linux/in.h, linux/in6.h, asm/socket.h and linux/tcp.h."""

_VALUE_BYTES: Final = 16
"""IFNAMSIZ, and TCP_CA_NAME_MAX."""

FASTOPEN_QUEUE: Final = 1024
"""Connections that may carry data before their handshake is complete."""


class RawOption(NamedTuple):
    """One setsockopt: for sockets of `family` (0 is any), and of TCP only if `stream`. `name` is the rule's word."""

    name: str
    family: int
    stream: bool
    level: int
    option: int
    value: bytes

    def fits(self, sock: socket.socket) -> bool:
        """Whether it is for this kind of socket."""
        return self.family in (0, sock.family) and (not self.stream or sock.type == socket.SOCK_STREAM)

    def value_of(self, sock: socket.socket) -> bytes:
        """The value that it has."""
        found = sock.getsockopt(self.level, self.option, _VALUE_BYTES)
        return found.partition(b"\0")[0] if self.option in (_SO_BINDTODEVICE, _TCP_CONGESTION) else found


class RefusedOption(OSError):
    """The kernel refuses an option; `strerror` names it, with the errno and the remedy."""


def _number(value: int) -> bytes:
    return value.to_bytes(4, sys.byteorder)


class _Options:
    """What both sides have in common. `raw` lists the setsockopt calls."""

    def raw(self) -> Iterator[RawOption]:
        raise NotImplementedError

    def apply(self, sock: socket.socket) -> None:
        """Set them on `sock`. Raises `RefusedOption`."""
        for each in self.raw():
            if not each.fits(sock):
                continue
            try:
                sock.setsockopt(each.level, each.option, each.value)
            except OSError as error:
                raise _refusal(each.name, error) from error


_OFF: Final = (
    RawOption("freebind", socket.AF_INET, False, socket.IPPROTO_IP, _IP_FREEBIND, _number(0)),
    RawOption("freebind", socket.AF_INET6, False, socket.IPPROTO_IPV6, _IPV6_FREEBIND, _number(0)),
    RawOption("transparent", socket.AF_INET, False, socket.IPPROTO_IP, _IP_TRANSPARENT, _number(0)),
    RawOption("transparent", socket.AF_INET6, False, socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, _number(0)),
    RawOption("interface", 0, False, socket.SOL_SOCKET, _SO_BINDTODEVICE, b""),
    RawOption("fastopen", 0, True, socket.IPPROTO_TCP, _TCP_FASTOPEN, _number(0)),
    RawOption("defer-accept", 0, True, socket.IPPROTO_TCP, _TCP_DEFER_ACCEPT, _number(0)),
)
"""What a listening socket has without options, but for `congestion`, which stays."""


@dataclass(frozen=True, slots=True)
class ListenOptions(_Options):
    """Options of a listening socket. Sockets of one address with different options are different sockets."""

    freebind: bool = False
    interface: str = ""
    fastopen: bool = False
    mptcp: bool = False
    congestion: str = ""
    defer_accept_s: float = 0.0
    transparent: bool = False

    @classmethod
    def of(cls, options: RuleOptions) -> Self:
        """Those of a rule."""
        return cls(**{each.name: value for each in fields(cls) if (value := getattr(options, each.name)) is not None})

    def replace(self, sock: socket.socket) -> None:
        """Set them on the socket of another process, in place of those that it has. Raises `RefusedOption`."""
        wanted = {(each.level, each.option): each for each in (*_OFF, *self.raw()) if each.fits(sock)}
        for each in wanted.values():
            try:
                if each.value_of(sock) != each.value:
                    sock.setsockopt(each.level, each.option, each.value)
            except OSError as error:
                # A socket of Multipath TCP does not know all of those that are off.
                if each not in _OFF or error.errno == errno.EPERM:
                    raise _refusal(each.name, error) from error

    def raw(self) -> Iterator[RawOption]:
        if self.freebind:
            yield RawOption("freebind", socket.AF_INET, False, socket.IPPROTO_IP, _IP_FREEBIND, _number(1))
            yield RawOption("freebind", socket.AF_INET6, False, socket.IPPROTO_IPV6, _IPV6_FREEBIND, _number(1))
        if self.transparent:
            yield RawOption("transparent", socket.AF_INET, False, socket.IPPROTO_IP, _IP_TRANSPARENT, _number(1))
            yield RawOption("transparent", socket.AF_INET6, False, socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, _number(1))
        if self.interface:
            name = os.fsencode(self.interface)
            yield RawOption("interface", 0, False, socket.SOL_SOCKET, _SO_BINDTODEVICE, name)
        if self.fastopen:
            yield RawOption("fastopen", 0, True, socket.IPPROTO_TCP, _TCP_FASTOPEN, _number(FASTOPEN_QUEUE))
        if self.congestion:
            yield RawOption("congestion", 0, True, socket.IPPROTO_TCP, _TCP_CONGESTION, self.congestion.encode())
        if self.defer_accept_s:
            seconds = _number(max(1, round(self.defer_accept_s)))
            yield RawOption("defer-accept", 0, True, socket.IPPROTO_TCP, _TCP_DEFER_ACCEPT, seconds)


@dataclass(frozen=True, slots=True)
class ConnectOptions(_Options):
    """Options of the sockets towards the server."""

    out_interface: str = ""
    mark: int = 0
    dscp: int = 0
    fastopen: bool = False
    mptcp: bool = False
    congestion: str = ""
    from_client: bool = False

    @classmethod
    def of(cls, options: RuleOptions) -> Self:
        """Those of a rule."""
        return cls(**{each.name: value for each in fields(cls) if (value := getattr(options, each.name)) is not None})

    @property
    def protocol(self) -> int:
        """The protocol of a stream socket; 0 is TCP."""
        return IPPROTO_MPTCP if self.mptcp else 0

    def raw(self) -> Iterator[RawOption]:
        if self.from_client:
            yield RawOption("src=client", socket.AF_INET, False, socket.IPPROTO_IP, _IP_TRANSPARENT, _number(1))
            yield RawOption("src=client", socket.AF_INET6, False, socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, _number(1))
        if self.out_interface:
            name = os.fsencode(self.out_interface)
            yield RawOption("out-interface", 0, False, socket.SOL_SOCKET, _SO_BINDTODEVICE, name)
        if self.mark:
            yield RawOption("mark", 0, False, socket.SOL_SOCKET, _SO_MARK, _number(self.mark))
        if self.dscp:
            # The two lowest bits of the byte are for explicit congestion notification.
            value = _number(self.dscp << 2)
            yield RawOption("dscp", socket.AF_INET, False, socket.IPPROTO_IP, _IP_TOS, value)
            yield RawOption("dscp", socket.AF_INET6, False, socket.IPPROTO_IPV6, _IPV6_TCLASS, value)
        if self.fastopen:
            yield RawOption("fastopen", 0, True, socket.IPPROTO_TCP, _TCP_FASTOPEN_CONNECT, _number(1))
        if self.congestion:
            yield RawOption("congestion", 0, True, socket.IPPROTO_TCP, _TCP_CONGESTION, self.congestion.encode())


NO_LISTEN_OPTIONS: Final = ListenOptions()
NO_CONNECT_OPTIONS: Final = ConnectOptions()


def probe(options: ListenOptions | ConnectOptions, protocol: Protocol) -> None:
    """Try the options on sockets of both address families, if the machine has both. Raises `RefusedOption`."""
    stream = protocol is Protocol.TCP
    for family in (socket.AF_INET, socket.AF_INET6):
        number = IPPROTO_MPTCP if options.mptcp and stream else 0
        try:
            sock = socket.socket(family, socket.SOCK_STREAM if stream else socket.SOCK_DGRAM, number)
        except OSError as error:
            if family == socket.AF_INET6 and error.errno == errno.EAFNOSUPPORT:
                return
            if number:
                raise _refusal("mptcp", error) from error
            raise
        with sock:
            options.apply(sock)


def fastopen_is_off() -> bool:
    """Whether the kernel ignores `fastopen` on listening sockets."""
    try:
        with open("/proc/sys/net/ipv4/tcp_fastopen", encoding="ascii") as file:
            return not int(file.read()) & 2
    except (OSError, ValueError):
        return False


_NEEDS_RAW: Final = (
    "needs CAP_NET_ADMIN or CAP_NET_RAW; a process that has changed its user has to be started again for it"
)
_REMEDIES: Final = {
    ("interface", errno.ENODEV): "there is no such interface (`ip link` lists them)",
    ("out-interface", errno.ENODEV): "there is no such interface (`ip link` lists them)",
    ("interface", errno.EPERM): "needs CAP_NET_RAW",
    ("out-interface", errno.EPERM): "needs CAP_NET_RAW",
    ("mark", errno.EPERM): "needs CAP_NET_ADMIN; a process that has changed its user has to be started again for it",
    ("src=client", errno.EPERM): _NEEDS_RAW,
    ("transparent", errno.EPERM): _NEEDS_RAW,
    ("congestion", errno.ENOENT): "load its module: `modprobe tcp_NAME`; "
    "net.ipv4.tcp_available_congestion_control lists what there is",
    ("congestion", errno.EPERM): "add it to net.ipv4.tcp_allowed_congestion_control",
    ("fastopen", errno.EOPNOTSUPP): "set net.ipv4.tcp_fastopen to 3",
    ("mptcp", errno.ENOPROTOOPT): "set net.mptcp.enabled to 1",
    ("mptcp", errno.EPROTONOSUPPORT): "this kernel has no MPTCP (CONFIG_MPTCP)",
}


def _refusal(name: str, error: OSError) -> RefusedOption:
    code = error.errno or 0
    remedy = _REMEDIES.get((name, code), "remove the option")
    word = errno.errorcode.get(code, str(code))
    return RefusedOption(code, f"{name}: the kernel refuses it ({word}, {error.strerror}): {remedy}")
