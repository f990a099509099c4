"""Addresses of sockets: of networks, and of unix sockets."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from oinetd.model import UNIX_PREFIX

__all__ = ["UNIX_CLIENT", "Address", "SocketAddress", "client_address", "host_and_port", "is_numeric"]

SocketAddress = tuple[str, int] | tuple[str, int, int, int]

UNIX_CLIENT = "unix:"
"""What stands for the address of a client of a unix socket, which usually has none."""


@dataclass(frozen=True, slots=True)
class Address:
    """A resolved socket address; `sockaddr` is the argument of connect and bind. Raises what they raise.

    That of a unix socket is its path, or NUL and its abstract name; `host` is as a configuration writes it, `port` 0.
    """

    family: int
    sockaddr: SocketAddress | str

    @property
    def host(self) -> str:
        if isinstance(self.sockaddr, str):
            return UNIX_PREFIX + self.sockaddr.replace("\0", "@", 1)
        return self.sockaddr[0]

    @property
    def port(self) -> int:
        return 0 if isinstance(self.sockaddr, str) else self.sockaddr[1]

    @property
    def is_unix(self) -> bool:
        return self.family == socket.AF_UNIX

    def at(self, port: int) -> Address:
        """The same address with another port; a unix socket has none."""
        if isinstance(self.sockaddr, str):
            return self
        return Address(self.family, (self.sockaddr[0], port, *self.sockaddr[2:]))

    @property
    def is_wildcard(self) -> bool:
        return self.host in ("0.0.0.0", "::")

    def __str__(self) -> str:
        return self.host if self.is_unix else host_and_port(self.host, self.port)

    @classmethod
    def of_unix(cls, host: str) -> Address:
        """The address of a unix socket as a configuration writes it."""
        place = host.removeprefix(UNIX_PREFIX)
        return cls(socket.AF_UNIX, "\0" + place[1:] if place.startswith("@") else place)


def is_numeric(host: str) -> bool:
    """Whether `host` is an address, of a network or of a unix socket, and not a name."""
    if host == "0" or host.startswith(UNIX_PREFIX):
        return True
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host.partition("%")[0])
        except (OSError, ValueError):
            continue
        return True
    return False


def client_address(sockaddr: SocketAddress | str | bytes) -> tuple[str, int]:
    """The client's address for the log: an IPv4-mapped address becomes an IPv4 address."""
    if isinstance(sockaddr, str | bytes):
        return UNIX_CLIENT, 0
    host, port = sockaddr[0], sockaddr[1]
    return (host[7:], port) if host.startswith("::ffff:") and "." in host else (host, port)


def host_and_port(host: str, port: int) -> str:
    """`host:port`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
