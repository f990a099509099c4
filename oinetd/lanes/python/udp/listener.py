"""A UDP socket that clients write to: datagrams go to the session of their sender, and new senders get one.

One batch is taken in one wake, so that sessions and other listeners get their turns. A listener that is taken away
while it has sessions lingers: nobody new is let in, and it closes with its last session.
"""

from __future__ import annotations

import socket
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from oinetd.core.access import AccessControl
from oinetd.core.lane import Departing, Lane, Listener
from oinetd.core.preamble import Preamble
from oinetd.core.record import Ending
from oinetd.core.service import Service
from oinetd.lanes.python.udp.departure import DatagramDeparture, header_in, key_in, take_up
from oinetd.lanes.python.udp.headed import client_of, identity_of, take_headers
from oinetd.lanes.python.udp.leg import DatagramLeg, StreamLeg
from oinetd.lanes.python.udp.plane import NOWHERE, DatagramPlane, connect
from oinetd.lanes.python.udp.session import DatagramSession
from oinetd.model import AccessRule, Protocol, Verb
from oinetd.net.datagrams import Batch, Group
from oinetd.net.poller import LEVEL_READ
from oinetd.net.sockets import client_address
from oinetd.preamble.proxy_protocol import Header
from oinetd.upstream import silence
from oinetd.upstream.silence import Trail

__all__ = ["DatagramListener"]

TOLD_MAX = 4096
"""Refused source addresses that are remembered, so that each is logged once; more of them push the oldest out."""


class DatagramListener(Listener):
    """Serves `sock` for `service`, which a reload replaces; earlier sessions keep theirs."""

    def __init__(self, lane: Lane, plane: DatagramPlane, sock: socket.socket, service: Service) -> None:
        super().__init__(lane, sock, service)
        self.plane = plane
        self.batch = plane.batch_for(service.settings)
        self.batch.prepare(sock)
        self._on_closed: Callable[[], object] | None = None
        self._sessions: dict[Hashable, DatagramSession] = {}
        self._told: OrderedDict[str, None] = OrderedDict()
        self._watching = False
        self._lingering = False

    def start(self) -> None:
        """Serve from now on. Raises `OSError` if the machine has no room to watch the socket."""
        if not self._watching:
            self.plane.poller.watch(self.sock.fileno(), self._on_readable, LEVEL_READ)
            self._watching = True

    def replace_service(self, service: Service) -> None:
        """Serve the clients to come differently."""
        self.service = service
        self._on_closed = None
        self._told.clear()
        self._lingering = False
        self._take_batch(self.plane.batch_for(service.settings))
        self.start()

    def _take_batch(self, batch: Batch) -> None:
        """Serve with `batch`, another kind of which knows the sessions' senders by other keys."""
        if batch is self.batch:
            return
        batch.prepare(self.sock)
        sessions = tuple(self._sessions.values())
        for session in sessions:
            session.key = batch.name(self.batch.explain(session.key))
        self._sessions = {session.identity: session for session in sessions}
        self.batch = batch

    def _end_refused(self, access: tuple[tuple[AccessRule, ...], tuple[AccessRule, ...]]) -> int:
        control, ended = AccessControl(*access), 0
        of_peers = AccessControl([rule for rule in access[0] if rule.verb is Verb.DENY])
        for session in tuple(self._sessions.values()):
            peer = self.batch.explain(session.key).address[0]
            refused = session.header is not None and of_peers.decide(peer) is not None
            if refused or control.decide(_judged(session, peer)) is not None:
                session.end(Ending.REVOKED)
                ended += 1
        return ended

    @property
    def has_sessions(self) -> bool:
        return bool(self._sessions)

    def release(self) -> None:
        self._lingering = False
        self._unwatch()
        self.end()

    def _unwatch(self) -> None:
        if self._watching:
            self._watching = False
            self.plane.poller.forget(self.sock.fileno())

    def pause(self) -> None:
        self._unwatch()

    def take_out(self, at_most: int) -> list[Departing]:
        found: list[Departing] = []
        for session in sorted(self._sessions.values(), key=lambda each: each.last):
            if len(found) == at_most:
                break
            if session.may_leave and session.sock is not None:
                found.append(DatagramDeparture(session, session.sock))
        return found

    def adopt(
        self, state: Mapping[str, Any], fds: tuple[int, ...], pending: tuple[bytes, bytes]
    ) -> Callable[[], object] | None:
        if "key" not in state:
            return None
        session = self._new_session(key_in(self, state), NOWHERE, header_in(state))
        held = take_up(session, state, fds[0], pending[0])
        return lambda: session.go_on(held)

    def let_go(self, session: DatagramSession) -> None:
        del self._sessions[session.identity]

    def take_back(self, session: DatagramSession) -> None:
        self._sessions[session.identity] = session

    def linger(self, on_closed: Callable[[], object]) -> None:
        """Let nobody new in, and close with the last session; `on_closed` is called then, perhaps at once."""
        self._lingering = True
        self._on_closed = on_closed
        self._close_if_empty()

    def end(self) -> None:
        """End every session; a listener that lingers closes with that."""
        for session in tuple(self._sessions.values()):
            session.end(Ending.ABORTED)

    def gone(self, session: DatagramSession) -> None:
        """A session has ended."""
        del self._sessions[session.identity]
        self._close_if_empty()

    def _close_if_empty(self) -> None:
        if self._lingering and not self._sessions and self.sock.fileno() >= 0:
            self._unwatch()
            self.sock.close()
            if self._on_closed is not None:
                self._on_closed()

    def _on_readable(self, events: int) -> None:
        try:
            groups = self.batch.receive(self.sock)
        except OSError:
            return  # memory is short, say; nothing was taken, and the next wake tries again
        if self.batch.forged:
            self.service.registry.forged(self.service.rule, self.batch.forged)
        preamble = self.service.preamble
        late = self.plane.loop.time() - silence.SILENCE_S
        for group in groups:
            if preamble is not None and self._takes_headed(preamble, group, late):
                continue
            session = self._session(group.key, None, late)
            if session is not None:
                session.take_up(group)
            else:
                self.service.rule.stats.datagrams_lost += group.length

    def _takes_headed(self, preamble: Preamble, group: Group, late: float) -> bool:
        """Serve the datagrams of a peer that has to write headers, or that may not write at all; False if it is a
        plain client."""
        stats, sender = self.service.rule.stats, self.batch.explain(group.key)
        refusal, headed = preamble.judge(sender.address[0], False)
        if not headed and (refusal is None or group.key in self._sessions):
            return False
        if refusal is not None:
            stats.datagrams_lost += group.length
            self._refuse_peer(group.key, refusal)
            return True
        runs, faults = take_headers(self.batch.take(group))
        if faults:
            stats.datagrams_lost += len(faults)
            if self._refuse_peer(group.key, Ending.BAD_PROXY_HEADER):
                peer = client_address(sender.address)[0]
                tell = self.service.registry.invalid_preambles.tell
                tell(self.service.route, peer, "an invalid PROXY header", str(faults[0]))
        for header, datagrams in runs:
            session = self._session(group.key, header, late)
            if session is not None:
                session.take_up_each(datagrams, header)
            else:
                stats.datagrams_lost += len(datagrams)
        return True

    def _refuse_peer(self, key: Hashable, ending: Ending) -> bool:
        """Log a peer whose datagrams are dropped before it is known whose they are; False if that was done before."""
        return not self._lingering and self._turn_away(self._new_session(key, NOWHERE, None), ending)

    def _session(self, key: Hashable, header: Header | None, late: float) -> DatagramSession | None:
        """The session to which datagrams of a peer belong; None if it may have none."""
        identity = key
        if header is not None:
            peer = client_address(self.batch.explain(key).address)
            identity = identity_of(key, header, client_of(header, peer))
        session = self._sessions.get(identity)
        if session is None:
            return self._begin(key, header=header)
        if session.request is not None and self._server_has_gone(session):
            session.end(Ending.SERVER_DOWN)
            return self._begin(key, header=header)
        if session.asked and session.asked <= late:
            return self._go_on(session, header)
        return session

    def _server_has_gone(self, session: DatagramSession) -> bool:
        """Whether the server of a session must not be used any more, and there is another one. A connection to a TCP
        server goes on."""
        group, member = self.service.group, session.member
        if member is None or not member.state.is_gone or self._lingering or isinstance(session, StreamLeg):
            return False
        return group is None or group.has_usable

    def _go_on(self, session: DatagramSession, header: Header | None) -> DatagramSession | None:
        """The session of a client whose earlier question was not answered: a new one if it has waited too long."""
        if self._lingering or not session.goes_on(self.service, self.plane.loop.time()):
            return session
        session.end(Ending.UPSTREAM_SILENT)
        return self._begin(session.key, session.trail, header)

    def _begin(self, key: Hashable, trail: Trail = NOWHERE, header: Header | None = None) -> DatagramSession | None:
        """A session for a new sender, or for one with a trail; None if it may have none."""
        if self._lingering:
            return None
        service, session = self.service, self._new_session(key, trail, header)
        sender = self.batch.explain(key)
        if (refusal := service.access.decide(_judged(session, sender.address[0]))) is not None:
            self._turn_away(session, refusal)
            return None
        if service.guard is not None and service.guard.is_own(sender.address):
            return None
        if service.rule.buckets.connect_at():  # what comes before its time is lost
            return None
        if not service.registry.admit_source(session.live):
            self._turn_away(session, Ending.LIMITED)
            return None
        if not self.plane.table.make_room(service.rule):
            service.registry.dismiss_source(session.live)
            return None
        self._sessions[session.identity] = session
        if isinstance(session, DatagramLeg) and service.admit is None and service.resolved:
            self._begin_at_once(session)
        else:
            session.begin()
        return None if session.ended else session

    def _new_session(self, key: Hashable, trail: Trail, header: Header | None) -> DatagramSession:
        streams = self.service.route.connect.protocol is Protocol.TCP
        return (StreamLeg if streams else DatagramLeg)(self, self.service, key, self.batch.explain(key), trail, header)

    def _begin_at_once(self, session: DatagramLeg) -> None:
        """Connecting takes no time: no task is needed. A failure is told like a refusal, once for each source."""
        dialed = connect(session.ask_for_server(), self.plane.table, session.trail)
        if dialed.failed is None:
            session.begin_at_once(dialed)
            return
        del self._sessions[session.identity]
        self.service.registry.forget(session.live)
        session.ended = True
        self._turn_away(session, dialed.failed, dialed.errno)

    def _turn_away(self, session: DatagramSession, ending: Ending, code: int = 0) -> bool:
        """Log the client who gets no session; False if its address is known for it."""
        record = session.live.record
        if record.client in self._told:
            return False
        if len(self._told) >= TOLD_MAX:
            self._told.popitem(last=False)
        self._told[record.client] = None
        record.ending, record.errno = ending, code
        if not ending.refused:  # it was let in and failed: events come in pairs
            self.service.watcher.opened(record)
        self.service.registry.turned_away(session.live)
        self.service.watcher.closed(record)
        return True


def _judged(session: DatagramSession, peer: str) -> str:
    """The host that access rules judge: that of the header, or of the peer."""
    header = session.header
    return peer if header is None or header.source is None else header.source.host
