"""The upstream leg: the addresses of the destination, staggered (RFC 8305), the source address, and one deadline.

A second address is tried when the first has failed or has said nothing for `STAGGER_S`; then both are under way, and so
on. The first that takes the connection is used, the others are closed without a trace. `connect-timeout` is for the
whole of it. Each connect beside another takes a descriptor of the budget, and is not begun if none is left.
"""

from __future__ import annotations

import asyncio
import errno
import math
import socket

from oinetd.core.admission import Gate
from oinetd.core.dial import UNRESOLVED, Dialed, DialRequest
from oinetd.core.record import Ending, Try
from oinetd.lanes.python.attempt import Attempt, Spares
from oinetd.lanes.python.search import search_server
from oinetd.net.connect_result import connect_result
from oinetd.net.poller import Poller, has_failed
from oinetd.net.sockets import SHORTAGE, Address, bind_source, close_with_reset, is_connected_to_itself, open_upstream
from oinetd.upstream.address_order import now_ms
from oinetd.upstream.loops import LOOP_ERRNO
from oinetd.upstream.name_wait import SHORT_MAX_S

__all__ = ["StreamDialer"]

STAGGER_S = 0.25
"""How long an address may be silent before the next one is tried beside it: the delay that RFC 8305 recommends."""
PATIENCE_S = 0.1
"""How long a connect may take before the client is watched too: the usual one is over by then and pays nothing."""

_IN_PROGRESS = (errno.EINPROGRESS, errno.EALREADY)


class StreamDialer:
    """Connects to destinations from one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, poller: Poller, gate: Gate) -> None:
        self._loop = loop
        self.poller = poller
        self._gate = gate

    async def dial(self, request: DialRequest) -> Dialed:
        """Try each address of the destination once.

        A client that gives up meanwhile ends it; its half-close does not. A name that is still to be resolved is waited
        for.
        """
        if (failed := await request.wait_for_names(self.poller)) is not None:
            return failed
        if request.group is not None:
            return await search_server(request, self.poller, self.dial)
        search = _Search(self._loop, self.poller, self._gate, request)
        try:
            dialed = await search.run()
        finally:
            request.tries.extend(search.tries)
        if dialed.taken_by is not None:
            request.destination.connected()
        elif dialed.failed is not Ending.CLIENT_RESET:
            request.destination.failed()
        return dialed


class _Search:
    """Connects until one works. It ends by that, the last failure, the deadline, or a client that has gone."""

    __slots__ = (
        "_attempts", "_client", "_codes", "_deadline", "_destination", "_done", "_last", "_loop", "_next", "_order",
        "_overdue", "_poller", "_request", "_settings", "_short", "_spares", "_timer", "_timer_at", "_tried", "_turn",
        "_watch", "_watching",
    )  # fmt: skip

    def __init__(self, loop: asyncio.AbstractEventLoop, poller: Poller, gate: Gate, request: DialRequest) -> None:
        self._spares = Spares(gate)
        self._loop = loop
        self._poller = poller
        self._request = request
        self._destination = request.destination
        self._settings = request.settings
        self._client = client = request.client
        self._order = request.destination.order(request.port)
        self._turn = self._order.begin()
        self._tried = 0
        self._codes: dict[int, int] = {}  # of each address that was tried, in the order in which they began
        self._attempts: dict[int, Attempt] = {}
        self._last = UNRESOLVED
        self._done: asyncio.Future[Dialed] = loop.create_future()
        now = loop.time()
        limit_s = request.limit_s
        self._deadline = now + limit_s if limit_s or request.timeout_s is not None else math.inf
        self._short = now + (limit_s or SHORT_MAX_S)
        self._watch = now + PATIENCE_S if client is not None else math.inf
        self._overdue = math.inf  # when it is asked whether to wait on
        if request.goes_on is not None:
            self._overdue = now + request.overdue_s + STAGGER_S * (len(self._order.addresses) - 1)
        self._next = math.inf  # when the next address is tried beside those under way
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0  # uvloop's timer does not tell it if it is due at once
        self._watching = False

    async def run(self) -> Dialed:
        """The outcome. Whatever else was begun is closed."""
        dialed = self._last
        try:
            self._try_next()
            dialed = await self._done
        except BaseException:
            # It may have connected while this was on its way.
            if self._done.done() and not self._done.cancelled() and (won := self._done.result().upstream) is not None:
                won.close()
            raise
        finally:
            if self._timer is not None:
                self._timer.cancel()
            if self._watching and self._client is not None:
                self._poller.forget(self._client.fileno())
            for attempt in self._attempts.values():
                self._poller.closing(attempt.sock.fileno())
                close_with_reset(attempt.sock)
            self._attempts.clear()
            self._spares.give(len(self._attempts))
        return dialed

    @property
    def tries(self) -> list[Try]:
        """The addresses that did not take the connection, each with its errno; EINPROGRESS was still under way."""
        addresses = self._order.addresses
        return [Try(addresses[at].host, addresses[at].port, code) for at, code in self._codes.items() if code]

    def _try_next(self) -> None:
        """Begin with addresses until one is under way; the end if none is left."""
        self._next = math.inf
        if self._untried and not self._spares.take(len(self._attempts)):
            self._next = self._loop.time() + PATIENCE_S
            self._arm()
            return
        while not self._done.done() and (at := self._order.pick(self._tried, self._turn, now_ms())) >= 0:
            self._tried |= 1 << at
            address = self._order.addresses[at]
            local, guard = self._request.source_for(address), self._request.guard
            if local is None and self._request.has_source and not address.is_unix:
                if self._last.address is None:
                    self._last = Dialed(None, address, Ending.BIND_FAILED, errno.EAFNOSUPPORT)
                continue
            try:
                if guard is not None and guard.refuses(address):
                    self._failed(at, Ending.CONNECT_FAILED, LOOP_ERRNO)
                    continue
                sock = open_upstream(address.family, self._settings.keepalive, self._request.options)
            except OSError as error:
                if error.errno in SHORTAGE and self._loop.time() < self._short:
                    # The client waits for a descriptor as long as for a connect.
                    self._tried &= ~(1 << at)
                    self._next = self._loop.time() + PATIENCE_S
                    self._arm()
                    self._spares.give(len(self._attempts))
                    return
                self._failed(at, Ending.SOCKET_FAILED, error.errno or 0)
                continue
            if self._begin(sock, at, local):
                break
        self._spares.give(len(self._attempts))
        if not self._attempts and self._next == math.inf and not self._done.done():
            self._settle(self._last)

    def _begin(self, sock: socket.socket, at: int, local: Address | None) -> bool:
        """Begin to connect; whether that is under way, or done."""
        ending, address = Ending.BIND_FAILED, self._order.addresses[at]
        try:
            if local is not None:
                bind_source(sock, local)
            ending = Ending.CONNECT_FAILED
            code = sock.connect_ex(address.sockaddr)
            attempt = Attempt(sock, at, address, self._loop.time())
            self._codes[at] = errno.EINPROGRESS
            if code in _IN_PROGRESS:
                self._poller.watch(sock.fileno(), lambda events: self._on_upstream(attempt))
                self._attempts[sock.fileno()] = attempt
                if self._untried:
                    self._next = attempt.began + self._stagger_s()
                self._arm()
                return True
            if code == 0:
                self._connected(attempt)
                return self._done.done()
            if code == errno.EAGAIN and address.is_unix:
                sock.close()
                self._wait_for_backlog(at)
                return True
        except OSError as error:  # the descriptor could not be watched, or bound
            code = error.errno or errno.EIO
        except BaseException:
            sock.close()
            raise
        close_with_reset(sock)
        self._failed(at, ending, code)
        return False

    def _wait_for_backlog(self, at: int) -> None:
        """The accept queue of a unix socket is full: the address is tried again soon, for which there is no event."""
        del self._codes[at]
        self._tried &= ~(1 << at)
        self._last = Dialed(None, self._order.addresses[at], Ending.CONNECT_TIMEOUT, errno.EAGAIN)
        now = self._loop.time()
        if now >= self._deadline:
            self._codes[at] = errno.EAGAIN
            self._settle(self._last)
            return
        self._next = now + PATIENCE_S
        self._arm()

    @property
    def _untried(self) -> int:
        return len(self._order.addresses) - self._tried.bit_count()

    def _stagger_s(self) -> float:
        """The time until the next address is tried: all of them get a chance before the deadline."""
        return min(STAGGER_S, max(0.0, self._deadline - self._loop.time()) / (self._untried + 1))

    def _on_upstream(self, attempt: Attempt) -> None:
        code = connect_result(attempt.sock)
        if code in _IN_PROGRESS or self._done.done():  # the event was stale
            return
        if code:
            self._drop(attempt, code)
            return
        del self._attempts[attempt.sock.fileno()]
        # The engine may close it in another thread, and the kernel may give its number to another file.
        self._poller.forget(attempt.sock.fileno())
        self._connected(attempt)
        if not self._done.done():
            self._try_next()

    def _drop(self, attempt: Attempt, code: int) -> None:
        """An attempt has failed: the next address is tried at once."""
        del self._attempts[attempt.sock.fileno()]
        self._poller.forget(attempt.sock.fileno())
        close_with_reset(attempt.sock)
        self._spares.give(len(self._attempts))
        if code == errno.ECONNRESET:  # it took the connection, and had nothing to say
            self._destination.note_worked(attempt.address)
            self._codes[attempt.at] = 0
            self._settle(Dialed(None, attempt.address, Ending.UPSTREAM_RESET, code))
            return
        ending = Ending.CONNECT_TIMEOUT if code == errno.ETIMEDOUT else Ending.CONNECT_FAILED
        self._failed(attempt.at, ending, code)
        self._try_next()

    def _connected(self, attempt: Attempt) -> None:
        """The kernel says that it is connected: use it, unless it has met itself."""
        try:
            itself = is_connected_to_itself(attempt.sock, attempt.address)
        except OSError as error:  # the peer has reset it already
            close_with_reset(attempt.sock)
            self._failed(attempt.at, Ending.CONNECT_FAILED, error.errno or errno.EIO)
            return
        if itself:
            close_with_reset(attempt.sock)
            self._failed(attempt.at, Ending.CONNECT_FAILED, errno.ECONNREFUSED)
            return
        now = self._loop.time()
        for other in self._attempts.values():
            if now - other.began >= STAGGER_S:
                self._destination.note_failed(other.address, errno.EINPROGRESS)
        self._destination.note_worked(attempt.address)
        self._codes[attempt.at] = 0
        self._settle(Dialed(attempt.sock, attempt.address))

    def _failed(self, at: int, ending: Ending, code: int) -> None:
        address = self._order.addresses[at]
        self._codes[at] = code
        if ending in (Ending.CONNECT_FAILED, Ending.CONNECT_TIMEOUT):
            self._destination.note_failed(address, code)
        self._last = Dialed(None, address, ending, code)

    # Time, and the client

    def _arm(self) -> None:
        """Let the timer fire when the next thing is due."""
        due = min(self._deadline, self._next, self._watch, self._overdue)
        if self._timer is not None:
            if self._timer_at <= due and not self._timer.cancelled():
                return
            self._timer.cancel()
        self._timer_at = due
        self._timer = self._loop.call_at(due, self._on_timer) if due < math.inf else None

    def _on_timer(self) -> None:
        self._timer = None
        now = self._loop.time()
        if now >= self._watch:
            self._watch = math.inf
            self._watch_client()
        # If nothing is under way it waits for a descriptor, and this is the last try.
        if now >= self._next or (now >= self._deadline and not self._attempts):
            self._try_next()
        if now >= self._deadline and not self._done.done():
            self._time_out(now)
        if now >= self._overdue and not self._done.done():
            self._overdue = math.inf
            decided = self._request.goes_on() if self._attempts and self._request.goes_on is not None else False
            if decided:
                self._settle(Dialed(None, self._last_begun, Ending.CONNECT_TIMEOUT, errno.EINPROGRESS))
            elif decided is None:
                self._overdue = now + PATIENCE_S
        if not self._done.done():
            self._arm()

    @property
    def _last_begun(self) -> Address | None:
        return next((each.address for each in self._attempts.values()), self._last.address)

    def _watch_client(self) -> None:
        assert self._client is not None
        try:
            self._poller.watch(self._client.fileno(), self._on_client)
        except OSError:  # no room: it is then noticed when something is sent to it
            return
        self._watching = True

    def _on_client(self, events: int) -> None:
        # A FIN or bytes are legal before there is an upstream; they wait in the kernel.
        client = self._request.client
        if client is not None and has_failed(client, events) and not self._done.done():
            self._settle(Dialed(None, self._last_begun, Ending.CLIENT_RESET, errno.ECONNRESET))

    def _time_out(self, now: float) -> None:
        """The deadline is over for all that is under way. One that had little time has not failed by that."""
        enough_s = min(STAGGER_S, self._request.limit_s / 2)
        for attempt in self._attempts.values():
            if now - attempt.began >= enough_s:
                self._failed(attempt.at, Ending.CONNECT_TIMEOUT, errno.ETIMEDOUT)
            else:
                self._codes[attempt.at] = errno.ETIMEDOUT
                self._last = Dialed(None, attempt.address, Ending.CONNECT_TIMEOUT, errno.ETIMEDOUT)
        self._settle(self._last)

    def _settle(self, dialed: Dialed) -> None:
        self._done.set_result(dialed)
