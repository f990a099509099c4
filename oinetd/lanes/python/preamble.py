"""The preamble stage of the Python lane: the PROXY header of a client is read before the client is admitted."""

from __future__ import annotations

import asyncio
import socket

from oinetd.core.preamble import Preamble
from oinetd.core.record import Ending
from oinetd.core.registry import Live
from oinetd.core.service import Service
from oinetd.lanes.python.peek import Peek
from oinetd.net.sockets import client_address
from oinetd.preamble.progress import Invalid
from oinetd.preamble.proxy_protocol import HEADER_BYTES_MAX, Header, feed

__all__ = ["PreambleStage"]


class PreambleStage:
    """Reads the preamble of one session: its record then names the client of the header, and the peer.

    From the beginning to `leave` the session counts as one whose preamble is being read.

    The peer is counted where its source is bounded until the header is there; after that the client is.
    `header` is None if the client is the peer itself, which sends none. `peer` is for access rules.
    """

    __slots__ = ("_client", "_inside", "_live", "_preamble", "_service", "errno", "header", "peer")

    def __init__(self, service: Service, preamble: Preamble, live: Live, client: socket.socket, peer: str) -> None:
        self._service = service
        self._preamble = preamble
        self._live = live
        self._client = client
        self.peer = peer
        self.header: Header | None = None
        self.errno = 0
        self._inside = True
        service.registry.gate.enter_preamble()

    def leave(self) -> None:
        """The stage is over; a second call does nothing."""
        if self._inside:
            self._inside = False
            self._service.registry.gate.leave_preamble()

    async def read(self) -> Ending | None:
        """Why the connection ends here; None if it goes on."""
        refusal, headed = self._preamble.judge(self.peer, self._client.family == socket.AF_UNIX)
        if refusal is not None or not headed:
            return refusal
        registry = self._service.registry
        if not registry.admit_source(self._live):
            return Ending.LIMITED
        try:
            return await self._read_header()
        finally:
            registry.dismiss_source(self._live)
            if self.header is not None:
                self._introduce(self.header)

    async def _read_header(self) -> Ending | None:
        loop, timeout_s = asyncio.get_running_loop(), self._preamble.timeout_s
        deadline = loop.time() + timeout_s if timeout_s else 0.0
        poller = self._service.dialer.poller
        peek = Peek(poller, self._client, feed, HEADER_BYTES_MAX, deadline, Ending.PROXY_TIMEOUT)
        found, self.errno = await peek.run()
        if isinstance(found, Ending):
            return found
        if isinstance(found, Invalid):
            what = f"an invalid PROXY header ({found})"
            self._service.registry.invalid_preambles.tell(self._service.route, self._live.record.client, what)
            return Ending.BAD_PROXY_HEADER
        assert isinstance(found, Header)
        self._client.recv(found.length)
        self.header = found
        return None

    def _introduce(self, header: Header) -> None:
        """From now on the client is the one in the header."""
        record = self._live.record
        record.peer, record.peer_port = record.client, record.client_port
        if header.source is not None:
            self.peer = header.source.host
            record.client, record.client_port = client_address(header.source)
