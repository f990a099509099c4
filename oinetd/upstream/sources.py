"""Where the servers of a group come from: a line of the configuration is one server, or stands for several."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, Protocol

from oinetd.model import Endpoint
from oinetd.servers import Server
from oinetd.upstream.destination import Destination

__all__ = ["EachAddress", "Found", "OneServer", "Source"]


class Found(NamedTuple):
    """A server, the destination that has its addresses, and its own source address if it has one."""

    server: Server
    destination: Destination
    source: Destination | None = None


class Source(Protocol):
    """A line of the configuration."""

    async def prepare(self) -> None:
        """Find the servers. Raises `ConfigError`."""
        ...

    def servers(self) -> list[Found]:
        """The servers of this moment."""
        ...

    def start(self, on_change: Callable[[], object]) -> None:
        """Call `on_change` from now on when `servers` has another answer."""
        ...

    def stop(self) -> None:
        """Call nobody any more."""
        ...


class OneServer:
    """A server with a name; its addresses are used in turn."""

    def __init__(self, server: Server, destination: Destination, source: Destination | None) -> None:
        self._found = [Found(server, destination, source)]

    async def prepare(self) -> None:
        """Nothing to do."""

    def servers(self) -> list[Found]:
        return self._found

    def start(self, on_change: Callable[[], object]) -> None:
        """Nothing changes."""

    def stop(self) -> None:
        """Nothing to do."""


class EachAddress:
    """Each address of a name is a server."""

    def __init__(self, server: Server, destination: Destination, source: Destination | None) -> None:
        self._server = server
        self._destination = destination
        self._source = source
        self._known: dict[str, Found] = {}

    async def prepare(self) -> None:
        """Nothing to do: the name is resolved like all others."""

    def servers(self) -> list[Found]:
        before, self._known = self._known, {}
        endpoint = self._server.endpoint
        for address in self._destination.at(0):
            found = before.get(address.host)
            if found is None:
                where = Endpoint(address.host, endpoint.port, endpoint.protocol, endpoint.last_port)
                server = dataclasses.replace(self._server, endpoint=where, resolve=None)
                found = Found(server, Destination(address.host, 0.0, (address,)), self._source)
            self._known[address.host] = found
        return list(self._known.values())

    def start(self, on_change: Callable[[], object]) -> None:
        self._destination.followers[self] = on_change

    def stop(self) -> None:
        self._destination.followers.pop(self, None)
