"""A relay between two sockets: what goes in comes out, and ends are what the peers made them."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import random
import select
import socket
import sys
import termios
import threading
from typing import Any

import pytest

from oinetd.core.record import Ending
from tests.engine.native.plane import Plane, read_all, read_exactly, read_to_reset, reset, tcp_pair, write_to_reset

ENDINGS = list(Ending)

LONG = "SOAK_SECONDS" in os.environ
"""Whether the relay that changes between copy and splice every seven bytes does as much as the others (`make soak`)."""


def amount(plane: Plane, full: int, short: int) -> int:
    """How much of something: `short` where every seven bytes cost as many system calls as else 64 KiB."""
    return short if plane.settings.get("flip_bytes") == 7 and not LONG else full


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def in_background(target: Any, *args: Any) -> threading.Thread:
    thread = threading.Thread(target=target, args=args)
    thread.start()
    return thread


def ending(plane: Plane, token: int) -> Ending:
    return ENDINGS[plane.result(token)[0]]


def test_one_byte_segments(plane: Plane) -> None:
    client, upstream, token = plane.wire()
    data = noise(100_000)

    def send() -> None:
        for i in range(len(data)):
            client.send(data[i : i + 1])
        client.shutdown(socket.SHUT_WR)

    sender = in_background(send)
    got = read_all(upstream)
    sender.join()
    assert hashlib.sha256(got).digest() == hashlib.sha256(data).digest()
    upstream.close()
    assert client.recv(1) == b""
    assert plane.result(token) == (ENDINGS.index(Ending.CLIENT_CLOSED), len(data), 0, 0)


def waiting_bytes(sock: socket.socket) -> int:
    return int.from_bytes(fcntl.ioctl(sock, termios.FIONREAD, bytes(4)), sys.byteorder)


@pytest.mark.parametrize("relay", [1, 2])
def test_bytes_that_come_while_the_destination_is_full_wake_nobody(make_plane: Any, relay: int) -> None:
    plane = make_plane(relay=relay)
    near, far = tcp_pair()
    upstream, destination = map(plane.own, tcp_pair(receive_bytes=4096))
    destination.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    client, inside = plane.own(near), plane.own(far.dup())
    plane.hub.relay(far.detach(), destination.dup().detach(), plane.make_policy(), 4711)
    data, waiting, stayed = b"", 0, 0
    while stayed < 10:  # until bytes stay in the source's socket: for many turns of a reactor that could take them
        if not waiting:
            client.sendall(piece := noise(8192))
            data += piece
        select.select([], [], [], 0.02)
        before, waiting = waiting, waiting_bytes(inside)
        stayed = stayed + 1 if waiting and waiting == before else 0
    loops = plane.hub.stats()["loops"]
    for number in range(1, 201):
        client.send(b"%03d" % number)
        plane.until(lambda number=number: waiting_bytes(inside) >= waiting + 3 * number)
    assert plane.hub.stats()["loops"] - loops < 50
    assert read_exactly(upstream, len(data)) == data
    assert read_exactly(upstream, 600) == b"".join(b"%03d" % number for number in range(1, 201))
    for _ in range(3):  # bytes that come when nothing waits are told again
        client.send(b"once more")
        assert read_exactly(upstream, 9) == b"once more"
    client.shutdown(socket.SHUT_WR)
    assert upstream.recv(1) == b""
    upstream.close()
    assert plane.result(4711)[:3] == (ENDINGS.index(Ending.CLIENT_CLOSED), len(data) + 627, 0)


@pytest.mark.parametrize("chunk", [1, 536, 1460, 65536])
def test_slow_reader_with_small_buffers(plane: Plane, chunk: int) -> None:
    client, upstream, token = plane.wire(upstream={"receive_bytes": 4096})
    data = noise(amount(plane, 40, 4) * chunk + 300_000)

    def send() -> None:
        for start in range(0, len(data), 1460):
            client.sendall(data[start : start + 1460])
        client.shutdown(socket.SHUT_WR)

    sender = in_background(send)
    got = bytearray()
    while part := upstream.recv(max(chunk, 200)):
        got += part
    sender.join()
    assert bytes(got) == data
    upstream.close()
    assert ending(plane, token) is Ending.CLIENT_CLOSED


def test_bulk_both_ways_at_once(plane: Plane) -> None:
    size = amount(plane, 20_000_000, 500_000)
    client, upstream, token = plane.wire()
    block = noise(500_000)
    sums: dict[str, Any] = {}

    def send(sock: socket.socket) -> None:
        for _ in range(size // len(block)):
            sock.sendall(block)
        sock.shutdown(socket.SHUT_WR)

    def receive(name: str, sock: socket.socket) -> None:
        digest, count = hashlib.sha256(), 0
        while part := sock.recv(1 << 18):
            digest.update(part)
            count += len(part)
        sums[name] = (count, digest.digest())

    threads = [
        in_background(send, client),
        in_background(send, upstream),
        in_background(receive, "client", client),
        in_background(receive, "upstream", upstream),
    ]
    for thread in threads:
        thread.join()
    digest = hashlib.sha256()
    for _ in range(size // len(block)):
        digest.update(block)
    assert sums == {"client": (size, digest.digest()), "upstream": (size, digest.digest())}
    assert plane.result(token)[1:] == (size, size, 0)


def test_fin_behind_data_while_the_destination_is_blocked(plane: Plane) -> None:
    client, upstream, token = plane.wire(upstream={"receive_bytes": 4096})
    data = noise(amount(plane, 6_000_000, 1_000_000))
    sent = threading.Event()

    def send() -> None:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        sent.set()

    sender = in_background(send)
    before = -1
    while (now := plane.hub.snapshot()[0][11]) != before:  # until nothing moves any more
        before = now
        sent.wait(0.3)
    assert read_all(upstream) == data
    sender.join()
    upstream.close()
    assert ending(plane, token) is Ending.CLIENT_CLOSED


def test_half_close_then_a_large_answer(plane: Plane) -> None:
    answer = noise(amount(plane, 5_000_000, 500_000))
    for turned in (False, True):
        client, upstream, token = plane.wire()
        asking, answering = (upstream, client) if turned else (client, upstream)
        asking.sendall(b"question")
        asking.shutdown(socket.SHUT_WR)
        assert read_all(answering) == b"question"
        sender = in_background(answering.sendall, answer)
        sender_end = in_background(lambda s=sender, a=answering: (s.join(), a.shutdown(socket.SHUT_WR)))
        assert read_all(asking) == answer
        sender_end.join()
        assert ending(plane, token) is (Ending.UPSTREAM_CLOSED if turned else Ending.CLIENT_CLOSED)


def test_both_say_fin_with_their_last_bytes(plane: Plane) -> None:
    client, upstream, token = plane.wire()
    client.send(b"from client")
    client.shutdown(socket.SHUT_WR)
    upstream.send(b"from upstream")
    upstream.shutdown(socket.SHUT_WR)
    assert read_all(client) == b"from upstream"
    assert read_all(upstream) == b"from client"
    assert plane.result(token)[1:] == (11, 13, 0)


def test_fin_without_any_byte(plane: Plane) -> None:
    client, upstream, token = plane.wire()
    upstream.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""
    client.close()
    assert upstream.recv(1) == b""
    assert plane.result(token) == (ENDINGS.index(Ending.UPSTREAM_CLOSED), 0, 0, 0)


@pytest.mark.parametrize("size", [0, 1, 10_000, 200_000])
def test_data_then_reset_is_data_then_reset(plane: Plane, size: int) -> None:
    client, upstream, token = plane.wire()
    data = noise(size)
    client.sendall(data)
    # What the client's kernel still holds is lost by its reset, so wait until the relay has taken it over.
    plane.until(lambda: plane.hub.snapshot()[0][11] == size)
    reset(client)
    assert read_to_reset(upstream) == data
    assert plane.result(token)[:2] == (ENDINGS.index(Ending.CLIENT_RESET), size)
    assert plane.result(token)[3] != 0


def test_data_then_reset_by_the_upstream(plane: Plane) -> None:
    client, upstream, token = plane.wire()
    upstream.sendall(b"last words")
    reset(upstream)
    assert read_exactly(client, 10) == b"last words"
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert ending(plane, token) is Ending.UPSTREAM_RESET


def test_reset_that_is_noticed_on_a_write(plane: Plane) -> None:
    client, upstream, token = plane.wire()
    client.send(b"hello")
    assert read_exactly(upstream, 5) == b"hello"
    upstream.send(b"unread by the client")
    plane.until(lambda: plane.hub.snapshot()[0][12] == 20)
    client.close()  # with bytes unread: a reset
    write_to_reset(upstream)
    assert ending(plane, token) is Ending.CLIENT_RESET


def test_reset_after_a_fin(plane: Plane) -> None:
    client, upstream, token = plane.wire()
    client.shutdown(socket.SHUT_WR)
    assert upstream.recv(1) == b""
    client.close()
    write_to_reset(upstream)
    assert ending(plane, token) is Ending.CLIENT_RESET


@pytest.mark.parametrize("size", [0, 1, 100_000])
def test_reset_right_behind_a_fin(plane: Plane, size: int) -> None:
    size = min(size, amount(plane, size, 10_000))
    for _ in range(5):
        client, upstream, token = plane.wire()
        client.sendall(noise(size))
        plane.until(lambda size=size: plane.hub.snapshot()[0][11] == size)
        client.shutdown(socket.SHUT_WR)
        reset(client)
        assert ending(plane, token) is Ending.CLIENT_RESET
        assert read_exactly(upstream, size) == noise(size)
        upstream.close()


def test_reset_while_bytes_are_pending(plane: Plane) -> None:
    before = len(os.listdir("/proc/self/fd"))
    wires = [plane.wire(upstream={"receive_bytes": 4096}, client={"send_bytes": 65536}) for _ in range(5)]
    for client, _, _ in wires:
        client.settimeout(0.05)
        with pytest.raises(TimeoutError):
            client.sendall(bytes(50_000_000))
        reset(client)
    # The readers take nothing, so after a second without progress they are told.
    for _, upstream, token in wires:
        assert ending(plane, token) is Ending.CLIENT_RESET
        with pytest.raises(ConnectionResetError):
            read_all(upstream)
        upstream.close()
    # A pipe may be kept for the next connection.
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_destination_reset_while_bytes_are_pending(plane: Plane) -> None:
    client, upstream, token = plane.wire(upstream={"receive_bytes": 4096}, client={"send_bytes": 65536})
    client.settimeout(0.2)
    with pytest.raises(TimeoutError):
        client.sendall(bytes(50_000_000))
    reset(upstream)
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        client.sendall(bytes(50_000_000))
    assert ending(plane, token) is Ending.UPSTREAM_RESET


@pytest.mark.parametrize("fin", [False, True])
@pytest.mark.parametrize("first", [0, 1, 70_000])
def test_urgent_byte_mid_stream(plane: Plane, first: int, fin: bool) -> None:
    client, upstream, token = plane.wire()
    data = noise(first) + b"U" + noise(150_000, 2)
    client.sendall(data[:first])
    client.send(data[first : first + 1], socket.MSG_OOB)
    if fin:
        client.shutdown(socket.SHUT_WR)
        data = data[: first + 1]
    else:
        client.sendall(data[first + 1 :])
        client.shutdown(socket.SHUT_WR)
    assert read_all(upstream) == data
    loops = plane.hub.stats()["loops"]
    plane.hub.snapshot()
    plane.hub.snapshot()
    assert plane.hub.stats()["loops"] <= loops + 10  # nothing spins
    upstream.close()
    assert ending(plane, token) is Ending.CLIENT_CLOSED


def test_ping_pong_beside_bulk(plane: Plane) -> None:
    bulk = [plane.wire() for _ in range(4)]
    stop = threading.Event()

    def flood(client: socket.socket) -> None:
        block = bytes(200_000)
        with contextlib.suppress(ConnectionError):
            while not stop.is_set():
                client.sendall(block)

    def sink(upstream: socket.socket) -> None:
        with contextlib.suppress(ConnectionError):
            while upstream.recv(1 << 18):
                pass

    threads = [in_background(flood, client) for client, _, _ in bulk]
    threads += [in_background(sink, upstream) for _, upstream, _ in bulk]
    client, upstream, _ = plane.wire()
    for i in range(amount(plane, 60, 40)):
        message = i.to_bytes(64, "big")
        client.send(message)
        assert read_exactly(upstream, 64) == message
        upstream.send(message)
        assert read_exactly(client, 64) == message
    stop.set()
    assert sum(relay[11] > 0 for relay in plane.hub.snapshot()) == len(bulk) + 1
    plane.hub.abort_all()  # rather than wait for what is in the buffers
    for thread in threads:
        thread.join()


def test_kill_resets_both(plane: Plane) -> None:
    client, upstream, token = plane.wire()
    client.send(b"hello")
    assert read_exactly(upstream, 5) == b"hello"
    (row,) = plane.hub.snapshot()
    assert (row[3], row[11], row[12]) == (token, 5, 0)
    plane.hub.kill(row[1])
    for sock in (client, upstream):
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    assert plane.result(token) == (ENDINGS.index(Ending.ABORTED), 5, 0, 0)


def test_stop_aborts_and_tells(plane: Plane) -> None:
    wires = [plane.wire() for _ in range(10)]
    plane.until(lambda: plane.hub.stats()["live"] == [10])
    rows = plane.hub.stop()
    assert {row[3] for row in rows} == {token for _, _, token in wires}
    assert {ENDINGS[row[13]] for row in rows} == {Ending.ABORTED}
    for client, upstream, _ in wires:
        for sock in (client, upstream):
            with pytest.raises(ConnectionResetError):
                sock.recv(1)


def test_idle_timeout(plane: Plane) -> None:
    client, upstream, token = plane.wire(idle_ms=300)
    client.send(b"x")
    assert upstream.recv(1) == b"x"
    for sock in (client, upstream):
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    assert ending(plane, token) is Ending.IDLE_TIMEOUT


def test_max_lifetime(plane: Plane) -> None:
    """However busy: bytes flow until the connection is reset."""
    client, upstream, token = plane.wire(lifetime_ms=300)
    with contextlib.suppress(ConnectionError):
        while True:
            client.send(b"x")
            assert upstream.recv(1) == b"x"
    assert ending(plane, token) is Ending.MAX_LIFETIME


def test_half_close_timeout(plane: Plane) -> None:
    client, upstream, token = plane.wire(half_close_ms=300)
    client.shutdown(socket.SHUT_WR)
    assert upstream.recv(1) == b""
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert ending(plane, token) is Ending.HALF_CLOSE_TIMEOUT


def test_destinations_that_never_read(plane: Plane) -> None:
    wires = [
        plane.wire(upstream={"receive_bytes": 4096}, client={"send_bytes": 8192}, stall_ms=500)
        for _ in range(amount(plane, 30, 5))
    ]
    flooding = {token: client for client, _, token in wires}
    for client in flooding.values():
        client.setblocking(False)
    block = bytes(65536)
    while flooding:
        for token, client in tuple(flooding.items()):
            try:
                client.send(block)
            except BlockingIOError:
                continue
            except (ConnectionResetError, BrokenPipeError):
                del flooding[token]
        select.select([], flooding.values(), flooding.values(), 1.0)
    assert {ending(plane, token) for _, _, token in wires} == {Ending.WRITE_STALL}


def test_many_short_relays_reuse_descriptors(plane: Plane) -> None:
    for i in range(150):
        client, upstream, token = plane.wire()
        message = noise(1 + i * 50, i)
        client.sendall(message)
        if i % 3 == 0:
            client.shutdown(socket.SHUT_WR)
            assert read_all(upstream) == message
            upstream.close()
            assert client.recv(1) == b""
        elif i % 3 == 1:
            assert read_exactly(upstream, len(message)) == message
            reset(upstream)
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        else:
            plane.hub.abort_all()
        client.close()
        upstream.close()
        plane.result(token)
    assert plane.hub.stats()["live"] == [0]


def test_idle_connections_hold_nothing(plane: Plane) -> None:
    wires = [plane.wire() for _ in range(100)]
    for client, upstream, _ in wires:
        client.send(b"x")
        assert upstream.recv(1) == b"x"
    # However many went through a pipe, they went through the same one.
    assert plane.hub.stats()["pipes"] <= 2
    assert plane.hub.stats()["connection_bytes"] < 1024
