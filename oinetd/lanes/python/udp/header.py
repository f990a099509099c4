"""The PROXY header before the datagrams that a server gets: version 2. It is in no count."""

from __future__ import annotations

import socket

from oinetd.core.record import SessionRecord
from oinetd.lanes.python.header import tlvs_for
from oinetd.model import ProxyTlv, Settings
from oinetd.net.datagrams import Sender
from oinetd.net.sockets import bound_address
from oinetd.preamble.proxy_protocol import Header, Party
from oinetd.preamble.proxy_writer import write_v2

__all__ = ["datagram_header"]


def datagram_header(
    sock: socket.socket, sender: Sender, record: SessionRecord, settings: Settings, accepted: Header | None = None
) -> bytes:
    """The header of the session `record`, whose peer `sender` writes to `sock`, behind the header `accepted` if it
    writes one."""
    if accepted is not None:
        source, destination = accepted.source, accepted.destination
    else:
        source, destination = Party(record.client, record.client_port), _reached(sock, sender)
    checksum = ProxyTlv.CRC32C in settings.proxy_tlv
    return write_v2(source, destination, tlvs_for(record, settings, accepted), checksum=checksum, datagram=True)


def _reached(sock: socket.socket, sender: Sender) -> Party:
    """The address of ours that the client writes to."""
    bound = bound_address(sock)
    for level, _, data in sender.control:
        if level == socket.IPPROTO_IP:
            return Party(socket.inet_ntop(socket.AF_INET, data[4:8]), bound.port)
        return Party(socket.inet_ntop(socket.AF_INET6, data[:16]), bound.port)
    return Party(bound.host, bound.port)
