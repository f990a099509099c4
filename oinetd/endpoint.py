"""Endpoints, and positions in a configuration: the values below all others."""

from __future__ import annotations

from dataclasses import dataclass

from oinetd.enums import Protocol

__all__ = ["NOWHERE", "ORIGINAL", "UNIX_PREFIX", "Endpoint", "Origin", "SharedEndpoint"]


@dataclass(frozen=True, slots=True)
class Origin:
    """A position in a configuration; `line` counts from 1, and is 0 outside of a file."""

    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


NOWHERE = Origin()

UNIX_PREFIX = "unix:"
"""What the address of a unix socket begins with: `unix:/path`, or `unix:@name` in the abstract name space."""


ORIGINAL = "original"
"""In place of a destination's address and port: where the client was going before its packets were brought here."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address and a port, or a range of ports, as a rule names it; or a unix socket, whose port is 0.

    `host` is kept as written, because that is how the log prints it; `address` is the form the resolver takes.
    `last_port` is the end of a range, included; it equals `port` for a single one.
    """

    host: str
    port: int
    protocol: Protocol = Protocol.TCP
    last_port: int = -1

    def __post_init__(self) -> None:
        if self.last_port < 0:
            object.__setattr__(self, "last_port", self.port)
        if not (0 <= self.port <= self.last_port <= 65535):
            raise ValueError(f"ports {self.port}-{self.last_port} are not a range within 0-65535")

    @property
    def address(self) -> str:
        """`host` without the brackets of an IPv6 address."""
        if self.host.startswith("[") and self.host.endswith("]"):
            return self.host[1:-1]
        return self.host

    @property
    def is_unix(self) -> bool:
        """Whether it is a unix socket."""
        return self.host.startswith(UNIX_PREFIX)

    @property
    def is_original(self) -> bool:
        """Whether it stands, as a destination, for the address that each client wanted."""
        return self.host == ORIGINAL and not self.last_port

    @property
    def ports(self) -> range:
        return range(self.port, self.last_port + 1)

    @property
    def span(self) -> str:
        """The port or the range, as text."""
        return str(self.port) if self.last_port == self.port else f"{self.port}-{self.last_port}"

    def shared_by(self, *names: tuple[str, ...] | None) -> Endpoint:
        """This endpoint for one of the rules that share it, by what they differ in; itself if that is nothing."""
        if not any(names):
            return self
        return SharedEndpoint(self.host, self.port, self.protocol, self.last_port, names)

    def at(self, port: int) -> Endpoint:
        """This endpoint with one port."""
        return Endpoint(self.host, port, self.protocol)

    def __str__(self) -> str:
        if self.is_unix or self.is_original or (self.host.startswith("@") and not self.port):
            return self.host
        return f"{self.host} {self.span}" + ("/udp" if self.protocol is Protocol.UDP else "")


@dataclass(frozen=True, slots=True)
class SharedEndpoint(Endpoint):
    """An endpoint at which several rules listen, and what one of them differs in."""

    names: tuple[tuple[str, ...] | None, ...] = ()
