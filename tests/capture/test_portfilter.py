"""The filter, run by the kernel itself: a datagram socket of the file system takes it as a packet socket does."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bench.capture.portfilter import NOTHING, PORTS_MAX, PortFilter, attachable
from bench.capture.ring import SO_ATTACH_FILTER
from bench.errors import BenchError
from tests.capture.packets import Packet

PORTS = [8080, 80, 443]


@contextmanager
def filtered(lines: list[tuple[int, int, int, int]]) -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, other:
        value, _program = attachable(lines)
        other.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, value)
        other.setblocking(False)
        yield one, other


def passed(data: bytes, port_filter: PortFilter) -> int | None:
    """How many bytes of a packet pass; None where it does not."""
    with filtered(port_filter.instructions()) as (one, other):
        try:
            one.send(data)
            return len(other.recv(65536))
        except (BlockingIOError, PermissionError):
            return None


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("ports", [(40000, 8080), (443, 40000), (40000, 80), (8080, 443)])
def test_either_end(version: int, ports: tuple[int, int]) -> None:
    hosts = ("10.0.0.1", "10.0.0.2") if version == 4 else ("fd00::1", "fd00::2")
    packet = Packet(1, b"x" * 300, source=(hosts[0], ports[0]), target=(hosts[1], ports[1]))
    assert passed(packet.data(), PortFilter(PORTS, 128, once=False)) == 128


@pytest.mark.parametrize("version", [4, 6])
def test_other_ports(version: int) -> None:
    hosts = ("10.0.0.1", "10.0.0.2") if version == 4 else ("fd00::1", "fd00::2")
    packet = Packet(1, b"x", source=(hosts[0], 40000), target=(hosts[1], 8081))
    assert passed(packet.data(), PortFilter(PORTS, 128, once=False)) is None


def test_other_protocols_and_fragments() -> None:
    whole = PortFilter(PORTS, 128, once=False)
    data = bytearray(Packet(1, b"x").data())
    assert passed(bytes(data), whole) is not None
    udp = bytearray(data)
    udp[9] = 17
    assert passed(bytes(udp), whole) is None
    fragment = bytearray(data)
    fragment[6:8] = struct.pack("!H", 100)
    assert passed(bytes(fragment), whole) is None
    assert passed(b"\x00" + bytes(data[1:]), whole) is None


def test_options_of_ipv4_move_the_ports() -> None:
    data = Packet(1, b"x").data()
    longer = bytes([0x46]) + data[1:20] + b"\1\1\1\1" + data[20:]
    assert passed(longer, PortFilter(PORTS, 128, once=False)) is not None


def test_as_many_ports_as_there_may_be() -> None:
    ports = range(9000, 9000 + PORTS_MAX)
    port_filter = PortFilter(ports, 128)
    assert all(0 <= jump <= 255 for line in port_filter.instructions() for jump in line[1:3])
    plain = PortFilter(ports, 128, once=False)
    assert passed(Packet(1, target=("10.0.0.1", ports[-1])).data(), plain) is not None
    assert passed(Packet(1, target=("10.0.0.1", ports[-1] + 1)).data(), plain) is None
    with pytest.raises(BenchError, match="1 to 40 ports"):
        PortFilter([*ports, 1], 128)
    with pytest.raises(BenchError, match="1 to 40 ports"):
        PortFilter([], 128)


def test_nothing_passes_nothing() -> None:
    with filtered(NOTHING) as (one, other):
        one.send(Packet(1).data())
        with pytest.raises(BlockingIOError):
            other.recv(100)
