"""A network of the test's own: two ends of a cable, one with addresses, the other for frames made by hand."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from typing import NamedTuple

from tests.udp.rig import PATIENCE_S

__all__ = ["FOUR", "SIX", "Cable", "Heard", "own_network"]

FOUR, SIX = "10.9.0.1", "fd09::1"
"""The addresses of the near end; the host at the far end is 10.9.0.2 and fd09::2."""

NEW_NETWORK = 0x40000000
"""CLONE_NEWNET of linux/sched.h; `os.unshare` comes with Python 3.12."""
FRAME_BYTES = 2048
IPV4, IPV6, UDP = 0x0800, 0x86DD, 17


class Heard(NamedTuple):
    """A UDP datagram that arrived at the far end."""

    source: tuple[str, int]
    destination: tuple[str, int]
    data: bytes


def own_network() -> contextlib.AbstractContextManager[Cable]:
    """The calling thread, and those that it starts, are in a network namespace of their own meanwhile."""
    return _own_network()


@contextlib.contextmanager
def _own_network() -> Iterator[Cable]:
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        if libc.unshare(NEW_NETWORK):
            raise OSError(ctypes.get_errno(), "unshare")
        try:
            _run("link set lo up")
            _run("link add near type veth peer name far")
            for end in ("near", "far"):
                _run(f"link set {end} up")
            _run(f"addr add {FOUR}/24 brd + dev near")
            _run(f"addr add {SIX}/64 dev near nodad")
            _wait_for_link()
            with Cable() as cable:
                _run(f"neigh add 10.9.0.2 lladdr {cable.far_mac.hex(':')} dev near")
                _run(f"neigh add fd09::2 lladdr {cable.far_mac.hex(':')} dev near")
                yield cable
        finally:
            libc.setns(before, NEW_NETWORK)
    finally:
        os.close(before)


def _wait_for_link() -> None:
    """The kernel tells the network layers of a link that is up some time after the command that brings it up."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        shown = subprocess.run(["ip", "addr", "show", "dev", "near"], check=True, capture_output=True, text=True).stdout
        if "state UP" in shown and "tentative" not in shown.partition(SIX)[2].partition("\n")[0]:
            return
    raise AssertionError(f"the link is not up after {PATIENCE_S} s: {shown}")


def _run(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True)


class Cable:
    """The far end."""

    def __init__(self) -> None:
        self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self._sock.setblocking(False)
        self._sock.bind(("far", 0))
        self.far_mac = self._sock.getsockname()[4]
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as near:
            near.bind(("near", 0))
            self._near_mac = near.getsockname()[4]

    def __enter__(self) -> Cable:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def run(self, command: str) -> None:
        """`ip` with these words."""
        _run(command)

    def send(self, source: tuple[str, int], to: tuple[str, int], data: bytes, *, broadcast: bool = False) -> None:
        """Have a datagram arrive at the near end, with whatever source."""
        if ":" in to[0]:
            kind, packet = IPV6, _packet6(source, to, data)
        else:
            kind, packet = IPV4, _packet4(source, to, data)
        receiver = b"\xff" * 6 if broadcast else self._near_mac
        self._sock.send(receiver + self.far_mac + struct.pack("!H", kind) + packet)

    async def heard(self) -> Heard:
        """The next datagram that comes out of the far end."""
        readable = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(self._sock.fileno(), readable.set)
        try:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    await readable.wait()
                    readable.clear()
                    while (found := self._read()) is not None:
                        if found is not _OTHER:
                            return found
        finally:
            loop.remove_reader(self._sock.fileno())

    def _read(self) -> Heard | None:
        try:
            frame, (_, _, kind, _, _) = self._sock.recvfrom(FRAME_BYTES)
        except BlockingIOError:
            return None
        return _OTHER if kind == socket.PACKET_OUTGOING else _parsed(frame)


_OTHER = Heard(("", 0), ("", 0), b"")


def _parsed(frame: bytes) -> Heard:
    (kind,) = struct.unpack_from("!H", frame, 12)
    packet = frame[14:]
    if kind == IPV4 and packet[9] == UDP:
        hosts = [socket.inet_ntoa(packet[at : at + 4]) for at in (12, 16)]
        datagram = packet[(packet[0] & 15) * 4 :]
    elif kind == IPV6 and packet[6] == UDP:
        hosts = [socket.inet_ntop(socket.AF_INET6, packet[at : at + 16]) for at in (8, 24)]
        datagram = packet[40:]
    else:
        return _OTHER
    ports = struct.unpack_from("!HHH", datagram)
    return Heard((hosts[0], ports[0]), (hosts[1], ports[1]), datagram[8 : ports[2]])


def _sum(data: bytes) -> int:
    """The Internet checksum."""
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def _datagram(pseudo: bytes, source_port: int, port: int, data: bytes) -> bytes:
    size = 8 + len(data)
    head = struct.pack("!HHHH", source_port, port, size, 0)
    checksum = _sum(pseudo + struct.pack("!II", size, UDP) + head + data) or 0xFFFF
    return head[:6] + struct.pack("!H", checksum) + data


def _packet6(source: tuple[str, int], to: tuple[str, int], data: bytes) -> bytes:
    hosts = socket.inet_pton(socket.AF_INET6, source[0]) + socket.inet_pton(socket.AF_INET6, to[0])
    datagram = _datagram(hosts, source[1], to[1], data)
    return struct.pack("!IHBB", 6 << 28, len(datagram), UDP, 64) + hosts + datagram


def _packet4(source: tuple[str, int], to: tuple[str, int], data: bytes) -> bytes:
    hosts = socket.inet_aton(source[0]) + socket.inet_aton(to[0])
    datagram = _datagram(hosts, source[1], to[1], data)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(datagram), 0, 0, 64, UDP, 0) + hosts
    return head[:10] + struct.pack("!H", _sum(head)) + head[12:] + datagram
