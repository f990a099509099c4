"""The upstream leg: all addresses of the destination in turn, the source address, and the deadline of each."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from dataclasses import dataclass

from oinetd.connect_result import connect_result
from oinetd.destination import Destination
from oinetd.loops import LOOP_ERRNO, LoopGuard
from oinetd.model import Settings
from oinetd.poller import ERROR, Poller
from oinetd.record import Ending
from oinetd.sockets import SHORTAGE, Address, bind_source, close_with_reset, is_connected_to_itself, open_upstream

__all__ = ["SHORT_MAX_S", "Dialed", "Dialer", "wait_for_names"]

PATIENCE_S = 0.1
"""How long a connect may take before the client is watched too: the usual one is over by then and pays nothing."""
SHORT_MAX_S = 10.0
"""The longest wait for a descriptor where there is no connect timeout."""

_IN_PROGRESS = (errno.EINPROGRESS, errno.EALREADY)


@dataclass(frozen=True, slots=True)
class Dialed:
    """What came of it: the connected `upstream` and the address that took it, or how it `failed` and the errno.

    `Ending.UPSTREAM_RESET` is an upstream that took the connection and reset it without a word.
    """

    upstream: socket.socket | None
    address: Address | None
    failed: Ending | None = None
    errno: int = 0


async def wait_for_names(
    poller: Poller, names: tuple[Destination | None, ...], settings: Settings, client: socket.socket | None
) -> bool:
    """Wait for the first addresses of names that have none yet, no longer than for a connect.

    False where the client has gone meanwhile.
    """
    unresolved = [name for name in names if name is not None and not name.resolved]
    if not unresolved:
        return True
    loop = asyncio.get_running_loop()
    gone = loop.create_future()
    timeout_s = settings.connect_timeout_s or SHORT_MAX_S
    resolving = asyncio.gather(*(name.wait_resolved(timeout_s) for name in unresolved))
    watched = False

    def on_client(events: int) -> None:
        if events & ERROR and not gone.done():
            gone.set_result(None)

    try:
        if client is not None:
            with contextlib.suppress(OSError):  # no room to watch it: it is waited for all the same
                poller.watch(client.fileno(), on_client)
                watched = True
        await asyncio.wait({resolving, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        resolving.cancel()
        if watched and client is not None:
            poller.forget(client.fileno())
    return not gone.done()


class Dialer:
    """Connects to destinations from one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, poller: Poller) -> None:
        self._loop = loop
        self.poller = poller

    async def dial(
        self,
        destination: Destination,
        port: int,
        settings: Settings,
        source: Destination | None,
        client: socket.socket | None,
        guard: LoopGuard | None = None,
    ) -> Dialed:
        """Try each address of `destination` once, from one of `source` where that is given.

        A client that gives up meanwhile ends it; its half-close does not. One without a connection is None. A name that
        is still to be resolved is waited for. What `guard` refuses is not connected to.
        """
        if not await wait_for_names(self.poller, (destination, source), settings, client):
            return Dialed(None, None, Ending.CLIENT_RESET, errno.ECONNRESET)
        sources = source.at(0) if source is not None else ()
        last = Dialed(None, None, Ending.RESOLVE_FAILED)
        if source is not None and not sources:
            return last
        for address in destination.at(port):
            local = next((each for each in sources if each.family == address.family), None)
            if source is not None and local is None:
                if last.address is None:
                    last = Dialed(None, address, Ending.BIND_FAILED, errno.EAFNOSUPPORT)
                continue
            if guard is not None and guard.refuses(address):
                last = Dialed(None, address, Ending.CONNECT_FAILED, LOOP_ERRNO)
                continue
            last = await self._try(address, settings, local, client)
            if last.upstream is not None or last.failed is Ending.UPSTREAM_RESET:
                destination.connected()
                return last
            if last.failed is Ending.CLIENT_RESET:
                return last
        destination.failed()
        return last

    async def _try(
        self, address: Address, settings: Settings, source: Address | None, client: socket.socket | None
    ) -> Dialed:
        try:
            sock = await self._open(address, settings)
        except OSError as error:
            return Dialed(None, address, Ending.SOCKET_FAILED, error.errno or 0)
        try:
            if source is not None:
                try:
                    bind_source(sock, source)
                except OSError as error:
                    sock.close()
                    return Dialed(None, address, Ending.BIND_FAILED, error.errno or 0)
            code = sock.connect_ex(address.sockaddr)
            if code in _IN_PROGRESS:
                attempt = _Attempt(self._loop, self.poller, sock, client)
                code = await attempt.finish(settings.connect_timeout_s)
            if code == 0 and is_connected_to_itself(sock, address):
                code = errno.ECONNREFUSED
        except OSError as error:  # the descriptor could not be watched
            code = error.errno or errno.EIO
        except BaseException:
            sock.close()
            raise
        if code == 0:
            return Dialed(sock, address)
        close_with_reset(sock)
        if code == errno.ETIMEDOUT:
            return Dialed(None, address, Ending.CONNECT_TIMEOUT, code)
        if code == errno.ECONNRESET:  # it took the connection, and had nothing to say
            return Dialed(None, address, Ending.UPSTREAM_RESET, code)
        if code == _CLIENT_GONE:
            return Dialed(None, address, Ending.CLIENT_RESET, errno.ECONNRESET)
        return Dialed(None, address, Ending.CONNECT_FAILED, code)

    async def _open(self, address: Address, settings: Settings) -> socket.socket:
        """A socket for `address`. Where no descriptor is left, the client waits for one as long as for a connect."""
        give_up = self._loop.time() + (settings.connect_timeout_s or SHORT_MAX_S)
        while True:
            try:
                return open_upstream(address.family, settings.keepalive)
            except OSError as error:
                if error.errno not in SHORTAGE or self._loop.time() >= give_up:
                    raise
            await asyncio.sleep(PATIENCE_S)


_CLIENT_GONE = -1


class _Attempt:
    """One connect under way. It ends by the kernel's answer, the deadline, or a client that has gone."""

    __slots__ = ("_client", "_done", "_loop", "_poller", "_sock", "_timer", "_watching_client")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        poller: Poller,
        sock: socket.socket,
        client: socket.socket | None,
    ) -> None:
        self._loop = loop
        self._poller = poller
        self._sock = sock
        self._client = client
        self._done: asyncio.Future[int] = loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._watching_client = False

    async def finish(self, timeout_s: float) -> int:
        """The errno of the connect, 0 for a connection. `timeout_s` 0 is none."""
        code = errno.EIO
        self._poller.watch(self._sock.fileno(), self._on_upstream)
        patience_s = min(PATIENCE_S, timeout_s) if timeout_s else PATIENCE_S
        self._timer = self._loop.call_later(patience_s, self._lose_patience, timeout_s - patience_s)
        try:
            code = await self._done
        finally:
            self._timer.cancel()
            if self._watching_client and self._client is not None:
                self._poller.forget(self._client.fileno())
            # Nobody's now: whoever relays may close it elsewhere, and the number be another's before we hear of it.
            self._poller.forget(self._sock.fileno())
        return code

    def _on_upstream(self, events: int) -> None:
        code = connect_result(self._sock)
        if code not in _IN_PROGRESS:  # else the event was stale
            self._settle(code)

    def _on_client(self, events: int) -> None:
        # A FIN or bytes are legal before there is an upstream; they wait in the kernel.
        if events & ERROR:
            self._settle(_CLIENT_GONE)

    def _lose_patience(self, left_s: float) -> None:
        if left_s >= 0:
            self._timer = self._loop.call_later(left_s, self._settle, errno.ETIMEDOUT)
        if self._client is None:
            return
        try:
            self._poller.watch(self._client.fileno(), self._on_client)
        except OSError as error:
            self._settle(error.errno or errno.EIO)
        else:
            self._watching_client = True

    def _settle(self, code: int) -> None:
        if not self._done.done():
            self._done.set_result(code)
