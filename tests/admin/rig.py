"""The admin interface beside a forwarder, in this process, and a client that says what it likes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oinetd import Forwarder, parse_config
from oinetd.admin.instance import READY, Instance
from oinetd.admin.server import AdminServer

PATIENCE_S = 30.0


@dataclass
class Admin:
    """What a test has in hand."""

    server: AdminServer
    instance: Instance
    forwarder: Forwarder
    path: str
    reloads: list[Exception | None]

    @property
    def tcp(self) -> tuple[str, int]:
        """Where the first TCP listener is."""
        for each in self.server._open:
            if not each.path:
                host, port = each.sock.getsockname()[:2]
                return host, port
        raise AssertionError("no TCP listener")

    async def connect(self, *, tcp: bool = False) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if tcp:
            return await asyncio.open_connection(*self.tcp)
        return await asyncio.open_unix_connection(self.path)

    async def raw(self, data: bytes, *, tcp: bool = False, end: bool = False) -> bytes:
        """All that is answered to `data`, up to the end of the connection."""
        reader, writer = await self.connect(tcp=tcp)
        try:
            writer.write(data)
            if end:
                writer.write_eof()
            async with asyncio.timeout(PATIENCE_S):
                with contextlib.suppress(ConnectionError):
                    return await reader.read()
            return b""
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def ask(
        self, method: str, path: str, body: bytes = b"", *, tcp: bool = False, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, header and body of one request."""
        lines = {"host": "localhost", "connection": "close", "content-length": str(len(body))}
        if method == "POST":
            lines["content-type"] = "application/json"
        lines.update({name.replace("_", "-"): value for name, value in headers.items()})
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value)
        got = await self.raw(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body, tcp=tcp)
        return parsed(got)

    async def json(self, path: str, method: str = "GET", **more: Any) -> tuple[int, Any]:
        """Status and value of one request."""
        status, _, body = await self.ask(method, path, **more)
        return status, json.loads(body)


def parsed(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, header and body of an answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        whole = b""
        while body:
            size, _, body = body.partition(b"\r\n")
            whole += body[: int(size, 16)]
            body = body[int(size, 16) + 2 :]
        body = whole
    return int(first.split()[1]), headers, body


@contextlib.asynccontextmanager
async def administered(folder: Path, text: str, *, name: str = "test", **users: Any) -> AsyncIterator[Admin]:
    """A forwarder of the configuration `text` with its admin interface."""
    config = parse_config(text)
    run = folder / "run"
    server = AdminServer(name, {"RUNTIME_DIRECTORY": str(run)})
    forwarder = Forwarder(config)
    reloads: list[Exception | None] = []

    async def reload() -> None:
        if reloads and (error := reloads.pop(0)) is not None:
            raise error

    owners = frozenset({0, os.geteuid()})
    instance = Instance(name, forwarder, reload, **{"owners": owners, "users": owners, **users})
    server.open(config.admin)
    try:
        server.start(instance)
        async with forwarder:
            server.started()
            instance.state = READY
            yield Admin(server, instance, forwarder, next(iter(server.paths), ""), reloads)
    finally:
        await server.close()
