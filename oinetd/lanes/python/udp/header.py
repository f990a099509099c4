"""The PROXY header before the datagrams that a server gets: version 2, made once for a session. It is in no count."""

from __future__ import annotations

import socket

from oinetd.core.record import SessionRecord
from oinetd.model import ProxyTlv, Settings
from oinetd.net.datagrams import Sender
from oinetd.net.sockets import bound_address
from oinetd.preamble.proxy_protocol import UNIQUE_ID, Party, Tlv
from oinetd.preamble.proxy_writer import write_v2
from oinetd.preamble.unique_id import unique_id

__all__ = ["datagram_header"]


def datagram_header(sock: socket.socket, sender: Sender, record: SessionRecord, settings: Settings) -> bytes:
    """The header of the session `record`, whose client `sender` writes to `sock`."""
    tlvs = [Tlv(UNIQUE_ID, unique_id(record.id))] if ProxyTlv.UNIQUE_ID in settings.proxy_tlv else []
    source = Party(record.client, record.client_port)
    checksum = ProxyTlv.CRC32C in settings.proxy_tlv
    return write_v2(source, _reached(sock, sender), tlvs, checksum=checksum, datagram=True)


def _reached(sock: socket.socket, sender: Sender) -> Party:
    """The address of ours that the client writes to."""
    bound = bound_address(sock)
    for level, _, data in sender.control:
        if level == socket.IPPROTO_IP:
            return Party(socket.inet_ntop(socket.AF_INET, data[4:8]), bound.port)
        return Party(socket.inet_ntop(socket.AF_INET6, data[:16]), bound.port)
    return Party(bound.host, bound.port)
