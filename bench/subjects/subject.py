"""The contract of a subject: a name, the programs that make it up, and where clients reach it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.topology import Topology

__all__ = ["Route", "Setup", "Subject", "size_text"]


@dataclass(frozen=True, slots=True)
class Route:
    """One forwarding: from where a forwarder listens to where the server does."""

    listen_host: str
    listen_port: int
    connect_host: str
    connect_port: int

    @property
    def listen(self) -> str:
        return f"{self.listen_host}:{self.listen_port}"

    @property
    def connect(self) -> str:
        return f"{self.connect_host}:{self.connect_port}"


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
