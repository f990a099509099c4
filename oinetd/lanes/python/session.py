"""The life of one connection in the Python lane: accept, preamble, admit, pick, dial, relay, end.

The listener accepts, and the dialer picks an address of the destination. `Session.run` is what is between and after.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Self

from oinetd.core.dial import Dialed, DialRequest
from oinetd.core.engine import COUNTERS, Carried, Departed, Leaving
from oinetd.core.record import Ending, SessionRecord
from oinetd.core.registry import Live
from oinetd.core.router import Decide, Routed
from oinetd.core.service import Service
from oinetd.lanes.python.client_watch import ClientWatch
from oinetd.lanes.python.departure import StreamDeparture, adopted_record
from oinetd.lanes.python.header import send_header
from oinetd.lanes.python.preamble import PreambleStage
from oinetd.model import SendProxy
from oinetd.net.sockets import client_address, close_with_reset
from oinetd.net.unix_sockets import peer_of

__all__ = ["Session", "ask"]

log = logging.getLogger("oinetd")


async def ask(decide: Decide, record: SessionRecord) -> bool | Routed:
    """What a program's hooks say of a client: False if they fail. Raises `CancelledError` if the task is cancelled."""
    task = asyncio.current_task()
    try:
        return await decide(record)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        # One may come of something else that the hook awaits.
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
        log.exception("the admit hook failed; %s is refused", record.client)
        return False


class Session:
    """One client of one route. `run` is its whole life, and never raises for what peers do."""

    __slots__ = (
        "_carried", "_client", "_cut_by", "_departed", "_gone", "_killed", "_live", "_opened", "_peer", "_preamble",
        "_request", "_revoked", "_routed", "_service", "_task",
    )  # fmt: skip

    _live: Live
    _preamble: PreambleStage | None

    def __init__(
        self,
        service: Service,
        session_id: int,
        client: socket.socket,
        peer: tuple[str, int],
        in_force: Callable[[], Service] | None = None,
    ) -> None:
        host, port = client_address(peer)
        record = SessionRecord(session_id, service.route, host, port, time.time())
        self._set_up(service, client, record)
        if client.family == socket.AF_UNIX:
            record.credentials = peer_of(client)
        else:
            self._peer = peer[0]  # as the socket gave it
        service.registry.enter(self._live)
        if service.preamble is not None:
            self._preamble = PreambleStage(
                service, service.preamble, self._live, client, self._peer, in_force or (lambda: service)
            )

    def _set_up(self, service: Service, client: socket.socket, record: SessionRecord) -> None:
        self._service = service
        self._client = client
        self._task: asyncio.Task[None] | None = None
        self._killed = self._gone = self._opened = self._revoked = self._departed = False
        self._routed: Routed | None = None
        self._cut_by: Ending | None = None
        self._request: DialRequest | None = None
        self._carried: tuple[socket.socket, Carried] | None = None
        self._preamble = None
        self._peer = record.client
        self._live = Live(record, service.rule, self.kill, revoke=self.revoke)

    @classmethod
    def adopted(
        cls, service: Service, state: Mapping[str, Any], fds: tuple[int, int], pending: tuple[bytes, bytes]
    ) -> Self:
        """One that another process has taken out, and that goes on with `start`.

        Raises `ValueError`, `TypeError` or `KeyError` if `state` is not of one; then the descriptors are the caller's.
        """
        self, record = cls.__new__(cls), adopted_record(state, service)
        began, moved_at = int(state["began_us"]) / 1e6, int(state["moved_at_us"]) / 1e6
        carried = Carried(state["relayed"], pending)
        carried.state["flows" if record.engine == "native" else "idle_s"]  # what no relay goes on without
        counts = [int(count) for count in state["counts"]]
        if len(counts) != len(COUNTERS):
            raise ValueError("not the counts of a session")
        client, upstream = (socket.socket(fileno=fd) for fd in fds)  # nothing below raises
        self._set_up(service, client, record)
        for sock in (client, upstream):
            sock.setblocking(False)
        self._opened = True
        self._carried = upstream, carried
        self._live.since, self._live.meter.moved_at = began, moved_at
        self._live.meter.count_on(counts)
        service.registry.adopt(self._live)
        if service.group is not None:
            self._request = request = service.dial_request(client, record.client)
            request.tries.extend(record.tries)
            request.resume_server(record.server, self.leave_server)
        return self

    def start(self, loop: asyncio.AbstractEventLoop, tasks: set[asyncio.Task[None]]) -> None:
        """Begin; `tasks` holds the session's task until the session has ended."""
        self._task = task = loop.create_task(self.run())
        tasks.add(task)
        task.add_done_callback(self._ended)
        task.add_done_callback(tasks.discard)

    def kill(self) -> None:
        """End the session; both peers see a reset, and the record says `aborted`."""
        if self._service.registry.away.kill(self._live.record.id):
            return
        self._killed = True
        if self._task is not None:
            self._task.cancel()

    def leave_server(self, ending: Ending) -> None:
        """End it because of its server; `ending` is then in the record."""
        self._cut_by = ending
        self.kill()

    def revoke(self) -> None:
        """End it because the access rules refuse the client now; the record says `revoked`."""
        self._revoked = True
        self.kill()

    async def run(self) -> None:
        """Live. The session ends with its record complete, whatever happens."""
        record = self._live.record
        ending, code = Ending.ABORTED, 0
        try:
            if self._carried is not None:
                ending, code = await self._relay(*self._carried)
                return
            if self._preamble is not None and (refusal := await self._preamble.read()) is not None:
                ending, code = refusal, self._preamble.errno
                return
            refusal = await self._admit()
            if refusal is not None and not self._killed:
                ending = refusal
                self._client.close()
                return
            if self._killed:  # and the hook overlooked that it was cancelled
                ending, code = self._cut()
                return
            service = self._service
            self._request = request = service.dial_request(self._client, record.client, unknown=self._is_unknown)
            if self._routed is not None:
                request.destination, request.port = self._routed
                request.guard = request.group = None
            elif service.group is not None:
                record.group = service.group.name
            self._opened = True
            service.watcher.opened(record)
            dialed = await self._dial(request)
            if dialed.upstream is None:
                assert dialed.failed is not None
                ending, code = dialed.failed, dialed.errno
                return
            header = service.header_for(request.member)
            if header is not SendProxy.OFF and (code := self._send_header(dialed.upstream, header)):
                close_with_reset(dialed.upstream)
                ending = Ending.UPSTREAM_RESET
                return
            record.engine = service.engine.name
            record.relay = service.settings.relay.value if record.engine == "native" else "copy"
            ending, code = await self._relay(dialed.upstream)
        except Departed:
            self._departed = True
        except asyncio.CancelledError:
            # Killed, or the program ends. The engine has waited for the exact counts.
            ending, code = self._cut()
            if self._live.meter.result is not None:
                ending, code = self._live.meter.result.ending, self._live.meter.result.errno
        finally:
            close_with_reset(self._client)  # does nothing if it is closed already
            if (asked := self._request) is not None:
                record.tries = tuple(asked.tries)
                if asked.member is not None:
                    record.server = asked.member.name
                    asked.leave_server()
            if self._departed:
                self._service.registry.depart(self._live)
            else:
                self._end(ending, code)

    async def _relay(self, upstream: socket.socket, carried: Carried | None = None) -> tuple[Ending, int]:
        """Relay, for the first time or with what is `carried` over; how it ended. Raises `Departed`."""
        service, live = self._service, self._live
        if service.tap is None:
            live.relaying = service.engine, self._departure
        else:  # a hook of this program is in it
            live.meter.tap = partial(service.tap, live.record)
        try:
            # The engine owns both sockets from here, whatever happens.
            result = await service.engine.relay(self._client, upstream, service.settings, live.meter, carried)
        finally:
            live.relaying = None
        return result.ending, result.errno

    def _departure(self, leaving: Leaving) -> StreamDeparture:
        return StreamDeparture(self._live, self._service, leaving)

    def _cut(self) -> tuple[Ending, int]:
        """How a session ends that was cancelled before it was relayed, and the errno."""
        return (Ending.CLIENT_RESET, errno.ECONNRESET) if self._gone else (Ending.ABORTED, 0)

    async def _admit(self) -> Ending | None:
        """Why the client may not pass; None if it may."""
        if self._preamble is not None:
            self._preamble.leave()
            self._peer, self._service = self._preamble.peer, self._preamble.service
        service = self._service
        if (refusal := service.access.decide(self._peer)) is not None:
            return refusal
        if not service.registry.admit_source(self._live):
            return Ending.LIMITED
        if service.admit is None:
            return None
        watch = ClientWatch(asyncio.get_running_loop(), service.dialer.poller, self._client, self._client_gone)
        try:
            answer = await ask(service.admit, self._live.record)
            self._routed = answer if isinstance(answer, Routed) else None
            return Ending.NOT_ALLOWED if answer is False else None
        finally:
            watch.close()

    async def _dial(self, request: DialRequest) -> Dialed:
        """Make the upstream leg, and put into the record what came of it."""
        service, record = self._service, self._live.record
        since = time.monotonic()  # what `admit` took is not the destination's
        dialed = await service.dialer.dial(request)
        record.connect_s = time.monotonic() - since
        record.tries = tuple(request.tries)
        if request.member is not None:
            record.server = request.member.name
            request.enter_server(self.leave_server)
        if (taken_by := dialed.taken_by) is not None:
            record.upstream, record.upstream_port = taken_by.host, taken_by.port
        if dialed.failed is Ending.BIND_FAILED and service.source_host is not None:
            service.source_host.failed()
        upstream = dialed.upstream
        if upstream is None or service.peer_uid is None or upstream.family != socket.AF_UNIX:
            return dialed
        if peer_of(upstream).uid == service.peer_uid:
            return dialed
        close_with_reset(upstream)
        return Dialed(None, dialed.address, Ending.CONNECT_FAILED, errno.EPERM)

    def _send_header(self, upstream: socket.socket, kind: SendProxy) -> int:
        accepted = self._preamble.header if self._preamble is not None else None
        return send_header(upstream, self._client, self._live.record, self._service.settings, kind, accepted)

    @property
    def _is_unknown(self) -> bool:
        """Whether the client has no address: it is one of a unix socket, or its proxy does not say."""
        if self._preamble is not None and self._preamble.header is not None:
            return self._preamble.header.source is None
        return self._client.family == socket.AF_UNIX

    def _client_gone(self) -> None:
        """The client has reset its connection while `admit` runs: its answer is not needed."""
        self._gone = True
        self.kill()

    def _ended(self, task: asyncio.Task[None]) -> None:
        # A task that is cancelled before its first step never comes to its `finally`.
        if self._live.record.ending is None and not self._departed:
            close_with_reset(self._client)
            self._end(Ending.ABORTED, 0)

    def _end(self, ending: Ending, code: int) -> None:
        record = self._live.record
        if self._preamble is not None:
            self._preamble.leave()
        if self._revoked and ending is Ending.ABORTED:
            ending = Ending.REVOKED if self._opened else Ending.DENIED
        if self._cut_by is not None and ending is Ending.ABORTED:
            ending = self._cut_by
        if not self._opened and not ending.refused:  # events come in pairs
            self._service.watcher.opened(record)
        self._live.complete(ending, code)
        self._service.registry.leave(self._live)
        self._service.watcher.closed(record)
