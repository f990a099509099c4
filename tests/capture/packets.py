"""Packets, and the blocks of a TPACKET_V3 ring that hold them, made by hand from the kernel's layout."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Sequence
from dataclasses import dataclass

FIN, SYN, RST, ACK = 1, 2, 4, 16
BLOCK_HEADER_BYTES = 48
PACKET_HEADER_BYTES = 48
ADDRESS_BYTES = 20
ALIGNMENT = 16
STATUS_USER, STATUS_LOSING = 1, 4


@dataclass(frozen=True)
class Packet:
    """A TCP segment in IPv4 or IPv6; `captured` cuts it, None leaves it whole. `wire` is what it was on the wire."""

    seq: int
    payload: bytes = b""
    flags: int = ACK
    ack: int = 0
    source: tuple[str, int] = ("10.0.1.2", 40000)
    target: tuple[str, int] = ("10.0.1.1", 8080)
    captured: int | None = None
    claimed: int | None = None
    """The length of payload that the IP header states, where it is not that of `payload`."""

    def data(self) -> bytes:
        header = struct.pack(
            "!HHIIBBHHH",
            self.source[1],
            self.target[1],
            self.seq % 2**32,
            self.ack % 2**32,
            8 << 4,
            self.flags,
            512,
            0,
            0,
        )
        tcp = header + b"\1" * 12 + self.payload
        source, target = ipaddress.ip_address(self.source[0]), ipaddress.ip_address(self.target[0])
        length = len(self.payload) if self.claimed is None else self.claimed
        if source.version == 4:
            ip = struct.pack("!BBHHHBBH", 0x45, 0, (52 + length) % 65536, 0, 0x4000, 64, 6, 0)
        else:
            ip = struct.pack("!IHBB", 6 << 28, (32 + length) % 65536, 6, 64)
        return ip + source.packed + target.packed + tcp

    @property
    def wire(self) -> int:
        return len(self.data()) - len(self.payload) + (len(self.payload) if self.claimed is None else self.claimed)


def block(
    packets: Sequence[Packet | bytes], *, size: int | None = None, status: int = STATUS_USER, gap: int = 0
) -> bytearray:
    """A block as the kernel hands it over; `gap` bytes lie between packets."""
    content = bytearray()
    for number, packet in enumerate(packets):
        data = packet if isinstance(packet, bytes) else packet.data()
        wire = len(data) if isinstance(packet, bytes) else packet.wire
        kept = data if isinstance(packet, bytes) or packet.captured is None else data[: packet.captured]
        place = -(-(PACKET_HEADER_BYTES + ADDRESS_BYTES) // ALIGNMENT) * ALIGNMENT
        used = -(-(place + len(kept)) // ALIGNMENT) * ALIGNMENT + gap
        following = 0 if number == len(packets) - 1 else used
        header = struct.pack("=6I2H", following, 1700000000, number, len(kept), wire, 0, place, place)
        family = 0x0800 if data[:1] and data[0] >> 4 == 4 else 0x86DD
        address = struct.pack(
            "=HHiHBB8s", 17, int.from_bytes(struct.pack("!H", family), "little"), 2, 1, 0, 6, b"\2" * 6
        )
        entry = header.ljust(PACKET_HEADER_BYTES, b"\0") + address
        content += (entry.ljust(place, b"\0") + kept).ljust(used, b"\0")
    length = BLOCK_HEADER_BYTES + len(content)
    description = struct.pack("=IIIIIIQ", 1, 0, status, len(packets), BLOCK_HEADER_BYTES, length, 1)
    whole = bytearray(description.ljust(BLOCK_HEADER_BYTES, b"\0") + content)
    return whole.ljust(size, b"\0") if size is not None else whole
