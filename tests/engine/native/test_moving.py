"""Connections that change their reactor: no byte, no record and no place is lost or doubled."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.engine.native.plane import Plane, read_exactly, read_to_reset, reset

WHOLE = 1000
CLOSED, OPENED = 2, 1


def lives(plane: Plane) -> list[int]:
    return list(plane.hub.stats()["live"])


def moved(plane: Plane) -> int:
    return int(plane.hub.stats()["moved"])


@pytest.fixture
def server() -> Any:
    with socket.create_server(("127.0.0.1", 0), backlog=256) as sock:
        sock.settimeout(20)
        yield sock


def opened(plane: Plane, server: socket.socket, count: int) -> list[tuple[socket.socket, socket.socket]]:
    """Connections through the plane, and Python has read the record of each."""
    listening = plane.listen(server.getsockname())
    pairs = []
    for _ in range(count):
        client = plane.connect(listening)
        pairs.append((client, plane.own(server.accept()[0])))
    for number in range(count):
        plane.row(lambda row, number=number: sum(each[0] == OPENED for each in plane.rows) > number)
    plane.hub.drain(4096)
    return pairs


def exchange(client: socket.socket, upstream: socket.socket, text: bytes) -> None:
    client.sendall(text)
    assert read_exactly(upstream, len(text)) == text
    upstream.sendall(text[::-1])
    assert read_exactly(client, len(text)) == text[::-1]


def fill(pairs: list[tuple[socket.socket, socket.socket]]) -> list[list[int]]:
    """Send in both directions until nothing more is taken; how many bytes each end sent."""
    sent: list[list[int]] = [[0, 0] for _ in pairs]
    for number, pair in enumerate(pairs):
        for way, end in enumerate(pair):
            end.setblocking(False)
            refused = 0
            while refused < 50:
                try:
                    sent[number][way] += end.send((b"%08d" % number * 4096)[sent[number][way] % 8 :])
                    refused = 0
                except BlockingIOError:
                    refused += 1
                    threading.Event().wait(0.002)
            end.settimeout(20)
    return sent


def test_all_of_it_goes_and_comes_back(make_plane: Callable[..., Plane], server: socket.socket) -> None:
    plane = make_plane(threads=2)
    plane.hub.set_threads(1)
    pairs = opened(plane, server, 40)
    assert lives(plane) == [40, 0]
    plane.hub.shed(0, 1, WHOLE)
    plane.until(lambda: lives(plane) == [0, 40])
    for number, pair in enumerate(pairs):
        exchange(*pair, b"%d over there" % number)
    plane.hub.shed(1, 0, WHOLE)
    plane.until(lambda: lives(plane) == [40, 0])
    for number, (client, upstream) in enumerate(pairs):
        exchange(client, upstream, b"%d back here" % number)
        client.shutdown(socket.SHUT_WR)
        assert upstream.recv(1) == b""
        upstream.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    plane.until(lambda: lives(plane) == [0, 0])
    plane.row(lambda _row: sum(row[0] == CLOSED for row in plane.rows) == 40)
    ends = [row for row in plane.rows if row[0] == CLOSED]
    assert {(row.bytes_up, row.bytes_down, row.ending) for row in ends} <= {(n, n, 0) for n in range(20, 40)}
    assert sorted(row.id for row in ends) == sorted(row.id for row in plane.rows if row[0] == OPENED)
    assert moved(plane) == 80
    assert plane.gate.live == 0


def test_part_of_the_work_goes(make_plane: Callable[..., Plane], server: socket.socket) -> None:
    plane = make_plane(threads=2)
    plane.hub.set_threads(1)
    pairs = opened(plane, server, 16)

    def work() -> bool:
        for client, upstream in pairs:
            for _ in range(4):
                exchange(client, upstream, b"x" * 64)
        plane.hub.shed(0, 1, WHOLE // 2)
        plane.until(lambda: plane.hub.stats()["loops"] > 0)
        return moved(plane) > 0

    plane.until(work)
    plane.until(lambda: sum(lives(plane)) == 16)
    assert 4 <= lives(plane)[1] <= 12


@pytest.mark.parametrize("relay", [1, 2])
def test_what_is_pending_moves_along(make_plane: Callable[..., Plane], server: socket.socket, relay: int) -> None:
    """Bytes in a block and in a pipe, in both directions, to another reactor and back."""
    plane = make_plane(threads=2, relay=relay)
    plane.hub.set_threads(1)
    pairs = opened(plane, server, 4)
    sent = fill(pairs)
    for source, to in ((0, 1), (1, 0), (0, 1)):
        plane.hub.shed(source, to, WHOLE)
        plane.until(lambda to=to: lives(plane)[to] == 4)
    for number, pair in enumerate(pairs):
        for way, end in enumerate(pair):
            got = read_exactly(end, sent[number][1 - way])
            whole = b"%08d" % number * (len(got) // 8 + 1)
            assert got == whole[: len(got)]
            assert len(got) == sent[number][1 - way], way
    for client, upstream in pairs:
        exchange(client, upstream, b"after all that")


def test_a_half_closed_one_moves(make_plane: Callable[..., Plane], server: socket.socket) -> None:
    plane = make_plane(threads=2)
    plane.hub.set_threads(1)
    ((client, upstream),) = opened(plane, server, 1)
    client.sendall(b"all I say")
    client.shutdown(socket.SHUT_WR)
    assert read_exactly(upstream, 9) == b"all I say"
    assert upstream.recv(1) == b""
    plane.hub.shed(0, 1, WHOLE)
    plane.until(lambda: lives(plane) == [0, 1])
    upstream.sendall(b"answer")
    upstream.shutdown(socket.SHUT_WR)
    assert read_exactly(client, 6) == b"answer"
    assert client.recv(1) == b""
    row = plane.row(lambda row: row[0] == CLOSED)
    assert (row.bytes_up, row.bytes_down, row.ending) == (9, 6, 0)


def test_a_reset_and_a_kill_find_it(make_plane: Callable[..., Plane], server: socket.socket) -> None:
    plane = make_plane(threads=2)
    plane.hub.set_threads(1)
    (one, other) = opened(plane, server, 2)
    plane.hub.shed(0, 1, WHOLE)
    plane.until(lambda: lives(plane) == [0, 2])
    reset(one[0])
    assert read_to_reset(one[1]) == b""
    (left,) = plane.hub.snapshot()
    plane.hub.kill(left.id)
    assert read_to_reset(other[0]) == b""
    assert read_to_reset(other[1]) == b""
    plane.until(lambda: plane.gate.live == 0)


def test_words_to_all_reactors_meet_each_connection_once(
    make_plane: Callable[..., Plane], server: socket.socket
) -> None:
    """While connections move without a pause a snapshot shows each of them, and a kill ends the one that is meant."""
    plane = make_plane(threads=3)
    plane.hub.set_threads(1)
    pairs = opened(plane, server, 24)
    over = threading.Event()

    def chat(pair: tuple[socket.socket, socket.socket]) -> None:
        while not over.is_set():
            exchange(*pair, b"tick")

    threads = [threading.Thread(target=chat, args=(pair,)) for pair in pairs[:3]]
    for thread in threads:
        thread.start()
    try:
        turn = 0
        while moved(plane) < 300:
            plane.hub.shed(turn % 3, (turn + 1) % 3, WHOLE)
            found = [row.id for row in plane.hub.snapshot()]
            assert len(found) == len(set(found)) == 24
            turn += 1
    finally:
        over.set()
        for thread in threads:
            thread.join()
    for killed in range(1, 22):
        plane.hub.shed(killed % 3, (killed + 1) % 3, WHOLE)
        plane.hub.kill(plane.hub.snapshot()[-1].id)
        plane.until(lambda killed=killed: plane.gate.live == 24 - killed)


def test_stopping_while_connections_move(make_plane: Callable[..., Plane], server: socket.socket) -> None:
    plane = make_plane(threads=3)
    pairs = opened(plane, server, 30)
    for turn in range(30):
        plane.hub.shed(turn % 3, (turn + 1) % 3, WHOLE)
    plane.rows += plane.hub.stop()
    assert sum(row[0] == CLOSED for row in plane.rows) == 30
    for client, upstream in pairs:
        assert read_to_reset(client) == read_to_reset(upstream) == b""


def test_a_reactor_that_does_not_exist_is_refused(make_plane: Callable[..., Plane]) -> None:
    plane = make_plane(threads=2)
    for pair in ((0, 2), (2, 0), (-1, 0), (0, 0)):
        with pytest.raises(IndexError, match="no such reactor"):
            plane.hub.shed(*pair, WHOLE)


def test_each_thread_has_a_clock_and_a_number(make_plane: Callable[..., Plane]) -> None:
    plane = make_plane(threads=2)
    plane.until(lambda: all(plane.hub.thread_ids))
    assert len(set(plane.hub.thread_ids)) == 2
    assert all(spent >= 0 for spent in plane.hub.cpu_seconds())
