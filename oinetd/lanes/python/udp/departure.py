"""UDP sessions of the Python lane on their way to another process, and those that come from one."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

from oinetd.core.engine import COUNTERS
from oinetd.lanes.python.udp.home import Home, places_of
from oinetd.lanes.python.udp.session import DatagramSession
from oinetd.net.datagrams import name_of, sender_of
from oinetd.net.sockets import Address, bound_address
from oinetd.preamble.progress import Invalid
from oinetd.preamble.proxy_protocol import Header, feed_datagram
from oinetd.preamble.proxy_writer import passed_on, write_v2

__all__ = ["DatagramDeparture", "header_in", "key_in", "take_up"]


class DatagramDeparture:
    """A session that its listener has let go of; see `oinetd.core.lane.Departing`."""

    def __init__(self, session: DatagramSession, sock: socket.socket) -> None:
        self._session = session
        self._sock = sock
        self._held = session.release_held()
        home = session.home
        home.plane.poller.forget(sock.fileno())
        home.plane.table.leave(session)
        home.let_go(session)

    @property
    def id(self) -> int:
        return self._session.live.record.id

    @property
    def descriptors(self) -> tuple[int]:
        return (self._sock.fileno(),)

    @property
    def pending(self) -> tuple[bytes, bytes]:
        return b"".join(self._held), b""

    def state(self) -> dict[str, Any]:
        session, record = self._session, self._session.live.record
        meter = session.live.meter
        return {
            "id": record.id,
            "started": record.started,
            "started_us": round(session.live.since * 1e6),
            "connect_s": record.connect_s,
            "last_ms": round(session.last * 1e3),
            "asked_ms": round(session.asked * 1e3),
            "answered": session.answered,
            "rounds": session.trail.rounds,
            "errno": 0,
            "key": name_of(session.home.batch.explain(session.key)).hex(),
            "counts": [getattr(meter, name) for name in COUNTERS],
            "client": [record.client, record.client_port],
            "server": record.server,
            "header": _written(session.header),
            "held": [len(datagram) for datagram in self._held],
            "bind": str(session.service.route.bind),
            "socket": str(bound_address(session.home.sock)),
        }

    def release(self) -> None:
        session = self._session
        session.ended = True
        if session.request is not None:
            session.request.leave_server()
        self._sock.close()
        session.service.registry.depart(session.live)

    def put_back(self) -> None:
        self._session.go_on(self._held)


def take_up(session: DatagramSession, state: Mapping[str, Any], fd: int, pending: bytes) -> list[bytes]:
    """Let a fresh session be the one that another process had; returns the datagrams that it held.

    Raises `ValueError`, `TypeError`, `KeyError` or `OSError`; the descriptor is the caller's then.
    """
    live, record = session.live, session.live.record
    sizes = [int(size) for size in state.get("held", ())]
    if any(size < 0 for size in sizes) or sum(sizes) != len(pending):
        raise ValueError("the datagrams are not as long as said")
    record.id, record.started = int(state["id"]), float(state["started"])
    record.connect_s = float(state.get("connect_s", 0.0))
    record.server = str(state.get("server", ""))
    live.since = int(state["started_us"]) / 1e6
    counts = [int(count) for count in state["counts"]]
    if len(counts) != len(COUNTERS):
        raise ValueError("not the counts of a session")
    live.meter.count_on(counts)
    session.answered, session.asked = bool(state["answered"]), int(state["asked_ms"]) / 1e3
    session.last = live.meter.moved_at = int(state["last_ms"]) / 1e3
    session.trail = session.trail._replace(rounds=int(state["rounds"]))
    session.known = places_of(session.service)
    with socket.socket(fileno=fd) as sock:
        try:
            session.address = Address(sock.family, sock.getpeername())
        finally:
            sock.detach()
    session.sock = socket.socket(fileno=fd)
    session.sock.setblocking(False)
    record.upstream, record.upstream_port = session.address.host, session.address.port
    record.engine, record.relay = "python", "copy"
    session.adopted()
    at, held = 0, []
    for size in sizes:
        held.append(pending[at : at + size])
        at += size
    return held


def _written(header: Header | None) -> str:
    """A header of a peer, for another process; empty if it wrote none."""
    if header is None:
        return ""
    return write_v2(header.source, header.destination, passed_on(header.tlvs), datagram=True).hex()


def header_in(state: Mapping[str, Any]) -> Header | None:
    """The header of a session's peer; None if it wrote none. Raises `ValueError` if it is none."""
    if not state.get("header"):
        return None
    found = feed_datagram(bytes.fromhex(state["header"]))
    if isinstance(found, Invalid):
        raise ValueError("not a header")
    return found


def key_in(home: Home, state: Mapping[str, Any]) -> Any:
    """The key of a session's client, as the batch of its listener has it."""
    return home.batch.name(sender_of(bytes.fromhex(state["key"])))
