"""Connections that leave a process and go on in another one: here, in another data plane."""

from __future__ import annotations

import copy
import json
import os
import random
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.engine.native.plane import Plane, read_exactly, read_to_reset, reset
from tests.engine.native.test_moving import exchange, fill, opened

_fastpath = pytest.importorskip("oinetd._fastpath")

CLOSED, OPENED = 2, 1


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=256) as sock:
        sock.settimeout(20)
        yield sock


def take_out(plane: Plane, count: int) -> list[Any]:
    """All connections of the plane, once each may leave."""
    passports: list[Any] = []

    def all_out() -> bool:
        found, _ = plane.hub.take_out(1024)
        passports.extend(found)
        return len(passports) == count

    plane.until(all_out)
    return passports


def carry(passport: Any, to: Plane, policy: Any) -> Any:
    """What the other process gets: copies of the descriptors, bytes, and a text."""
    fds = [os.dup(fd) for fd in passport.descriptors]
    return to.hub.adopt(policy, json.loads(json.dumps(passport.state())), *fds, *passport.pending)


def test_they_go_on_in_another_process(make_plane: Callable[..., Plane], server: socket.socket) -> None:
    old, new = make_plane(threads=2), make_plane(threads=2)
    pairs = opened(old, server, 20)
    for number, pair in enumerate(pairs):
        exchange(*pair, b"%d before" % number)
    gate = _fastpath.Gate(0, 2)
    policy = new.make_policy(gate, addresses=[server.getsockname()])
    passports = take_out(old, 20)
    assert old.hub.stats()["live"] == [0, 0]
    assert old.gate.live == 20  # until the other one has it
    ids = {passport.state()["id"] for passport in passports}
    for passport in passports:
        new.hub.put_in(carry(passport, new, policy))
        passport.release()
        with pytest.raises(RuntimeError, match="somewhere else"):
            passport.state()
    assert old.gate.live == 0
    assert new.gate.live == gate.live == 20
    for number, pair in enumerate(pairs):
        exchange(*pair, b"%d after" % number)
    for client, upstream in pairs:
        client.shutdown(socket.SHUT_WR)
        assert upstream.recv(1) == b""
        upstream.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    new.row(lambda _row: sum(row[0] == CLOSED for row in new.rows) == 20)
    ends = [row for row in new.rows if row[0] == CLOSED]
    assert {row.id for row in ends} == ids
    assert {(row.bytes_up, row.bytes_down, row.ending) for row in ends} == {(15, 15, 0), (17, 17, 0)}
    opening = {row.id: row for row in old.rows if row[0] == OPENED}
    for row in ends:
        begun = opening[row.id]
        assert (row.client, row.client_port, row.started) == (begun.client, begun.client_port, begun.started)
        assert (row.upstream, row.upstream_port) == server.getsockname()
    assert not any(row[0] == CLOSED for row in old.rows)
    assert (new.gate.live, gate.live, gate.admitted, gate.of_source("127.0.0.1", (32, 64))) == (0, 0, 20, 0)


@pytest.mark.parametrize("relay", [0, 1, 2])
def test_pending_bytes_come_along(make_plane: Callable[..., Plane], server: socket.socket, relay: int) -> None:
    old, new = make_plane(threads=2, relay=relay), make_plane(threads=1, relay=relay)
    pairs = opened(old, server, 3)
    sent = fill(pairs)
    policy = new.make_policy(_fastpath.Gate(), addresses=[server.getsockname()])
    passports = take_out(old, 3)
    assert any(len(up) + len(down) for up, down in (passport.pending for passport in passports))
    assert old.budget.pipes == 0
    for passport in passports:
        new.hub.put_in(carry(passport, new, policy))
        passport.release()
    for number, pair in enumerate(pairs):
        for way, end in enumerate(pair):
            got = read_exactly(end, sent[number][1 - way])
            assert got == (b"%08d" % number * (len(got) // 8 + 1))[: sent[number][1 - way]]
        exchange(*pair, b"after all that")


def test_one_that_comes_back(make_plane: Callable[..., Plane], server: socket.socket) -> None:
    """The other process has died: what it had not acknowledged goes on here."""
    plane = make_plane(threads=2)
    pairs = opened(plane, server, 3)
    sent = fill(pairs[:1])
    for passport in take_out(plane, 3):
        plane.hub.put_in(passport)
    for way, end in enumerate(pairs[0]):
        assert len(read_exactly(end, sent[0][1 - way])) == sent[0][1 - way]
    for pair in pairs:
        exchange(*pair, b"as if nothing had been")
    assert plane.gate.live == 3


def test_half_closed_and_reset_ones(make_plane: Callable[..., Plane], server: socket.socket) -> None:
    old, new = make_plane(), make_plane()
    half, dead = opened(old, server, 2)
    half[0].sendall(b"done")
    half[0].shutdown(socket.SHUT_WR)
    assert read_exactly(half[1], 4) == b"done"
    assert half[1].recv(1) == b""
    policy = new.make_policy(_fastpath.Gate(), addresses=[server.getsockname()])
    passports = take_out(old, 2)
    reset(dead[0])  # while nobody looks
    for passport in passports:
        new.hub.put_in(carry(passport, new, policy))
        passport.release()
    assert read_to_reset(dead[1]) == b""
    half[1].sendall(b"answer")
    half[1].shutdown(socket.SHUT_WR)
    assert read_exactly(half[0], 6) == b"answer"
    assert half[0].recv(1) == b""
    new.row(lambda row: row[0] == CLOSED and (row.bytes_up, row.bytes_down, row.ending) == (4, 6, 0))


def test_timeouts_go_on(make_plane: Callable[..., Plane], server: socket.socket) -> None:
    old, new = make_plane(), make_plane()
    ((client, upstream),) = opened(old, server, 1)
    policy = new.make_policy(_fastpath.Gate(), addresses=[server.getsockname()], idle_ms=300)
    (passport,) = take_out(old, 1)
    new.hub.put_in(carry(passport, new, policy))
    passport.release()
    assert read_to_reset(client) == read_to_reset(upstream) == b""
    assert new.row(lambda row: row[0] == CLOSED).ending == 4


def test_room_bounds_what_is_taken_out(make_plane: Callable[..., Plane], server: socket.socket) -> None:
    plane = make_plane(threads=2)
    opened(plane, server, 10)
    passports, left = plane.hub.take_out(4)
    assert (len(passports), left) == (4, 6)
    for passport in passports:
        plane.hub.put_in(passport)
    plane.until(lambda: sum(plane.hub.stats()["live"]) == 10)


def test_a_forgotten_one_is_closed(make_plane: Callable[..., Plane], server: socket.socket) -> None:
    plane = make_plane()
    ((client, upstream),) = opened(plane, server, 1)
    passports = take_out(plane, 1)
    passports.clear()
    assert client.recv(1) == upstream.recv(1) == b""
    assert plane.gate.live == 0


@pytest.mark.parametrize(
    "change",
    [
        {"client": "00"},
        {"client": "zz"},
        {"client": 7},
        {"flows": []},
        {"flows": [[0, 0, 0, 0, 0, 0, 0]] * 3},
        {"flows": [[-1, 0, 0, 0, 0, 0, 0]] * 2},
        {"flows": [[0, 0]] * 2},
        {"id": "x"},
        {"id": -1},
        {"id": 1 << 80},
        {"started": "yesterday"},
        {"first_eof": None},
        {"upstream": None},
    ],
)
def test_what_is_no_connection_is_refused(
    make_plane: Callable[..., Plane], server: socket.socket, change: dict[str, Any]
) -> None:
    plane = make_plane()
    opened(plane, server, 1)
    (passport,) = take_out(plane, 1)
    policy = plane.make_policy(_fastpath.Gate(), addresses=[server.getsockname()])
    with pytest.raises((ValueError, TypeError, KeyError, IndexError, OverflowError, AttributeError)):
        plane.hub.adopt(policy, {**passport.state(), **change}, 0, 0, b"", b"")
    missing = {name: value for name, value in passport.state().items() if name not in change}
    with pytest.raises(KeyError):
        plane.hub.adopt(policy, missing, 0, 0, b"", b"")
    assert plane.gate.live == 1
    plane.hub.put_in(passport)


def test_whatever_is_said_of_a_connection_is_taken_or_refused(
    make_plane: Callable[..., Plane], server: socket.socket
) -> None:
    plane = make_plane()
    opened(plane, server, 1)
    (passport,) = take_out(plane, 1)
    policy = plane.make_policy(_fastpath.Gate(), addresses=[server.getsockname()])
    draw = random.Random(15)
    numbers = [-1, 0, 1 << 31, 1 << 63, 1 << 64, 0.5, float("nan")]
    junk = [*numbers, None, True, "", "00" * 28, "\0", [], [[]], [0] * 7, {}]
    refused = 0
    for _ in range(1000):
        state = copy.deepcopy(passport.state())
        for _ in range(draw.randint(1, 3)):
            place, key = state, draw.choice(list(state))
            while isinstance(place[key], list) and place[key] and draw.random() < 0.7:
                place, key = place[key], draw.randrange(len(place[key]))
            place[key] = draw.choice(junk)
        fds = [os.dup(fd) for fd in passport.descriptors]
        pending = [draw.randbytes(draw.choice((0, 0, 1, 70_000))) for _ in range(2)]
        try:
            plane.hub.adopt(policy, state, *fds, *pending).release()
        except (ValueError, TypeError, KeyError, IndexError, OverflowError, AttributeError, OSError):
            refused += 1
            for fd in fds:
                os.close(fd)
    assert 0 < refused < 1000
    assert plane.gate.live == 1
    plane.hub.put_in(passport)


def test_who_the_peer_was_comes_along(make_plane: Callable[..., Plane], server: socket.socket) -> None:
    plane = make_plane()
    ((client, upstream),) = opened(plane, server, 1)
    (passport,) = take_out(plane, 1)
    policy = plane.make_policy(_fastpath.Gate(0, 2), addresses=[server.getsockname()])
    fds = [os.dup(fd) for fd in passport.descriptors]
    plane.hub.put_in(plane.hub.adopt(policy, {**passport.state(), "peer": ["192.0.2.7", 4, False]}, *fds, b"", b""))
    passport.release()
    client.close()
    upstream.close()
    assert plane.row(lambda row: row[0] == CLOSED).peer == ("192.0.2.7", 4)
