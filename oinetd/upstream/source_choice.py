"""Which source a line of a group has: one server, the addresses of a name, SRV records, or a file."""

from __future__ import annotations

from typing import NamedTuple

from oinetd.servers import GroupOptions, Resolve, Server
from oinetd.upstream.destination import Destination
from oinetd.upstream.server_file import FileSource, ReadServers
from oinetd.upstream.sources import EachAddress, Found, OneServer, Source
from oinetd.upstream.srv import ServiceSource

__all__ = ["Means", "source_of"]


class Means(NamedTuple):
    """What a source works with: the addresses of the host of its line, if it has one; its own local address; how often
    names are resolved again; what an earlier configuration found for the same line; and who reads files."""

    destination: Destination | None
    source: Destination | None
    refresh_s: float
    known: list[Found]
    read: ReadServers


def source_of(server: Server, options: GroupOptions, means: Means) -> Source:
    """The source for a line."""
    if server.is_file:
        return FileSource(server, options, means.source, means.refresh_s, means.known, means.read)
    if means.destination is None:
        return ServiceSource(server, options, means.source, means.refresh_s, means.known)
    if (server.resolve or options.resolve) is Resolve.EACH and not server.endpoint.is_unix:
        return EachAddress(server, means.destination, means.source)
    return OneServer(server, means.destination, means.source)
