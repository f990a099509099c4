"""Servers of a group as tests start them: each counts its connections, and can be made to refuse or to say nothing."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

from oinetd import Config, Forwarder
from oinetd.config import parse_config
from tests.peers import free_port

__all__ = ["Backend", "backends", "configured", "forwarding_to", "refusing", "silent_listener"]


class Backend:
    """An echo server on 127.0.0.1; `accepted` counts, `live` are the writers of connections that are open."""

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self.accepted = 0
        self.live: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Listen, on the port of before if there was one."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuse connections; those that live are closed."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in tuple(self.live):
            writer.transport.abort()
        while self._tasks:
            await asyncio.wait(tuple(self._tasks))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.accepted += 1
        self.live.add(writer)
        try:
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(65536):
                    writer.write(data)
                    await writer.drain()
        finally:
            self.live.discard(writer)
            writer.transport.abort() if not self._server else writer.close()
            self._tasks.discard(task)

    @property
    def name(self) -> str:
        return f"127.0.0.1:{self.port}"


@contextlib.asynccontextmanager
async def backends(count: int) -> AsyncIterator[list[Backend]]:
    """Running servers."""
    servers = [Backend() for _ in range(count)]
    for server in servers:
        await server.start()
    try:
        yield servers
    finally:
        for server in servers:
            await server.stop()


def refusing() -> int:
    """A port where nobody listens."""
    return free_port()


@contextlib.asynccontextmanager
async def forwarding_to(
    lines: str, engine: str = "python", *, rule: str = "127.0.0.1 0 @web", **hooks: Callable[[Any], object]
) -> AsyncIterator[Forwarder]:
    """A forwarder whose rule has the group `web`; `lines` are those of the group, without the keyword and the name."""
    async with Forwarder(configured(lines, engine, rule=rule), **hooks) as forwarder:  # type: ignore[arg-type]
        yield forwarder


def configured(lines: str, engine: str = "python", *, rule: str = "127.0.0.1 0 @web") -> Config:
    """The configuration for `forwarding_to`."""
    text = "\n".join(f"upstream web {line}" for line in lines.splitlines() if line.strip())
    return parse_config(f"engine {engine}\n{rule}\n{text}\n")


def silent_listener() -> tuple[socket.socket, list[socket.socket]]:
    """A listener whose accept queue is full: connects to it get no answer. With the sockets that fill it."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=0)
    fillers = []
    for _ in range(3):
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(listener.getsockname())
        fillers.append(filler)
    return listener, fillers
