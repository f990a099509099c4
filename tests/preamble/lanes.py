"""The ways in which a rule is served, and servers that look at what comes first."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from oinetd import Forwarder, Rule, SessionRecord
from oinetd.lanes.native.plane import available
from oinetd.preamble.progress import NeedMore
from oinetd.preamble.proxy_protocol import Header, feed
from tests.forwarding import forwarding
from tests.peers import Peer, server

LANES = ["native", "python", "handed-over"]
"""`handed-over`: with an `admit` hook the Python lane connects, and the native engine relays."""

DATA_SEGMENTS_IN = 152
"""Where the kernel's `tcp_info` has the number of segments with bytes that came."""


async def _anybody(record: SessionRecord) -> bool:
    return True


def lane_options(lane: str) -> str:
    """The option that chooses the lane."""
    if lane != "python" and (reason := available()):
        pytest.skip(reason)
    return "engine=python" if lane == "python" else "engine=auto"


def served(lane: str, *rules: Rule, **config: Any) -> contextlib.AbstractAsyncContextManager[Forwarder]:
    """A forwarder whose rules are served in this way."""
    return forwarding(*rules, admit=_anybody if lane == "handed-over" else None, **config)


@dataclass
class Taken:
    """A connection that a server took: its header, the bytes behind it so far, and the segments they came in."""

    header: Header | None
    data: bytes
    segments: int
    peer: Peer


@dataclass
class Server:
    """Reads a header of each connection, then what `wanted` says, and answers `answer`."""

    wanted: int = 0
    answer: bytes = b""
    headed: bool = True
    taken: asyncio.Queue[Taken] = field(default_factory=asyncio.Queue)
    address: tuple[str, int] = ("", 0)

    async def handle(self, peer: Peer) -> None:
        loop = asyncio.get_running_loop()
        data = b""
        header: Header | None = None
        with contextlib.suppress(ConnectionError):
            while self.headed:
                found = feed(data)
                if isinstance(found, Header):
                    header, data = found, data[found.length :]
                    break
                assert isinstance(found, NeedMore), found
                more = await loop.sock_recv(peer.sock, 65536)
                assert more, "the end of the connection within a header"
                data += more
            while len(data) < self.wanted and (more := await loop.sock_recv(peer.sock, 65536)):
                data += more
            info = peer.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
            segments = int.from_bytes(info[DATA_SEGMENTS_IN:][:4], "little")
            self.taken.put_nowait(Taken(header, data, segments, peer))
            if self.answer:
                await peer.send(self.answer)
            while await loop.sock_recv(peer.sock, 65536):
                pass


@contextlib.asynccontextmanager
async def looking(
    wanted: int = 0, answer: bytes = b"", *, headed: bool = True, family: int = socket.AF_INET
) -> AsyncIterator[Server]:
    """A server that expects a header, unless it is not `headed`."""
    found = Server(wanted, answer, headed)
    async with server(found.handle, family=family) as found.address:
        yield found


def in_lanes(test: Callable[..., Any]) -> Callable[..., Any]:
    """Run a test in every lane; it has a parameter `lane`."""
    return pytest.mark.parametrize("lane", LANES)(test)
