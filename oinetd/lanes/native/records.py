"""What the reactors report, as records of sessions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from oinetd.core.preamble import InvalidPreambles
from oinetd.core.record import Ending, SessionRecord, Try, alpn_text
from oinetd.core.service import Service
from oinetd.net.address import UNIX_CLIENT
from oinetd.net.unix_sockets import Credentials
from oinetd.preamble.progress import Fault, Invalid
from oinetd.upstream.member import Member

if TYPE_CHECKING:
    from oinetd import _fastpath
    from oinetd.lanes.native.listener import ReactorListener

__all__ = [
    "FOREIGN",
    "InForce",
    "address_of",
    "fill_record",
    "new_record",
    "set_names",
    "split_protocols",
    "tell_invalid",
    "upstream_of",
]

_INVALID: Mapping[Ending | None, str] = {
    Ending.BAD_PROXY_HEADER: "an invalid PROXY header",
    Ending.BAD_TLS_HELLO: "a broken TLS hello",
}
FOREIGN: Final = 0xFFFF
"""In place of the number of a unix socket's address: it is none of this configuration."""
_MOVED_BY = ("", "copy", "splice", "auto")


class InForce(NamedTuple):
    """A policy that reactors may still have, by its tag: its listener and the service that it was made from.

    `servers` are those of its group, by the tags in records.
    """

    listener: ReactorListener
    service: Service
    policy: _fastpath.Policy
    servers: Mapping[int, Member]


def new_record(native: _fastpath.Record, service: Service, known: SessionRecord | None = None) -> SessionRecord:
    """The record of a session as it begins. `known` has what another process said of it."""
    record = SessionRecord(native.id, service.route, native.client, native.client_port, native.started)
    if native.credentials is not None:
        record.credentials = Credentials(*native.credentials)
    if service.group is not None:
        record.group = service.group.name
    if known is not None:
        record.upstream, record.server, record.tries = known.upstream, known.server, known.tries
    if native.peer is not None:
        _introduce(record, native)
    if native.hello is not None:
        set_names(record, *native.hello)
    return record


def _introduce(record: SessionRecord, native: _fastpath.Record) -> None:
    """The client is the one in the header that the peer sent."""
    assert native.peer is not None
    record.client, record.client_port = native.client, native.client_port
    record.peer, record.peer_port = native.peer


def split_protocols(protocols: bytes) -> list[bytes]:
    """Protocols that each have a length byte before them."""
    found = []
    while protocols:
        found.append(protocols[1 : 1 + protocols[0]])
        protocols = protocols[1 + protocols[0] :]
    return found


def set_names(record: SessionRecord, server_name: str, protocols: bytes) -> None:
    """What the TLS hello wants. The last one of the protocols may be cut."""
    record.server_name, record.alpn = server_name, alpn_text(split_protocols(protocols))


def tell_invalid(record: SessionRecord, native: _fastpath.Record, preambles: InvalidPreambles) -> None:
    """Say what was wrong with a PROXY header or a TLS hello, if that was the end."""
    if (what := _INVALID.get(record.ending)) is not None:
        found = Invalid(Fault(native.server >> 32), native.server & 0xFFFFFFFF)
        preambles.tell(record.route, record.client, what, str(found))


def upstream_of(native: _fastpath.Record, policy: _fastpath.Policy) -> tuple[str, int]:
    """The address of the destination in a reactor's record."""
    return address_of(policy, native.upstream, native.upstream_port, native.server)


def address_of(policy: _fastpath.Policy, host: str, port: int, server: int) -> tuple[str, int]:
    """An address of a reactor's record; of a unix socket it has only the number, in place of a port.

    It is empty if another process connected to a unix socket of which this configuration knows nothing.
    """
    if host != UNIX_CLIENT:
        return host, port
    return ("", 0) if port == FOREIGN else policy.address(port, server)


def fill_record(record: SessionRecord, native: _fastpath.Record, in_force: InForce) -> SessionRecord:
    """Put the facts of a reactor's record into a record; nothing was relayed if no upstream accepted the connection."""
    policy, servers = in_force.policy, in_force.servers
    if native.upstream:
        if (upstream := upstream_of(native, policy))[0]:  # else it is the one that another process said
            record.upstream, record.upstream_port = upstream
        record.engine = "native"
        record.relay = _MOVED_BY[native.moved_by] or in_force.service.settings.relay.value
    if native.peer is not None and not record.peer:
        _introduce(record, native)
    if native.hello is not None and not (record.server_name or record.alpn):
        set_names(record, *native.hello)
    record.connect_s, record.duration_s = native.connect_s, native.duration_s
    record.bytes_up, record.bytes_down = native.bytes_up, native.bytes_down
    record.datagrams_up, record.datagrams_down = native.datagrams_up, native.datagrams_down
    record.datagrams_lost, record.idle_s = native.datagrams_lost, native.idle_s
    if native.tries:
        record.tries = tuple(
            Try(*address_of(policy, host, port, server), code, servers[server].name if server else "")
            for host, port, code, server in native.tries
        )
    if native.upstream and (native.server or record.server):  # of an invalid header `server` is the fault
        record.server = servers[native.server].name if native.server else record.server
        record.tries = (*record.tries, Try(record.upstream, record.upstream_port, 0, record.server))
    return record
