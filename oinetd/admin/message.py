"""A request and a response of the admin interface, without the connection that carries them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = ["Peer", "Refusal", "Request", "Response", "as_json", "document"]

TITLES: Final = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    409: "Conflict",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    422: "Unprocessable Content",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


@dataclass(frozen=True, slots=True)
class Peer:
    """Who sent a request: `uid` and `pid` on a unix socket (-1 over TCP), `host` over TCP."""

    uid: int = -1
    pid: int = -1
    host: str = ""

    def __str__(self) -> str:
        return self.host or f"uid {self.uid}, pid {self.pid}"


@dataclass(frozen=True, slots=True)
class Request:
    """One request; header names are lower case. `values` are the parts of the path that its route names."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    peer: Peer
    values: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Response:
    """An answer; a `body` that is an iterator is sent in chunks, and an `endless` one has no deadline."""

    body: bytes | AsyncIterator[bytes] = b""
    status: int = 200
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    endless: bool = False


class Refusal(Exception):
    """A request that is not answered as it wished: an `application/problem+json`. `more` are further members."""

    def __init__(self, status: int, detail: str, *, headers: tuple[tuple[str, str], ...] = (), **more: Any) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers
        self.more = more

    def response(self) -> Response:
        """The answer."""
        problem = {"type": "about:blank", "title": TITLES[self.status], "status": self.status, "detail": self.detail}
        return Response(as_json({**problem, **self.more}), self.status, "application/problem+json", self.headers)


def as_json(value: object) -> bytes:
    """`value` as one line of ASCII: no character of a name has an effect on a terminal."""
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def document(value: object) -> Response:
    """An answer that is one JSON value."""
    return Response(as_json(value), headers=(("cache-control", "no-store"),))
