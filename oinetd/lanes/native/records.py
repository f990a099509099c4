"""What the reactors report, as records of sessions."""

from __future__ import annotations

from oinetd.core.record import SessionRecord
from oinetd.core.service import Service
from oinetd.lanes.native.plane import Row

__all__ = ["fill_record", "new_record"]

_MOVED_BY = ("", "copy", "splice", "auto")


def new_record(row: Row, service: Service) -> SessionRecord:
    """The record of a session as it begins."""
    return SessionRecord(row[1], service.route, row[5], row[6], row[4])


def fill_record(record: SessionRecord, row: Row, service: Service) -> SessionRecord:
    """Put the facts of a row into a record; nothing was relayed where no upstream took the connection."""
    if row[7]:
        record.upstream, record.upstream_port = row[7], row[8]
        record.engine = "native"
        record.relay = _MOVED_BY[row[15]] or service.settings.relay.value
    record.connect_s, record.duration_s = row[9], row[10]
    record.bytes_up, record.bytes_down = row[11], row[12]
    record.datagrams_up, record.datagrams_down, record.datagrams_lost, record.idle_s = row[16:20]
    return record
