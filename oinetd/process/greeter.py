"""The upstream of `oinetd demo`: a page for an HTTP client, an echo for any other."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import Final

__all__ = ["Greeter"]

METHODS: Final = (b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"OPTIONS ", b"PATCH ")
HEAD_BYTES_MAX: Final = 64 * 1024
"""Of a request; a client that sends more is disconnected."""
PIECE_BYTES: Final = 64 * 1024

HEAD_END: Final = re.compile(rb"\r?\n\r?\n")
"""Also without carriage returns, as a person types it into nc."""

PAGE: Final = """\
It works.

Your client connected to oinetd on {front}.
oinetd forwarded the request to a small service on {back}, which made this page.

    {request}
    number {number} on this connection, with a body of {body_bytes} bytes
"""


class Greeter:
    """Listens on a free port of `host`. `front` is the address that clients connect to, for the page."""

    def __init__(self) -> None:
        self.front = ""
        self.host = ""
        self.port = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, host: str) -> None:
        self._server = await asyncio.start_server(self._accept, host, 0, limit=PIECE_BYTES)
        self.host, self.port = self._server.sockets[0].getsockname()[:2]

    async def stop(self) -> None:
        """Stop listening, and close every connection."""
        self._server.close()
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            # A client may disconnect at any moment.
            with contextlib.suppress(ConnectionError):
                await self._talk(reader, writer)
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        read = bytearray(await reader.read(PIECE_BYTES))
        # Bounded by the length of the longest method.
        while read and any(len(read) < len(method) and method.startswith(read) for method in METHODS):
            piece = await reader.read(PIECE_BYTES)
            if not piece:
                break
            read += piece
        if read.startswith(METHODS):
            await self._answer(read, reader, writer)
            return
        while read:
            writer.write(bytes(read))
            await writer.drain()
            read = bytearray(await reader.read(PIECE_BYTES))

    async def _answer(self, read: bytearray, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer requests as long as the client keeps the connection; `read` is what was received so far."""
        number = 0
        kept = True
        while kept:
            while (end := HEAD_END.search(read)) is None:
                piece = await reader.read(PIECE_BYTES)
                if not piece or len(read) > HEAD_BYTES_MAX:
                    return
                read += piece
            request, *lines = bytes(read[: end.start()]).decode("latin-1").splitlines()
            del read[: end.end()]
            fields = {
                name.strip().lower(): value.strip().lower() for name, _, value in (x.partition(":") for x in lines)
            }
            number += 1
            kept = fields.get("connection", "") == "keep-alive" or (
                request.endswith("HTTP/1.1") and fields.get("connection", "") != "close"
            )
            if "transfer-encoding" in fields:
                kept = False  # The body is not parsed.
            if fields.get("expect") == "100-continue":
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            length = fields.get("content-length", "")
            body_bytes = int(length) if length.isdecimal() else 0
            if not await _skip(body_bytes, read, reader):
                return
            writer.write(self._page(request, number, body_bytes, kept))
            await writer.drain()

    def _page(self, request: str, number: int, body_bytes: int, kept: bool) -> bytes:
        page = PAGE.format(
            front=self.front, back=f"{self.host}:{self.port}", request=request, number=number, body_bytes=body_bytes
        ).encode()
        head = (
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\n"
            f"Content-Length: {len(page)}\r\nConnection: {'keep-alive' if kept else 'close'}\r\n\r\n"
        )
        return head.encode() + (b"" if request.startswith("HEAD ") else page)


async def _skip(count: int, read: bytearray, reader: asyncio.StreamReader) -> bool:
    """Skip `count` bytes, first those in `read`; False if the client disconnected before."""
    left = count - len(read)
    del read[:count]
    while left > 0:
        piece = await reader.read(min(left, PIECE_BYTES))
        if not piece:
            return False
        left -= len(piece)
    return True
