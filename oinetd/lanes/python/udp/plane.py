"""What all UDP listeners of a forwarder have in common."""

from __future__ import annotations

import asyncio
import errno
import socket

from oinetd.core.admission import Gate
from oinetd.core.dial import UNRESOLVED, Dialed, DialRequest
from oinetd.core.record import Ending
from oinetd.lanes.python.udp.search import search_datagrams
from oinetd.lanes.python.udp.table import SessionTable
from oinetd.model import EngineChoice, Settings
from oinetd.net.datagrams import Batch, new_batch
from oinetd.net.options import ConnectOptions
from oinetd.net.poller import Poller
from oinetd.net.sockets import connect_datagrams, is_numeric, open_datagrams
from oinetd.upstream.loops import LOOP_ERRNO
from oinetd.upstream.silence import Trail, in_order

__all__ = ["NOWHERE", "DatagramPlane", "connect"]


class DatagramPlane:
    """The sessions of one forwarder and the means to serve them, on one loop; `gate` counts UDP sessions."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, poller: Poller, tasks: set[asyncio.Task[None]], gate: Gate
    ) -> None:
        self.loop = loop
        self.poller = poller
        self.tasks = tasks
        self.table = SessionTable(loop, gate)
        self._batches: dict[bool, Batch] = {}

    def batch_for(self, settings: Settings) -> Batch:
        """The batch for sockets that are served by `settings`; one, for it is empty between two wakes."""
        native = settings.engine is not EngineChoice.PYTHON
        batch = self._batches.get(native)
        if batch is None:
            batch = self._batches[native] = new_batch(native=native)
        return batch


NOWHERE = Trail()

_SHORTAGE = frozenset({errno.EMFILE, errno.ENFILE})


def connect(request: DialRequest, table: SessionTable, trail: Trail = NOWHERE) -> Dialed:
    """A UDP socket connected to the destination, or to a server of the group, which is then `request.member`. Nothing
    is sent, so that any address with a route will do, but for those that the guard refuses.

    `oinetd.upstream.address_order` says which address is tried first; one that refused datagrams counts as failed, and
    those that the client has left, by its `trail`, come after the others.
    If no descriptor is left, the session that has been silent for longest gives its own.
    """
    if request.group is not None:
        return search_datagrams(request, lambda part: connect(part, table), trail.server)
    destination, guard = request.destination, request.guard
    last = UNRESOLVED
    if request.source_host is not None and not request.source_host.resolved:
        return last
    for address in in_order(destination.order(request.port), trail.left):
        local = request.source_for(address)
        if request.source_host is not None and local is None:
            if last.address is None:
                last = Dialed(None, address, Ending.BIND_FAILED, errno.EAFNOSUPPORT)
            continue
        if guard is not None and guard.refuses(address):
            last = Dialed(None, address, Ending.CONNECT_FAILED, LOOP_ERRNO)
            continue
        try:
            sock = _open(address.family, table, request.options)
        except OSError as error:
            return Dialed(None, address, Ending.SOCKET_FAILED, error.errno or 0)
        failed = Ending.BIND_FAILED
        try:
            if local is not None:
                sock.bind(local.sockaddr)
            failed = Ending.CONNECT_FAILED
            connect_datagrams(sock, address, may_broadcast=is_numeric(destination.host))
        except OSError as error:
            sock.close()
            last = Dialed(None, address, failed, error.errno or 0)
            if failed is Ending.CONNECT_FAILED:
                destination.note_failed(address, last.errno)
            continue
        return Dialed(sock, address)
    destination.failed()
    return last


def _open(family: int, table: SessionTable, options: ConnectOptions) -> socket.socket:
    try:
        return open_datagrams(family, options)
    except OSError as error:
        if error.errno not in _SHORTAGE or not table.displace():
            raise
        return open_datagrams(family, options)
