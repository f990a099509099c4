"""Packets with sources, ports and flags that no honest program sends, over a raw socket."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
from typing import Final

__all__ = ["Frames"]

HERE: Final = "127.0.0.1"
SOURCES: Final = ("0.0.0.0", "10.66.0.1", "127.0.0.1", "203.0.113.7", "224.0.0.1", "240.0.0.1", "255.255.255.255")
PORTS: Final = (0, 1, 7, 19, 7001, 7005, 65535)
"""Also of oinetd's listeners; not of the servers: two echoes that answer each other are no fault of a relay."""
SYN, FIN, RST, ACK = 2, 1, 4, 16


class Frames:
    """Sends forged packets; `choice` makes them."""

    def __init__(self, choice: random.Random) -> None:
        self._choice = choice
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)

    def send(self, count: int, tcp_ports: tuple[int, ...], udp_port: int) -> None:
        """Send `count` packets; some the kernel does not take."""
        for _ in range(count):
            source = self._choice.choice(SOURCES)
            if self._choice.random() < 0.5:
                protocol, packet = socket.IPPROTO_UDP, self._datagram(udp_port)
            else:
                protocol, packet = socket.IPPROTO_TCP, self._segment(source, tcp_ports)
            head = struct.pack(
                "!BBHHHBBH4s4s",
                *(0x45, 0, 20 + len(packet), self._choice.getrandbits(16), 0, 64, protocol, 0),
                *(socket.inet_aton(source), socket.inet_aton(HERE)),
            )
            with contextlib.suppress(OSError):
                self._socket.sendto(head + packet, (HERE, 0))

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _datagram(self, port: int) -> bytes:
        """Its length is often not that of its data; without a checksum, as UDP allows."""
        data = self._choice.randbytes(self._choice.choice((0, 1, 11, 13, 1400)))
        length = 8 + len(data) + self._choice.choice((0, 0, 0, -8, 1, 60_000))
        return struct.pack("!HHHH", self._choice.choice(PORTS), port, length, 0) + data

    def _segment(self, source: str, ports: tuple[int, ...]) -> bytes:
        """A segment without data, with any flags and numbers."""
        flags = self._choice.choice((SYN, SYN, ACK, RST, FIN | ACK, SYN | FIN, SYN | RST, 0, 63))
        numbers = self._choice.getrandbits(32), self._choice.getrandbits(32)
        ends = self._choice.choice((*PORTS, self._choice.randint(32768, 60999))), self._choice.choice(ports)
        first = struct.pack("!HHIIBBHHH", *ends, *numbers, 0x50, flags, 65535, 0, 0)
        pseudo = socket.inet_aton(source) + socket.inet_aton(HERE) + struct.pack("!BBH", 0, socket.IPPROTO_TCP, 20)
        total = sum(struct.unpack("!16H", pseudo + first))
        total = (total & 0xFFFF) + (total >> 16)
        checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
        return struct.pack("!HHIIBBHHH", *ends, *numbers, 0x50, flags, 65535, checksum, 0)
