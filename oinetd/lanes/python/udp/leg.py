"""The two kinds of a UDP session's upstream leg: datagrams again, or a TCP connection."""

from __future__ import annotations

import errno
import functools
import socket

from oinetd.core.dial import Dialed, DialRequest
from oinetd.core.record import Ending
from oinetd.core.service import Service
from oinetd.lanes.python.udp.header import datagram_header
from oinetd.lanes.python.udp.plane import connect
from oinetd.lanes.python.udp.session import DatagramSession
from oinetd.model import SendProxy, SendProxyUdp
from oinetd.net.connect_result import unacknowledged_s
from oinetd.net.datagrams import HEADED_BYTES_MAX, Group
from oinetd.net.poller import LEVEL_READ, WRITABLE
from oinetd.preamble.proxy_protocol import Header
from oinetd.upstream import silence

__all__ = ["NOBODY", "PIECE_BYTES", "READS_MAX", "DatagramLeg", "StreamLeg"]

PIECE_BYTES = 16384
"""What one read from a stream takes at most, and so the longest datagram made of it: as rinetd does."""

READS_MAX = 16
"""Reads of one connection in one wake; the others get their turn, then it goes on."""

LAST_READS_MAX = 4
"""Batches that are still taken from a socket whose peer has gone: what came before the end belongs to the client."""

NOBODY = frozenset({errno.ECONNREFUSED, errno.ENOPROTOOPT})
"""Errors from the destination itself: nobody listens. Errors from routers concern single datagrams."""


class DatagramLeg(DatagramSession):
    """Datagrams in, datagrams out, one for one. `head` goes before those to the server; it may be empty."""

    __slots__ = ("head", "head_once")

    def connected(self, dialed: Dialed) -> None:
        self._make_head()
        super().connected(dialed)

    def go_on(self, held: list[bytes]) -> None:
        self._make_head()
        super().go_on(held)

    def replace_header(self, header: Header) -> None:
        super().replace_header(header)
        if self.sock is not None:
            self._make_head()

    def _make_head(self) -> None:
        """Make the PROXY header, if the server of the session expects one."""
        settings = self.service.settings
        self.head = b""
        if self.service.header_for(self.member) is SendProxy.V2:
            sender = self.home.batch.explain(self.key)
            self.head = datagram_header(self.home.sock, sender, self.live.record, settings, self.header)
        self.head_once = settings.send_proxy_udp is SendProxyUdp.FIRST

    async def connect(self) -> Dialed:
        request, plane = self.ask_for_server(), self.home.plane
        return await request.wait_for_names(plane.poller) or connect(request, plane.table, self.trail)

    def watch(self, sock: socket.socket) -> None:
        self.home.batch.prepare(sock)
        self.home.plane.poller.watch(sock.fileno(), self.on_upstream, LEVEL_READ)

    def begin_at_once(self, dialed: Dialed) -> None:
        """Begin with a leg that is there already."""
        self.service.registry.enter(self.live)
        self.home.plane.table.enter(self)
        self.tell_opened()
        if self.ended:  # a hook did not want it
            self.drop(dialed)
            return
        self.connected(dialed)

    def forward(self, group: Group) -> None:
        assert self.sock is not None
        meter = self.live.meter
        if self.head and not (self.head_once and meter.datagrams_up):
            sent = self.home.batch.send_headed(self.sock, group, self.head, once=self.head_once)
        else:
            sent = self.home.batch.send(self.sock, group)
        meter.bytes_up += sent.size
        meter.datagrams_up += sent.datagrams
        meter.datagrams_lost += group.length - sent.datagrams
        self.heard()
        self._note_refusal(sent.errno)

    def _note_refusal(self, code: int) -> None:
        """A send was answered with this errno, or 0."""
        if code in NOBODY:
            # Not now: the batch may still hold datagrams of others.
            self.home.plane.poller.again(functools.partial(self._told, code))

    def forward_held(self) -> None:
        if self.holds:
            self.forward_each(self.release_held())

    def forward_each(self, datagrams: list[bytes]) -> None:
        assert self.sock is not None
        meter, code = self.live.meter, 0
        for datagram in datagrams:
            head = b"" if self.head_once and meter.datagrams_up else self.head
            if head and len(head) + len(datagram) > HEADED_BYTES_MAX:
                meter.datagrams_lost += 1
                continue
            try:
                self.sock.sendmsg([head, datagram])
            except OSError as error:
                meter.datagrams_lost += 1
                code = error.errno or code
            else:
                meter.bytes_up += len(datagram)
                meter.datagrams_up += 1
        self.heard()
        self._note_refusal(code)

    def on_upstream(self, events: int) -> None:
        code = self._receive()
        if code:
            self._told(code)

    def _receive(self) -> int:
        """Give one batch to the client; the errno that the network told, or 0."""
        assert self.sock is not None
        batch = self.home.batch
        try:
            groups = batch.receive(self.sock, named=False)
        except OSError as error:
            return error.errno or errno.EIO
        code = batch.late_errno
        for group in groups:
            if self.request is not None:
                self._note_server_answer(self.request)
            elif self.address is not None:
                if not self.live.meter.datagrams_down:
                    silence.note_answered(self.service.destination, self.address, self.trail)
                self.service.destination.note_answer(self.address, self.home.plane.loop.time())
            self.send_down(group)
            self.heard_answer()
        return code

    def _note_server_answer(self, request: DialRequest) -> None:
        member, group = request.member, request.group
        if member is None or group is None or self.address is None:
            return
        if not self.live.meter.datagrams_down:
            silence.note_server_answered(group, member, self.address, self.trail)
        member.answered_at = self.home.plane.loop.time()

    def _told(self, code: int) -> None:
        """The network told of an error."""
        if code not in NOBODY or self.ended:
            return
        for _ in range(LAST_READS_MAX):
            before = self.live.meter.datagrams_down
            self._receive()
            if self.live.meter.datagrams_down == before:
                break
        member, group = self.member, self.service.group
        destination = member.destination if member is not None else self.service.destination
        if self.address is not None:
            destination.note_failed(self.address, code)
        destination.failed()
        if member is not None and group is not None:
            group.failed(member, code, by=self.live)
        self.end(Ending.UPSTREAM_RESET, code)


class StreamLeg(DatagramSession):
    """Datagrams in, a connection out: bytes follow bytes, and each read makes a datagram."""

    __slots__ = ()

    async def connect(self) -> Dialed:
        request = self.ask_for_server()
        dialed = await self.service.dialer.dial(request)
        self.live.record.tries = tuple(request.tries)
        return dialed

    def watch(self, sock: socket.socket) -> None:
        self.home.plane.poller.watch(sock.fileno(), self.on_upstream)

    def goes_on(self, service: Service, now: float) -> bool:
        """Only if the destination's host does not even acknowledge: a connection that takes what comes is used."""
        if self.sock is None or unacknowledged_s(self.sock) < self.patience_s(True):
            return False
        if not super().goes_on(service, now):
            return False
        if self.address is not None and self.member is None:
            service.destination.note_failed(self.address, errno.ETIMEDOUT)
        elif self.member is not None and self.service.group is not None:
            self.service.group.failed(self.member, errno.ETIMEDOUT)
        return True

    def patience_s(self, same: bool) -> float:
        return silence.ANSWERED_TIMES * silence.SILENCE_S

    def forward(self, group: Group) -> None:
        self.forward_each(self.home.batch.take(group))

    def forward_each(self, datagrams: list[bytes]) -> None:
        self.hold(datagrams)
        self.forward_held()

    def forward_held(self) -> None:
        """Write what waits, as far as the connection takes it."""
        if not self.holds:
            return
        assert self.sock is not None
        meter, held = self.live.meter, self.release_held()
        waiting = b"".join(held)
        try:
            sent = self.sock.send(waiting) if waiting else 0
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.end(Ending.UPSTREAM_RESET, error.errno or errno.EIO)
            return
        meter.bytes_up += sent
        if sent == len(waiting):
            meter.datagrams_up += len(held)
            self.heard()
            return
        if sent:
            self.heard()
        # A datagram counts when its last byte is taken; what is left of one stays at the head.
        while sent >= len(held[0]):
            sent -= len(held.pop(0))
            meter.datagrams_up += 1
        held[0] = held[0][sent:]
        self.hold(held)

    def on_upstream(self, events: int) -> None:
        if events & WRITABLE:
            self.forward_held()
        if not self.ended:
            self._read()

    def _read(self) -> None:
        """Read until there is no more, or the turn is over."""
        for _ in range(READS_MAX):
            if self.ended or self.sock is None:
                return
            try:
                piece = self.sock.recv(PIECE_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                self.end(Ending.UPSTREAM_RESET, error.errno or errno.EIO)
                return
            if not piece:
                self.end(Ending.UPSTREAM_CLOSED)
                return
            self._answer(piece)
        self.home.plane.poller.again(self._read)

    def _answer(self, piece: bytes) -> None:
        """One datagram for the client."""
        meter, sender = self.live.meter, self.home.batch.explain(self.key)
        if meter.throttle is not None and not meter.throttle.passes(1, len(piece)):
            meter.datagrams_lost += 1
            return
        try:
            self.home.sock.sendmsg([piece], sender.control, 0, sender.address)
        except OSError:
            meter.datagrams_lost += 1
        else:
            meter.bytes_down += len(piece)
            meter.datagrams_down += 1
        self.heard_answer()
