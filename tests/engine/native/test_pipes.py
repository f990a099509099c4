"""Pipes and the budget of descriptors: they give way to sessions, and idle ones do not stay."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from tests.engine.native.plane import PATIENCE_S, Plane

SPLICE = 2
CHUNK = bytes(1 << 16)


def until(condition: Callable[[], object], plane: Plane) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        plane.rows += plane.hub.drain(4096)
        assert time.monotonic() < deadline, f"budget {plane.budget.used} used, {plane.budget.pipes} in pipes"
        time.sleep(0.002)


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        yield listener


def fill(sock: socket.socket) -> int:
    """Send until nothing more is taken."""
    sock.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += sock.send(CHUNK)
    sock.settimeout(PATIENCE_S)
    return sent


def count_after_end(sock: socket.socket) -> int:
    """How many bytes come until the end."""
    got = 0
    while part := sock.recv(1 << 20):
        got += len(part)
    return got


def stall(plane: Plane, senders: list[socket.socket], descriptors: int) -> list[int]:
    """Send through each pair, whose other end does not read, until pipes have `descriptors`; how much each sent."""
    sent = [0] * len(senders)

    def enough() -> bool:
        for number, sender in enumerate(senders):
            sent[number] += fill(sender)
        return plane.budget.pipes >= descriptors

    until(enough, plane)
    return sent


@pytest.mark.parametrize("threads", [1, 2])
def test_every_descriptor_can_become_a_sessions(
    make_plane: Callable[..., Plane], server: socket.socket, threads: int
) -> None:
    """Clients that do not read hold pipes; those who come later get the descriptors, and not a byte is lost."""
    plane = make_plane(threads=threads, relay=SPLICE)
    plane.budget.total = 32
    listening = plane.listen(server.getsockname())
    stuck = []
    for _ in range(6):
        client = plane.connect(listening)
        upstream = plane.own(server.accept()[0])
        upstream.settimeout(PATIENCE_S)
        stuck.append((client, upstream))
    amounts = stall(plane, [upstream for _, upstream in stuck], 12)
    assert plane.budget.used <= 32
    more = [plane.connect(listening) for _ in range(10)]
    for client in more:
        client.sendall(b"hello")
    server.settimeout(PATIENCE_S)
    for _ in more:
        upstream = plane.own(server.accept()[0])
        upstream.settimeout(PATIENCE_S)
        assert upstream.recv(5) == b"hello"
    assert plane.gate.live == 16
    assert (plane.budget.used, plane.budget.pipes) == (32, 0)
    for (client, upstream), sent in zip(stuck, amounts, strict=True):
        upstream.shutdown(socket.SHUT_WR)
        assert count_after_end(client) == sent


def test_pipes_leave_an_eighth_to_sessions(make_plane: Callable[..., Plane], server: socket.socket) -> None:
    plane = make_plane(relay=SPLICE)
    plane.budget.total = 16
    listening = plane.listen(server.getsockname())
    for _ in range(4):
        plane.connect(listening)
    stall(plane, [plane.own(server.accept()[0]) for _ in range(4)], 6)
    assert plane.budget.used == 14


def test_idle_pipes_are_closed_after_a_while(make_plane: Callable[..., Plane]) -> None:
    plane = make_plane(relay=SPLICE)
    pairs = [plane.wire() for _ in range(8)]
    stuck = stall(plane, [client for client, _, _ in pairs], 16)
    for (client, upstream, _), sent in zip(pairs, stuck, strict=True):
        client.shutdown(socket.SHUT_WR)
        assert count_after_end(upstream) == sent
    until(lambda: plane.budget.pipes == 0, plane)
    assert plane.budget.used == 0


def test_a_gate_takes_nothing_that_is_not_there(make_plane: Callable[..., Plane]) -> None:
    plane = make_plane()
    plane.budget.total = 5
    assert [plane.gate.enter() for _ in range(3)] == [True, True, False]
    assert (plane.budget.used, plane.gate.is_full, plane.gate.full) == (4, True, 1)
    plane.gate.leave()
    assert (plane.budget.used, plane.gate.is_full) == (2, False)
    plane.gate.leave()
