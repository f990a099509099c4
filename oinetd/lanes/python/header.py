"""The PROXY header that a server gets before the client's bytes. Its bytes are in no count."""

from __future__ import annotations

import errno
import socket

from oinetd.core.record import SessionRecord
from oinetd.model import ProxyTlv, SendProxy, Settings
from oinetd.net.sockets import bound_address
from oinetd.preamble.proxy_protocol import AUTHORITY, UNIQUE_ID, Header, Party, Tlv
from oinetd.preamble.proxy_writer import passed_on, write_v1, write_v2
from oinetd.preamble.unique_id import unique_id

__all__ = ["send_header", "tlvs_for"]


def send_header(
    upstream: socket.socket,
    client: socket.socket,
    record: SessionRecord,
    settings: Settings,
    kind: SendProxy,
    accepted: Header | None = None,
) -> int:
    """Send the header for the session of `client` to its server, of this kind; 0 or an errno. `accepted` is what the
    client sent.

    It is the beginning of the first segment: if the client has sent something already, the kernel keeps the header
    until the client's bytes are behind it. Else it leaves at once: the server may be one that speaks first.
    """
    flags = socket.MSG_NOSIGNAL | (_MSG_MORE if _has_sent(client) else 0)
    header = _header(client, record, settings, kind, accepted)
    try:
        # An empty queue takes more than the longest header.
        return 0 if upstream.send(header, flags) == len(header) else errno.ENOBUFS
    except OSError as error:
        return errno.ECONNRESET if error.errno == errno.EPIPE else error.errno or errno.EIO


_MSG_MORE = 0x8000
"""Of Linux; the module `socket` has no name for it."""


def _has_sent(client: socket.socket) -> bool:
    """Whether bytes or a FIN of the client are there: they are passed on in this turn."""
    try:
        client.recv(1, socket.MSG_PEEK)
    except OSError:
        return False
    return True


def _header(
    client: socket.socket, record: SessionRecord, settings: Settings, kind: SendProxy, accepted: Header | None
) -> bytes:
    source = destination = None
    if accepted is not None:
        source, destination = accepted.source, accepted.destination
    elif client.family != socket.AF_UNIX:
        source, address = Party(record.client, record.client_port), bound_address(client)
        destination = Party(address.host, address.port)
        if record.route.connect.is_original:  # `redirect` has changed the address of the socket
            destination = Party(record.upstream, record.upstream_port)
    if kind is SendProxy.V1:
        return write_v1(source, destination)
    return write_v2(
        source, destination, tlvs_for(record, settings, accepted), checksum=ProxyTlv.CRC32C in settings.proxy_tlv
    )


def tlvs_for(record: SessionRecord, settings: Settings, accepted: Header | None) -> list[Tlv]:
    """The TLVs that the server of a session gets, but for the checksum; `accepted` is the header that the peer sent."""
    tlvs = list(passed_on(accepted.tlvs)) if accepted is not None and ProxyTlv.PASS in settings.proxy_tlv else []
    if ProxyTlv.UNIQUE_ID in settings.proxy_tlv and all(tlv.type != UNIQUE_ID for tlv in tlvs):
        tlvs.insert(0, Tlv(UNIQUE_ID, unique_id(record.id)))
    if ProxyTlv.AUTHORITY in settings.proxy_tlv and record.server_name and all(tlv.type != AUTHORITY for tlv in tlvs):
        tlvs.insert(0, Tlv(AUTHORITY, record.server_name.encode()))
    return tlvs
