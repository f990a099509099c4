"""One HTTP/1.1 connection of the admin interface: requests in, responses out, everything bounded.

h11 parses; this module reads, writes and watches the clock. A client has `REQUEST_S` for each request, from its first
byte, and takes what is sent within `REQUEST_S`, too. Only an endless response (events) goes on without a deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qsl, unquote

import h11

from oinetd.admin.message import Peer, Refusal, Request, Response

__all__ = ["BODY_BYTES_MAX", "HEADER_BYTES_MAX", "REQUEST_S", "HttpConnection"]

HEADER_BYTES_MAX: Final = 8 << 10
TOO_LARGE: Final = f"the header is larger than {HEADER_BYTES_MAX} bytes"
BODY_BYTES_MAX: Final = 64 << 10
READ_BYTES: Final = 16 << 10
REQUEST_S: Final = 10.0
"""For one request to arrive, and for each part of its response to be taken."""

LINGER_S: Final = 1.0
"""How long a client that is refused before it has sent everything may go on sending: a reset would lose the answer."""

logger = logging.getLogger("oinetd")

Answer = Callable[[Request], Awaitable[Response]]


class HttpConnection:
    """Serves one client from `run` to the end. `busy` is whether a request is being answered."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: Peer, answer: Answer) -> None:
        self.busy = False
        self.peer = peer
        self._reader = reader
        self._writer = writer
        self._answer = answer
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEADER_BYTES_MAX)

    async def run(self) -> None:
        """Serve until the client goes, breaks a rule or the clock, or the task is cancelled."""
        try:
            while await self._one():
                self._http.start_next_cycle()
        except (TimeoutError, ConnectionError, h11.LocalProtocolError):
            pass  # it had its time, or has gone
        finally:
            self._writer.close()
            try:
                async with asyncio.timeout(LINGER_S):
                    await self._writer.wait_closed()
            except TimeoutError:
                self.abort()  # it does not read what is left for it
            except OSError:
                pass

    def abort(self) -> None:
        """Close it at once."""
        self._writer.transport.abort()

    async def _one(self) -> bool:
        """Serve one request; whether another one may follow."""
        try:
            async with asyncio.timeout(REQUEST_S):
                request = await self._request()
        except TimeoutError:
            if self._http.their_state is h11.IDLE and not self._http.trailing_data[0]:
                return False
            await self._refuse(Refusal(408, f"the request did not arrive within {REQUEST_S:g} s"))
            return False
        except h11.RemoteProtocolError as error:
            status = 431 if error.error_status_hint == 431 else 400
            await self._refuse(Refusal(status, TOO_LARGE if status == 431 else "this is not HTTP/1.1"))
            return False
        except Refusal as refusal:
            await self._refuse(refusal)
            return False
        if request is None:
            return False
        self.busy = True
        try:
            await self._send(await self._response(request), request.method == "HEAD")
        finally:
            self.busy = False
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    async def _response(self, request: Request) -> Response:
        try:
            return await self._answer(request)
        except Refusal as refusal:
            return refusal.response()
        except Exception:
            logger.exception("admin: %s %s failed: internal error", request.method, request.path)
            return Refusal(500, "internal error; the process log has it").response()

    async def _request(self) -> Request | None:
        """The next request with its body; None if the client has closed."""
        head = await self._event()
        if isinstance(head, h11.ConnectionClosed):
            return None
        assert isinstance(head, h11.Request)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
        if sum(len(name) + len(value) for name, value in headers.items()) + len(head.target) > HEADER_BYTES_MAX:
            raise Refusal(431, TOO_LARGE)
        length = headers.get("content-length", "0")
        if len(length) > 9 or int(length) > BODY_BYTES_MAX:
            raise Refusal(413, f"the body is larger than {BODY_BYTES_MAX} bytes")
        if self._http.they_are_waiting_for_100_continue:
            self._writer.write(self._http.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
        body = bytearray()
        while not isinstance(event := await self._event(), h11.EndOfMessage):
            if not isinstance(event, h11.Data):
                return None
            body += event.data
            if len(body) > BODY_BYTES_MAX:
                raise Refusal(413, f"the body is larger than {BODY_BYTES_MAX} bytes")
        path, _, query = head.target.decode("latin-1").partition("?")
        pairs = dict(parse_qsl(query, keep_blank_values=True, max_num_fields=64))
        return Request(head.method.decode("ascii"), unquote(path), pairs, headers, bytes(body), self.peer)

    async def _event(self) -> h11.Event:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._reader.read(READ_BYTES))
        assert not isinstance(event, type)
        return event

    async def _send(self, response: Response, head_only: bool) -> None:
        headers = [("content-type", response.content_type), ("x-content-type-options", "nosniff"), *response.headers]
        if isinstance(response.body, bytes):
            headers.append(("content-length", str(len(response.body))))
        else:
            headers.append(("transfer-encoding", "chunked"))
        await self._write(_head(response.status, headers))
        if isinstance(response.body, bytes):
            if response.body and not head_only:
                await self._write(h11.Data(data=response.body))
        elif not head_only:
            async with contextlib.aclosing(response.body) as parts:  # type: ignore[type-var]
                async for part in parts:
                    await self._write(h11.Data(data=part), endless=response.endless)
        await self._write(h11.EndOfMessage())

    async def _write(self, event: h11.Event, *, endless: bool = False) -> None:
        self._put(event)
        async with asyncio.timeout(None if endless else REQUEST_S):
            await self._writer.drain()

    def _put(self, event: h11.Event) -> None:
        if self._writer.is_closing():  # cut off meanwhile; uvloop raises RuntimeError for a write then
            raise ConnectionResetError
        self._writer.write(self._http.send(event) or b"")

    async def _refuse(self, refusal: Refusal) -> None:
        """Answer a request that was not read to its end, and close."""
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        response = refusal.response()
        assert isinstance(response.body, bytes)
        headers = [("content-type", response.content_type), ("content-length", str(len(response.body)))]
        for event in (
            _head(response.status, [*headers, ("connection", "close")]),
            h11.Data(data=response.body),
            h11.EndOfMessage(),
        ):
            self._put(event)
        async with asyncio.timeout(LINGER_S):
            await self._writer.drain()
            if self._writer.can_write_eof():
                self._writer.write_eof()
            while await self._reader.read(READ_BYTES):
                pass


def _head(status: int, headers: list[tuple[str, str]]) -> h11.Response:
    return h11.Response(status_code=status, headers=headers, reason=HTTPStatus(status).phrase)
