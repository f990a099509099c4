"""A packet socket with a TPACKET_V3 ring: opened, waited for, emptied, and asked what it lost."""

from __future__ import annotations

import contextlib
import errno
import mmap
import select
import socket
import struct
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

from bench.capture.portfilter import NOTHING, PortFilter, attachable
from bench.errors import BenchError

if TYPE_CHECKING:
    from bench._native import Capture

__all__ = ["KernelCount", "Ring"]

SOL_PACKET = 263
PACKET_RX_RING = 5
PACKET_STATISTICS = 6
PACKET_VERSION = 10
TPACKET_V3 = 2
ETH_P_ALL = 0x0003
SO_ATTACH_FILTER = 26

FRAME_BYTES = 2048
"""Only the kernel's own reckoning needs it: packets of a V3 ring lie in a block one behind the other."""

RETIRE_MS = 100
"""After this long the kernel hands a block over that is not full."""


@dataclass
class KernelCount:
    """What the kernel tells of a packet socket: packets that passed the filter, and how many of them it dropped."""

    packets: int = 0
    drops: int = 0
    freezes: int = 0


class Ring:
    """`block_count` blocks of `block_bytes` (a multiple of the page), for all interfaces of this network namespace.

    The socket is cooked, so that packets begin with the network header whatever the interface is. Needs CAP_NET_RAW.
    """

    def __init__(self, packet_filter: PortFilter, block_bytes: int, block_count: int) -> None:
        if block_bytes % mmap.PAGESIZE or block_bytes % FRAME_BYTES or block_count < 1:
            raise BenchError(f"a block is a multiple of {mmap.PAGESIZE} bytes, and a ring has at least one")
        self.block_bytes = block_bytes
        self.block_count = block_count
        self._count = KernelCount()
        with contextlib.ExitStack() as stack:
            try:
                protocol = socket.htons(ETH_P_ALL)
                self.socket = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, protocol))
                value, _program = attachable(packet_filter.instructions())
                self.socket.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, value)
                self.socket.setsockopt(SOL_PACKET, PACKET_VERSION, TPACKET_V3)
                self.socket.setsockopt(SOL_PACKET, PACKET_RX_RING, self._request())
                self.map = stack.enter_context(mmap.mmap(self.socket.fileno(), block_bytes * block_count))
                self._read_statistics()  # of what came before the ring was there, and is not in it
            except OSError as error:
                raise BenchError(_explain(error)) from None
            stack.pop_all()

    def _request(self) -> bytes:
        frames = self.block_bytes // FRAME_BYTES * self.block_count
        return struct.pack("=7I", self.block_bytes, self.block_count, FRAME_BYTES, frames, RETIRE_MS, 0, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.map.close()
        self.socket.close()

    def wait(self, timeout_ms: int | None, also: int = -1) -> bool:
        """Wait for a block; True if one is ready. `also` is another descriptor that ends the wait."""
        poll = select.poll()
        poll.register(self.socket, select.POLLIN | select.POLLERR)
        if also >= 0:
            poll.register(also, select.POLLIN)
        return any(descriptor == self.socket.fileno() for descriptor, _ in poll.poll(timeout_ms))

    def drain(self, capture: Capture) -> int:
        """Take all blocks that are ready; how many they were."""
        return capture.drain(self.map, self.block_bytes)

    def finish(self, capture: Capture) -> None:
        """Take no more packets, and wait for the block that is being filled."""
        # Nothing passes this filter: the ring falls silent, and what is in it can be taken to the end.
        value, _program = attachable(NOTHING)
        self.socket.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, value)
        while self.drain(capture) or self.wait(3 * RETIRE_MS):
            pass

    def count(self) -> KernelCount:
        """Since the socket was opened; the kernel's own counters start again each time they are read."""
        packets, drops, freezes = self._read_statistics()
        self._count.packets += packets
        self._count.drops += drops
        self._count.freezes += freezes
        return self._count

    def _read_statistics(self) -> tuple[int, int, int]:
        packets, drops, freezes = struct.unpack("=3I", self.socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 12))
        return packets, drops, freezes


def _explain(error: OSError) -> str:
    if error.errno == errno.EPERM:
        return "a packet capture needs root (CAP_NET_RAW): use sudo"
    if error.errno in (errno.ENOMEM, errno.EINVAL):
        return f"the kernel does not give a ring of this size: {error.strerror}"
    return f"no packet capture here: {error}"
