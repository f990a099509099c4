"""Servers from a file, one a line, with options. The file is watched; one with a mistake changes nothing."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import TypeAlias

from oinetd.enums import Protocol
from oinetd.errors import ConfigError
from oinetd.file_state import FileSource as Watched
from oinetd.file_state import look
from oinetd.model import Origin
from oinetd.net.file_watch import FileWatch
from oinetd.net.sockets import is_numeric
from oinetd.servers import FILE_PREFIX, GroupOptions, Server
from oinetd.upstream.destination import Destination
from oinetd.upstream.sources import Found
from oinetd.upstream.special import is_special

__all__ = ["FileSource", "ReadServers"]

log = logging.getLogger("oinetd")

_OPTIONS = ("weight", "backup", "max_connections", "source", "check_port", "connect_timeout_s", "send_proxy")

ReadServers: TypeAlias = "Callable[[str, Origin, Protocol], Sequence[Server]]"
"""Reads the servers of a file that a line of the configuration names, and that are reached over this protocol. Raises
`ConfigError`."""


class FileSource:
    """A line with `file:/path`; `known` are the servers that an earlier configuration found in it."""

    def __init__(
        self,
        server: Server,
        options: GroupOptions,
        source: Destination | None,
        refresh_s: float,
        known: list[Found],
        read: ReadServers,
    ) -> None:
        self._server = server
        self._path = server.endpoint.host.removeprefix(FILE_PREFIX)
        self._options = options
        self._source = source
        self._refresh_s = refresh_s
        self._read = read
        self._found = known
        self._state = look(self._path)
        self._watch: FileWatch | None = None
        self._on_change: Callable[[], object] | None = None
        self._task: asyncio.Task[None] | None = None

    async def prepare(self) -> None:
        self._found = await self._load()

    def servers(self) -> list[Found]:
        return self._found

    def start(self, on_change: Callable[[], object]) -> None:
        self._on_change = on_change
        self._watch = FileWatch(asyncio.get_running_loop(), self._changed)
        self._watch.watch((Watched(self._path, self._state),))
        self._follow_names()

    def stop(self) -> None:
        self._on_change = None
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if self._task is not None:
            self._task.cancel()
            self._task = None
        for found in self._found:
            found.destination.followers.pop(self, None)

    def _follow_names(self) -> None:
        """Have the names in the file resolved again and again."""
        for found in self._found:
            if not is_numeric(found.destination.host):
                found.destination.followers[self] = self._tell
                found.destination.start()

    def _tell(self) -> None:
        if self._on_change is not None:
            self._on_change()

    def _changed(self) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._update())

    async def _update(self) -> None:
        """Read the file until it is as it was read: it may change while its names are resolved."""
        try:
            await self._read_again()
            while look(self._path) != self._state:
                await self._read_again()
        finally:
            self._task = None

    async def _read_again(self) -> None:
        before = self._found
        try:
            self._found = await self._load()
        except ConfigError as error:
            for problem in error.problems:
                log.warning("%s", problem)
            log.warning("%s: the servers stay as they were", self._path)
            return
        log.info("%s: %d servers", self._path, len(self._found))
        left = {id(found.destination) for found in self._found}
        for found in before:
            if id(found.destination) not in left:
                found.destination.followers.pop(self, None)
                found.destination.stop()
        self._follow_names()
        self._tell()

    async def _load(self) -> list[Found]:
        """The servers of the file. Raises `ConfigError`."""
        self._state = look(self._path)
        known = {(found.server.endpoint, found.destination.host): found.destination for found in self._found}
        found = []
        for read in self._read(self._path, self._server.origin, self._server.endpoint.protocol):
            server = _with_defaults(read, self._server)
            host = server.endpoint.address
            if (
                is_numeric(host)
                and not server.endpoint.is_unix
                and not self._options.allow_special
                and is_special(host)
            ):
                log.warning(
                    "%s: left out %s, a special address; allow-special would let it be used", self._path, server
                )
                continue
            destination = known.get((server.endpoint, host))
            if destination is None:
                destination = Destination(host, self._refresh_s, special=self._options.allow_special)
                await destination.resolve(server.origin, "server", 1.0)
            found.append(Found(server, destination, self._source))
        return found


def _with_defaults(server: Server, line: Server) -> Server:
    """A server of the file: what it does not say, the options of the line that names the file do."""
    plain = Server(server.endpoint)
    said = {name: getattr(line, name) for name in _OPTIONS if getattr(server, name) == getattr(plain, name)}
    return dataclasses.replace(server, **said)
