"""The preamble stage of the Python lane: what a client sends first is read before the client is admitted.

First the header of the PROXY protocol, which is taken out of the socket; then the TLS hello, which stays there.
"""

from __future__ import annotations

import asyncio
import errno
import math
import socket
import time
from collections.abc import Callable, Coroutine
from typing import TypeVar

from oinetd.core.preamble import Preamble
from oinetd.core.record import Ending, alpn_text
from oinetd.core.registry import Live
from oinetd.core.service import Service
from oinetd.core.sharing import choose_rule
from oinetd.lanes.python.client_watch import ClientWatch
from oinetd.lanes.python.peek import Found, Peek
from oinetd.model import AcceptProxy
from oinetd.net.sockets import client_address
from oinetd.preamble import proxy_protocol, tls_hello
from oinetd.preamble.progress import Invalid, NeedMore
from oinetd.preamble.proxy_protocol import HEADER_BYTES_MAX, Header
from oinetd.preamble.tls_hello import HELLO_WIRE_BYTES_MAX, Hello

__all__ = ["PreambleStage"]

_T = TypeVar("_T")


class PreambleStage:
    """Reads the preamble of one session: its record then names the client of the header, and what the hello wants.

    From the beginning to `leave` the session counts as one whose preamble is being read. The peer is counted where its
    source is bounded until the header is there; after that the client is. `header` is None if the client is the peer
    itself, which sends none. `peer` is for access rules. `service` is that of the rule that the hello chose, of those
    that are in force when the preamble is complete.
    """

    __slots__ = (
        "_client", "_connected", "_in_force", "_inside", "_live", "_preamble", "errno", "header", "peer", "service",
    )  # fmt: skip

    def __init__(
        self,
        service: Service,
        preamble: Preamble,
        live: Live,
        client: socket.socket,
        peer: str,
        in_force: Callable[[], Service],
    ) -> None:
        self.service = service
        self._in_force = in_force
        self._preamble = preamble
        self._live = live
        self._client = client
        self.peer = peer
        self.header: Header | None = None
        self.errno = 0
        self._connected = ""  # the peer, if it has to send a header
        self._inside = True
        service.registry.gate.enter_preamble()

    def leave(self) -> None:
        """The stage is over; a second call does nothing."""
        if self._inside:
            self._inside = False
            self.service.registry.gate.leave_preamble()

    async def read(self) -> Ending | None:
        """Why the connection ends here; None if it goes on."""
        is_unix = self._client.family == socket.AF_UNIX
        refusal, headed = self._preamble.judge(self.peer, is_unix)
        if refusal is None and headed:
            self._connected = self.peer
            refusal = await self._counted(self._read_header) or self._renew()
        if refusal is not None or self.service.names is None:
            return refusal
        if not is_unix and (refusal := self._preamble.everybody.decide(self.peer)) is not None:
            return refusal
        deadline = time.monotonic() + self._preamble.peek_timeout_s if self._preamble.peek_timeout_s else math.inf
        found = await self._counted(self._read_hello)
        if isinstance(found, Ending):
            return found
        assert found is not None
        if (refusal := self._renew()) is not None or self.service.names is None:
            return refusal
        return self._choose(found) or await self._wait_for_turns(found, deadline)

    def _renew(self) -> Ending | None:
        """Go by what is in force now: a reload may have changed it while something was awaited."""
        service = self._in_force()
        return None if service is self.service else self._go_by(service, service.preamble)

    def _go_by(self, service: Service, preamble: Preamble | None) -> Ending | None:
        """Be served by `service` from now on, and judged by the `preamble` that is in force; why not, if not."""
        live, self.service = self._live, service
        live.record.route = service.route
        if live.rule is not service.rule and not choose_rule(service.registry, live, service.rule):
            return Ending.LIMITED
        if preamble is not None:
            self._preamble = preamble
            if self._connected and preamble.accept is not AcceptProxy.OFF:
                return preamble.judge(self._connected, self._client.family == socket.AF_UNIX)[0]
        return None

    async def _counted(self, read: Callable[[], Coroutine[None, None, _T]]) -> _T | Ending:
        """Read something while the source is counted as it is known now."""
        registry = self.service.registry
        if not registry.admit_source(self._live):
            return Ending.LIMITED
        try:
            return await read()
        finally:
            registry.dismiss_source(self._live)
            if self.header is not None and not self._live.record.peer:
                self._introduce(self.header)

    async def _peek(
        self, parse: Callable[[bytes], NeedMore | Found], bytes_max: int, timeout_s: float, late: Ending
    ) -> Found | Ending:
        deadline = asyncio.get_running_loop().time() + timeout_s if timeout_s else 0.0
        peek = Peek(self.service.dialer.poller, self._client, parse, bytes_max, deadline, late)
        found, self.errno = await peek.run()
        return found

    async def _read_header(self) -> Ending | None:
        found = await self._peek(proxy_protocol.feed, HEADER_BYTES_MAX, self._preamble.timeout_s, Ending.PROXY_TIMEOUT)
        if isinstance(found, Ending):
            return found
        if isinstance(found, Invalid):
            self._tell("an invalid PROXY header", found)
            return Ending.BAD_PROXY_HEADER
        assert isinstance(found, Header)
        return self._take(found)

    def _take(self, header: Header) -> Ending | None:
        """Take the header out of the socket: what would be left of it is not for the server."""
        try:
            taken, self.errno = len(self._client.recv(header.length)), errno.ECONNRESET
        except OSError as error:
            taken, self.errno = 0, error.errno or errno.ECONNRESET
        if taken != header.length:
            return Ending.CLIENT_RESET if self.errno == errno.ECONNRESET else Ending.SOCKET_FAILED
        self.header, self.errno = header, 0
        return None

    def _introduce(self, header: Header) -> None:
        """From now on the client is the one in the header."""
        record = self._live.record
        record.peer, record.peer_port = record.client, record.client_port
        if header.source is not None:
            self.peer = header.source.host
            record.client, record.client_port = client_address(header.source)

    async def _read_hello(self) -> Hello | Ending:
        record = self._live.record
        found = await self._peek(
            tls_hello.HelloReader().feed, HELLO_WIRE_BYTES_MAX, self._preamble.peek_timeout_s, Ending.PEEK_TIMEOUT
        )
        if isinstance(found, Ending):
            return found
        if isinstance(found, Invalid):
            self._tell("a broken TLS hello", found)
            return Ending.BAD_TLS_HELLO
        assert isinstance(found, Hello)
        record.server_name = found.server_name
        record.alpn = alpn_text(found.protocols)
        return found

    def _choose(self, found: Hello) -> Ending | None:
        """Let the client's hello choose the rule that serves it."""
        assert self.service.names is not None
        service = self.service.names.choose(found.server_name, found.protocols)
        if service is None:
            return Ending.NO_SNI_RULE
        return self._go_by(service, None)

    async def _wait_for_turns(self, found: Hello, deadline: float) -> Ending | None:
        """Wait for the turn by the rate of the rule, and then go on by what is in force for the hello.

        If that is another rule, it is that one's rate that counts.
        """
        while turn := self._live.rule.buckets.turn():
            rule = self._live.rule
            if turn > deadline:
                rule.buckets.connect_given_back()
                return Ending.LIMITED
            refusal = await self._wait_until(turn) or self._choose_again(found)
            if refusal is not None or self._live.rule is rule or self._in_force().names is None:
                return refusal
        return None

    async def _wait_until(self, turn: float) -> Ending | None:
        """Wait for the turn of a client that has said what is awaited: its place is one of its rule meanwhile."""
        self.leave()
        loop = asyncio.get_running_loop()
        gone = loop.create_future()
        watch = ClientWatch(loop, self.service.dialer.poller, self._client, lambda: gone.set_result(None))
        try:
            await asyncio.wait([gone], timeout=turn - time.monotonic())
            if gone.done():
                self.errno = errno.ECONNRESET
                return Ending.CLIENT_RESET
        finally:
            watch.close()
            gone.cancel()
        return None

    def _choose_again(self, found: Hello) -> Ending | None:
        """Go by what is in force now for the hello."""
        in_force = self._in_force()
        names = in_force.names
        service = in_force if names is None else names.choose(found.server_name, found.protocols)
        if service is None:
            return Ending.NO_SNI_RULE
        return None if service is self.service else self._go_by(service, in_force.preamble)

    def _tell(self, what: str, found: Invalid) -> None:
        route, client = self.service.route, self._live.record.client
        self.service.registry.invalid_preambles.tell(route, client, what, str(found))
