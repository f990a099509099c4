"""The contract of a subject: a name, the programs that make it up, and where clients reach it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.topology import Topology

__all__ = ["Destination", "Route", "Setup", "Subject", "size_text"]


@dataclass(frozen=True, slots=True)
class Destination:
    """A server that is reached otherwise than plainly: see `bench.ways`.

    `path` is its unix socket, in place of a port. With `from_unix` a forwarder listens on one.
    """

    port: int
    way: str
    path: str = ""
    from_unix: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """One forwarding: from where a forwarder listens to where the server does.

    A host may be `unix:PATH`, without a port. `way` is a name of `bench.ways`.
    """

    listen_host: str
    listen_port: int
    connect_host: str
    connect_port: int
    way: str = "plain"

    @property
    def listen(self) -> str:
        return f"{self.listen_host}:{self.listen_port}" if self.listen_port else self.listen_host

    @property
    def connect(self) -> str:
        return f"{self.connect_host}:{self.connect_port}" if self.connect_port else self.connect_host


@dataclass(frozen=True, slots=True)
class Setup:
    """What a subject is started with: `threads` 0 leaves the number to the subject, which takes one for each core."""

    topology: Topology
    routes: tuple[Route, ...]
    directory: Path
    """For configuration files; the subject's own, and removed afterwards."""
    threads: int = 0


class Subject:
    """A forwarder to be measured. `name` is unique; `family` is one of oinetd, peer, reference, floor, custom.

    `base` is the name without a buffer size, `buffer_bytes` that size where the subject has one, `version` what the
    program tells of itself. `note` stands under tables. `protocol` is what it listens for, `tcp` or `udp`.
    """

    name: str
    family: str
    base: str
    buffer_bytes: int | None = None
    note: str = ""
    protocol: str = "tcp"
    grouped: bool = False
    """Whether it has one place to listen on, and all servers behind that."""
    ways: bool = False
    """Whether its routes can be any of `bench.ways`."""

    def unavailable(self, topology: Topology) -> str | None:
        """Why it cannot run here, with the remedy; None if it can."""
        raise NotImplementedError

    def version(self) -> str:
        return ""

    def commands(self, setup: Setup) -> list[list[str]]:
        """The programs to start, after writing what they read."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return {}

    def open(self, setup: Setup) -> None:
        """What is to be done besides programs, before they start."""

    def close(self, setup: Setup) -> None:
        """Undo `open`."""

    def target(self, route: Route) -> tuple[str, int]:
        """Where a client connects."""
        return route.listen_host, route.listen_port


def size_text(count: int) -> str:
    """16384 as `16K`."""
    for unit, bytes_each in (("M", 1 << 20), ("K", 1 << 10)):
        if count >= bytes_each and count % bytes_each == 0:
            return f"{count // bytes_each}{unit}"
    return str(count)
