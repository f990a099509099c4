"""Connections of the Python lane on their way to another process, and what is told of them there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from oinetd.core.engine import COUNTERS, Engine, Leaving
from oinetd.core.lane import Departing
from oinetd.core.record import SessionRecord, Try
from oinetd.core.registry import Live
from oinetd.core.service import Service
from oinetd.net.unix_sockets import Credentials

__all__ = ["StreamDeparture", "adopted_record", "service_of", "take_out"]

_TEXTS: Final = ("upstream", "engine", "relay", "peer", "server_name", "alpn", "group", "server")
_NUMBERS: Final = ("upstream_port", "peer_port")


def record_document(record: SessionRecord) -> dict[str, Any]:
    """The facts of a session that began here, for JSON."""
    credentials = record.credentials
    return {
        "id": record.id,
        "client": [record.client, record.client_port],
        "started": record.started,
        "connect_s": record.connect_s,
        "credentials": None if credentials is None else list(credentials),
        "tries": [list(each) for each in record.tries],
        **{name: getattr(record, name) for name in (*_TEXTS, *_NUMBERS)},
    }


def adopted_record(state: Mapping[str, Any], service: Service) -> SessionRecord:
    """The record of a session of another process. Raises `ValueError`, `TypeError` or `KeyError`."""
    host, port = state["client"]
    record = SessionRecord(int(state["id"]), service.route, str(host), int(port), float(state["started"]))
    record.connect_s = float(state["connect_s"])
    if state["credentials"] is not None:
        record.credentials = Credentials(*map(int, state["credentials"]))
    record.tries = tuple(Try(str(a), int(p), int(code), str(server)) for a, p, code, server in state["tries"])
    for name in _TEXTS:
        setattr(record, name, str(state[name]))
    for name in _NUMBERS:
        setattr(record, name, int(state[name]))
    return record


def service_of(listening: Service, state: Mapping[str, Any]) -> Service | None:
    """The service of a listener for a session of another process; None if the listener has none for it."""
    if listening.names is None:
        return listening
    protocols = str(state["alpn"]).encode().split(b",")
    return listening.names.choose(str(state["server_name"]), protocols)


class StreamDeparture:
    """A session whose relay stands still; see `oinetd.core.lane.Departing`."""

    def __init__(self, live: Live, service: Service, leaving: Leaving) -> None:
        self._live = live
        self._service = service
        self._leaving = leaving

    @property
    def id(self) -> int:
        return self._live.record.id

    @property
    def descriptors(self) -> tuple[int, int]:
        return self._leaving.descriptors

    @property
    def pending(self) -> tuple[bytes, bytes]:
        return self._leaving.pending

    def state(self) -> dict[str, Any]:
        live = self._live
        live.note_upstream()
        return {
            **record_document(live.record),
            "bind": str(self._service.route.bind),
            "began_us": round(live.since * 1e6),
            "moved_at_us": round(live.meter.moved_at * 1e6),
            "counts": [getattr(live.meter, name) for name in COUNTERS],
            "relayed": self._leaving.state(),
        }

    def release(self) -> None:
        self._live.relaying = None  # until its task has ended it is waited for: its counts still go down
        self._leaving.release()

    def put_back(self) -> None:
        self._leaving.put_back()


def take_out(sessions: Iterable[Live], at_most: int) -> tuple[list[Departing], int]:
    """Let connections stand still; the second value is how many of the others may be able to soon."""
    by_meter = {live.meter: live for live in sessions if not live.datagrams}
    engines: dict[Engine, None] = {}
    for live in by_meter.values():
        if live.relaying is not None:
            engines[live.relaying[0]] = None
    found: list[Departing] = []
    for engine in engines:
        for leaving in engine.take_out(at_most - len(found)):
            relaying = by_meter[leaving.meter].relaying
            assert relaying is not None
            found.append(relaying[1](leaving))
    return found, len(by_meter) - len(found)
