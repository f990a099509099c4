"""The life of one UDP client: it begins with a datagram, has an upstream leg of its own, and ends by silence.

Everything happens in the callbacks of the poller; only what has to be waited for (a TCP connection, the program's
`admit`) is a task, and datagrams that come meanwhile are held, within bounds. The two kinds of upstream are in `leg`.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from collections.abc import Hashable, Iterable

from oinetd.core.dial import Dialed, DialRequest
from oinetd.core.record import Ending, SessionRecord
from oinetd.core.registry import Live
from oinetd.core.service import Service
from oinetd.lanes.python.session import ask
from oinetd.lanes.python.udp.home import Home, Places, places_of
from oinetd.lanes.python.udp.plane import NOWHERE
from oinetd.lanes.python.udp.table import Queue
from oinetd.net.datagrams import Group, Sender
from oinetd.net.sockets import Address, client_address, close_with_reset
from oinetd.upstream.member import Member
from oinetd.upstream.silence import Trail, patience_s

__all__ = ["DatagramSession"]

HELD_DATAGRAMS_MAX = 256
HELD_SESSION_BYTES_MAX = 128 * 1024
"""What one session may hold: two of the largest datagrams, or a burst of small ones."""


class DatagramSession:
    """One client. `key` is that of its `Sender`; `sock` is the upstream leg, None as long as there is none."""

    __slots__ = (
        "_held",
        "_held_bytes",
        "_opened",
        "_task",
        "address",
        "answered",
        "asked",
        "ended",
        "home",
        "key",
        "known",
        "last",
        "live",
        "queue",
        "request",
        "rule",
        "service",
        "sock",
        "timeout_s",
        "trail",
    )

    queue: Queue

    def __init__(self, home: Home, service: Service, key: Hashable, sender: Sender, trail: Trail = NOWHERE) -> None:
        self.home = home
        self.service = service
        self.key = key
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
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._opened = False
        host, port = client_address(sender.address)
        record = SessionRecord(service.registry.gate.next_id(), service.route, host, port, time.time())
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
    def member(self) -> Member | None:
        """Its server; None if there is no group, or it has none yet."""
        return self.request.member if self.request is not None else None

    async def connect(self) -> Dialed:
        """The upstream leg."""
        raise NotImplementedError

    def forward(self, group: Group) -> None:
        """Datagrams of the client, which are still in the batch, go to the upstream."""
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

    # Traffic

    def heard(self) -> None:
        """Something moved: the session is not silent."""
        if not self.ended:
            self.home.plane.table.touch(self)
            self.live.meter.moved_at = self.last

    def heard_answer(self) -> None:
        """The same, and it was the destination."""
        if not self.ended:
            self.asked = 0.0
            self.trail = NOWHERE
            if not self.answered:
                self.home.plane.table.answer(self)
            self.home.plane.table.touch(self)

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

    def take_up(self, group: Group) -> None:
        """Datagrams of the client."""
        if not self.asked:
            self.asked = self.home.plane.loop.time()
        group = self.within_bandwidth(0, group)
        if not group.length:
            return
        if self.sock is None:
            self.hold(self.home.batch.take(group))
        else:
            self.forward(group)

    def within_bandwidth(self, way: int, group: Group) -> Group:
        """The datagrams of a group that may pass, the first ones; the others are lost."""
        throttle = self.live.meter.throttle
        if throttle is None:
            return group
        passing = 0
        for datagram in self.home.batch.take(group):
            if not throttle.passes(way, len(datagram)):
                break
            passing += 1
        self.live.meter.datagrams_lost += group.length - passing
        return group._replace(length=passing)

    def hold(self, datagrams: Iterable[bytes]) -> None:
        """Keep datagrams until there is an upstream to take them; what is too much is lost."""
        for datagram in datagrams:
            size = len(datagram)
            room = len(self._held) < HELD_DATAGRAMS_MAX and self._held_bytes + size <= HELD_SESSION_BYTES_MAX
            if room and self.home.plane.table.hold(size):
                self._held.append(datagram)
                self._held_bytes += size
            else:
                self.live.meter.datagrams_lost += 1

    def release_held(self) -> list[bytes]:
        """What was held, which is then held no more."""
        held, self._held = self._held, []
        self.home.plane.table.let_go(self._held_bytes)
        self._held_bytes = 0
        return held

    @property
    def holds(self) -> bool:
        """Whether anything is held."""
        return bool(self._held)

    def send_down(self, group: Group) -> None:
        """Datagrams in the batch go to the client."""
        meter = self.live.meter
        group = self.within_bandwidth(1, group)
        if not group.length:
            return
        sent = self.home.batch.send(self.home.sock, group, self.key)
        meter.bytes_down += sent.size
        meter.datagrams_down += sent.datagrams
        meter.datagrams_lost += group.length - sent.datagrams

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
