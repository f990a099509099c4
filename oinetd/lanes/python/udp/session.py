"""The life of one UDP client: it begins with a datagram, has an upstream leg of its own, and ends by silence.

Everything happens in the callbacks of the poller; only what has to be waited for (a TCP connection, the program's
`admit`) is a task, and datagrams that come meanwhile are held, within bounds. The two kinds of upstream are in `leg`.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from collections.abc import Hashable

from oinetd.core.dial import Dialed, DialRequest
from oinetd.core.record import Ending, SessionRecord
from oinetd.core.registry import Live
from oinetd.core.service import Service
from oinetd.lanes.python.session import ask
from oinetd.lanes.python.udp.headed import client_of, identity_of
from oinetd.lanes.python.udp.held import HeldDatagrams
from oinetd.lanes.python.udp.home import Home, Places, places_of
from oinetd.lanes.python.udp.plane import NOWHERE
from oinetd.lanes.python.udp.traffic import Traffic
from oinetd.net.datagrams import Sender
from oinetd.net.sockets import Address, client_address, close_with_reset
from oinetd.preamble.proxy_protocol import Header
from oinetd.upstream.member import Member
from oinetd.upstream.silence import Trail, patience_s

__all__ = ["DatagramSession"]


class DatagramSession(Traffic):
    """One client. `key` is that of its `Sender`; `sock` is the upstream leg, None as long as there is none.

    `header` is the last one that its peer wrote before a datagram; None if the peer writes none, and is the client.
    """

    __slots__ = (
        "_opened",
        "_task",
        "address",
        "known",
        "request",
        "service",
    )

    def __init__(
        self,
        home: Home,
        service: Service,
        key: Hashable,
        sender: Sender,
        trail: Trail = NOWHERE,
        header: Header | None = None,
    ) -> None:
        self.home = home
        self.service = service
        self.key = key
        self.header = header
        self.rule = service.rule
        self.sock: socket.socket | None = None
        self.address: Address | None = None
        self.trail = trail
        self.request: DialRequest | None = None
        self.known: Places | None = None
        self.ended = self.answered = False
        self.asked = self.last = 0.0
        self.timeout_s = service.route.rule.options.datagram_timeout_s
        self._task: asyncio.Task[None] | None = None
        self._held = HeldDatagrams(home.plane.table)
        self._opened = False
        peer = client_address(sender.address)
        host, port = client_of(header, peer)
        record = SessionRecord(service.registry.gate.next_id(), service.route, host, port, time.time())
        if header is not None:
            record.peer, record.peer_port = peer
        if service.group is not None:
            record.group = service.group.name
        self.live = Live(record, service.rule, self.kill, datagrams=True)

    def ask_for_server(self) -> DialRequest:
        """What to ask a dialer for. With a group, the session keeps it, to leave its server at the end."""
        request = self.service.dial_request(host=self.live.record.client)
        if request.group is not None:
            self.request = request
        return request

    @property
    def identity(self) -> Hashable:
        """What its listener finds it by."""
        return identity_of(self.key, self.header, (self.live.record.client, self.live.record.client_port))

    @property
    def member(self) -> Member | None:
        """Its server; None if there is no group, or it has none yet."""
        return self.request.member if self.request is not None else None

    async def connect(self) -> Dialed:
        """The upstream leg."""
        raise NotImplementedError

    def forward_held(self) -> None:
        """Datagrams that were held go to the upstream."""
        raise NotImplementedError

    def on_upstream(self, events: int) -> None:
        """The upstream has something to say."""
        raise NotImplementedError

    def watch(self, sock: socket.socket) -> None:
        """Have `on_upstream` called. Raises `OSError` if the machine has no room for it."""
        raise NotImplementedError

    # Beginning

    def begin(self) -> None:
        """Enter the tables, with a place taken, and make the upstream leg."""
        self.service.registry.enter(self.live)
        self.home.plane.table.enter(self)
        self._task = self.home.plane.loop.create_task(self._begin())
        self.home.plane.tasks.add(self._task)
        self._task.add_done_callback(self.home.plane.tasks.discard)

    async def _begin(self) -> None:
        try:
            if not await self._admitted():
                self.end(Ending.NOT_ALLOWED)
                return
            if self.ended:
                return
            self.tell_opened()
            dialed = await self.connect()
        except asyncio.CancelledError:  # `end` has done everything; or the loop itself goes down
            self.end(Ending.ABORTED)
            return
        except BaseException:
            self.end(Ending.ABORTED)
            raise
        if self.ended:
            self.drop(dialed)
            return
        self.connected(dialed)
        if not self.ended:
            self.forward_held()

    async def _admitted(self) -> bool:
        admit = self.service.admit
        return admit is None or await ask(admit, self.live.record) is True

    def tell_opened(self) -> None:
        """The client was let in."""
        self._opened = True
        self.service.watcher.opened(self.live.record)

    def drop(self, dialed: Dialed) -> None:
        """The session ended before it had its upstream leg."""
        if self.request is not None:
            self.request.leave_server()
        if dialed.upstream is not None:
            self.home.plane.poller.closing(dialed.upstream.fileno())
            dialed.upstream.close()

    def connected(self, dialed: Dialed) -> None:
        """The upstream leg is made, or it failed and the session ends."""
        record = self.live.record
        self.address = dialed.address
        self.trail = self.trail.arrive(dialed.address)
        if (member := self.member) is not None and self.request is not None:
            record.server, record.tries = member.name, tuple(self.request.tries)
            self.request.enter_server(self.kill)
        else:
            self.known = places_of(self.service)
        record.connect_s = time.monotonic() - self.live.since
        if (taken_by := dialed.taken_by) is not None:
            record.upstream, record.upstream_port = taken_by.host, taken_by.port
        if dialed.upstream is None:
            assert dialed.failed is not None
            self.end(dialed.failed, dialed.errno)
            return
        record.engine, record.relay = "python", "copy"
        self.sock = dialed.upstream
        try:
            self.watch(self.sock)
        except OSError as error:
            self.end(Ending.ABORTED, error.errno or errno.EIO)

    # A client that waits for an answer

    def goes_on(self, service: Service, now: float) -> bool:
        """The client writes again to an address that has not answered: whether it is to have a session at another one,
        by what is in force now; `trail` is then that of the new session."""
        if self.address is None or self.sock is None:
            return False
        if self.member is not None:
            return self._leaves_server(self.member, service, now)
        places = places_of(service)
        same = places == self.known
        if now - self.asked < self.patience_s(same) or not places[0]:
            return False
        service.destination.look_up_again()
        if same and len(places[0]) == 1:
            self.trail = self.trail._replace(rounds=self.trail.rounds + 1)
            return False
        self.trail = self.trail.leave(self.address, self.asked, places[0], same)
        return True

    def _leaves_server(self, member: Member, service: Service, now: float) -> bool:
        """Whether it leaves its server, which has not answered."""
        if now - self.asked < self.patience_s(True):
            return False
        self.trail = self.trail.leave_server(member, self.asked, len(service.group.members) if service.group else 0)
        return True

    def patience_s(self, same: bool) -> float:
        """How long a question waits; `same` says that the destination has the addresses that it had."""
        return patience_s(self.trail, self.answered, self.timeout_s, same)

    # End

    @property
    def may_leave(self) -> bool:
        """Whether it has its upstream leg."""
        return self.sock is not None and not self.ended

    def adopted(self) -> None:
        """Another process had it: it takes its places here, and goes on with `go_on`."""
        self._opened = True
        self.ask_for_server().resume_server(self.live.record.server, self.kill)
        self.service.registry.adopt(self.live)

    def go_on(self, held: list[bytes]) -> None:
        """Serve it from now on; `held` is what waits for its upstream."""
        assert self.sock is not None
        self.home.take_back(self)
        self.home.plane.table.enter(self, self.last)
        try:
            self.watch(self.sock)
        except OSError as error:
            self.end(Ending.ABORTED, error.errno or errno.EIO)
            return
        if held:
            self.hold(held)
            self.forward_held()

    def kill(self, ending: Ending = Ending.ABORTED) -> None:
        """End the session, which may be on its way to another process; the record says how."""
        if not self.service.registry.away.kill(self.live.record.id):
            self.end(ending)

    def end(self, ending: Ending, code: int = 0) -> None:
        """Close the upstream leg, account, log. A second call does nothing."""
        if self.ended:
            return
        self.ended, service = True, self.service
        if self.request is not None:
            self.request.leave_server()
        if self.sock is not None:
            self.home.plane.poller.closing(self.sock.fileno())
            if ending in (Ending.IDLE_TIMEOUT, Ending.UPSTREAM_CLOSED):
                self.sock.close()  # silence is how a UDP client says that it is done
            else:
                close_with_reset(self.sock)
        if not self._opened and not ending.refused:  # killed while the program thought about it: events come in pairs
            self.tell_opened()
        self.live.meter.datagrams_lost += len(self.release_held())
        self.home.plane.table.leave(self)
        self.live.complete(ending, code)
        service.registry.leave(self.live)
        self.home.gone(self)
        service.watcher.closed(self.live.record)
        if self._task is not None and not self._task.done() and self._task is not asyncio.current_task():
            self._task.cancel()
