"""The upstream socket of a TCP connection that is forwarded over UDP: when it is replaced by one to another address."""

from __future__ import annotations

import socket

from oinetd.core.dial import DialRequest
from oinetd.lanes.python.udp.plane import DatagramPlane, connect
from oinetd.net.sockets import Address
from oinetd.upstream.member import Member
from oinetd.upstream.silence import Trail, note_answered, note_server_answered, patience_s

__all__ = ["Way"]


class Way:
    """Where the datagrams of one connection go. `address` is that of the moment."""

    def __init__(self, plane: DatagramPlane, request: DialRequest, address: Address) -> None:
        self.address = address
        self._plane = plane
        self._request = request
        self._destination = request.destination
        self._trail = Trail()
        self._asked = 0.0
        self._answered = False
        self._known = self._places()

    def ask(self, now: float, timeout_s: float) -> socket.socket | None:
        """The client writes: a socket to another address, if the present one has been silent for too long."""
        if not self._asked:
            self._asked = now
            return None
        if self._request.member is not None:
            return self._ask_server(self._request.member, now, timeout_s)
        places = self._places()
        same = places == self._known
        if now - self._asked < patience_s(self._trail, self._answered, timeout_s, same) or not places[0]:
            return None
        self._destination.look_up_again()
        if same and len(places[0]) == 1:
            self._trail = self._trail._replace(rounds=self._trail.rounds + 1)
            return None
        trail = self._trail.leave(self.address, self._asked, places[0], same)
        dialed = connect(self._request, self._plane.table, trail)
        self._asked = now
        if dialed.upstream is None or dialed.address is None:
            return None
        self._trail, self._known, self._answered = trail.arrive(dialed.address), places, False
        self.address = dialed.address
        return dialed.upstream

    def _ask_server(self, member: Member, now: float, timeout_s: float) -> socket.socket | None:
        """A socket to another server of the group."""
        group = self._request.group
        if group is None or now - self._asked < patience_s(self._trail, self._answered, timeout_s, True):
            return None
        self._trail = self._trail.leave_server(member, self._asked, len(group.members))
        dialed = connect(self._request, self._plane.table, self._trail)
        self._asked = now
        if dialed.upstream is None or dialed.address is None:
            return None
        self._answered = False
        self.address = dialed.address
        return dialed.upstream

    def answered(self, now: float) -> None:
        """Datagrams came from the address."""
        self._asked = 0.0
        member, group = self._request.member, self._request.group
        if member is not None and group is not None:
            if not self._answered:
                self._answered = True
                note_server_answered(group, member, self.address, self._trail)
            self._trail = Trail()
            member.answered_at = now
            return
        if not self._answered:
            self._answered = True
            note_answered(self._destination, self.address, self._trail)
        self._trail = Trail()
        self._destination.note_answer(self.address, now)

    def refused(self, code: int) -> None:
        """Nobody listens at the address."""
        member, group = self._request.member, self._request.group
        if member is not None and group is not None:
            member.destination.note_failed(self.address, code)
            member.destination.failed()
            group.failed(member, code, by=self)
            return
        self._destination.note_failed(self.address, code)
        self._destination.failed()

    def _places(self) -> tuple[tuple[Address, ...], tuple[Address, ...]]:
        """Where a socket may write to and from now."""
        if self._request.group is not None:
            return (), ()
        return self._destination.at(self._request.port), self._request.sources
