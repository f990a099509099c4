"""The native lane below Python: accept, admission, limits, connect, and what goes wrong there."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from oinetd.core.record import Ending
from tests.engine.native.plane import PATIENCE_S, Listening, Plane, read_all, read_exactly, read_to_reset, reset
from tests.peers import free_port

ENDINGS = list(Ending)
OPENED, CLOSED, UNREACHABLE, TROUBLE, RESUMED, TARGET = 1, 2, 5, 6, 7, 20
ADDRESSES_MAX = 16
RING_RECORDS = 4096


class Echo:
    """A server that echoes, one thread for each connection."""

    def __init__(self) -> None:
        self.sock = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.address: tuple[str, int] = self.sock.getsockname()
        self.accepted = 0
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self.sock.accept()
            except OSError as error:
                if error.errno == errno.EMFILE:
                    continue
                return
            self.accepted += 1
            thread = threading.Thread(target=self._echo, args=(sock,))
            thread.start()
            self._threads.append(thread)

    def _echo(self, sock: socket.socket) -> None:
        with sock:
            try:
                while part := sock.recv(1 << 16):
                    sock.sendall(part)
            except OSError:
                return

    def close(self) -> None:
        self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def lane(echo: Echo, make_plane: Plane) -> Any:
    """Two reactors; closed before the echo, so that its connections end."""
    return make_plane(threads=2)


def closed(plane: Plane, *, count: int = 1) -> list[tuple[Any, ...]]:
    """The first `count` closed rows."""
    found: list[tuple[Any, ...]] = []
    while len(found) < count:
        found.append(plane.row(lambda row: row[0] == CLOSED and row not in found))
    return found


def round_trip(sock: socket.socket, message: bytes = b"hello") -> None:
    sock.sendall(message)
    assert read_exactly(sock, len(message)) == message


def test_a_session_from_accept_to_close(lane: Plane, echo: Echo) -> None:
    listening = lane.listen(echo.address)
    client = lane.connect(listening)
    round_trip(client)
    opened = lane.row(lambda row: row[0] == OPENED)
    (live,) = lane.hub.snapshot()
    assert (live[1], live[5], live[6]) == (opened[1], *client.getsockname())
    assert (live[7], live[8]) == echo.address
    assert (lane.gate.live, listening.gate.live) == (1, 1)
    client.close()
    (row,) = closed(lane)
    assert row[1] == opened[1]
    assert (ENDINGS[row[13]], row[11], row[12], row[14]) == (Ending.CLIENT_CLOSED, 5, 5, 0)
    assert (lane.gate.live, listening.gate.live) == (0, 0)


def test_server_speaks_first(lane: Plane) -> None:
    server = lane.own(socket.create_server(("127.0.0.1", 0)))
    client = lane.connect(lane.listen(server.getsockname()))
    upstream, _ = server.accept()
    with upstream:
        upstream.sendall(b"220 ready")
        assert read_exactly(client, 9) == b"220 ready"


def test_data_and_fin_before_the_upstream_is_there(lane: Plane, echo: Echo) -> None:
    client = lane.connect(lane.listen(echo.address))
    client.sendall(b"x" * 10_000)
    client.shutdown(socket.SHUT_WR)
    assert read_all(client) == b"x" * 10_000


def test_refused_destination_resets_the_client(lane: Plane) -> None:
    with pytest.raises(ConnectionResetError):  # it may come as early as the connect
        lane.connect(lane.listen(("127.0.0.1", free_port()))).recv(1)
    (row,) = closed(lane)
    assert (ENDINGS[row[13]], row[14], row[7]) == (Ending.CONNECT_FAILED, errno.ECONNREFUSED, "")
    assert [row[0] for row in lane.rows] == [OPENED, TARGET, CLOSED]
    told = lane.rows[1]
    assert (told[7], told[14]) == ("127.0.0.1", errno.ECONNREFUSED)


def test_first_address_dead_second_alive(lane: Plane, echo: Echo) -> None:
    dead = ("127.0.0.1", free_port())
    client = lane.connect(lane.listen(dead, ("::1", dead[1], 0, 0), echo.address))
    round_trip(client)
    assert lane.hub.snapshot()[0][8] == echo.address[1]


def test_no_address_at_all(lane: Plane) -> None:
    with pytest.raises(ConnectionResetError):
        lane.connect(lane.listen()).recv(1)
    assert ENDINGS[closed(lane)[0][13]] is Ending.RESOLVE_FAILED


@pytest.fixture
def silent(lane: Plane) -> tuple[str, int]:
    """An address that does not answer: its queue is full, so SYNs are dropped."""
    server = lane.own(socket.socket())
    server.bind(("127.0.0.1", 0))
    server.listen(0)
    for _ in range(2):
        filler = lane.own(socket.socket())
        filler.setblocking(False)
        filler.connect_ex(server.getsockname())
    return server.getsockname()


def test_silent_destination_times_out(lane: Plane, silent: tuple[str, int]) -> None:
    client = lane.connect(lane.listen(silent, silent, connect_ms=200))
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    (row,) = closed(lane)
    assert (ENDINGS[row[13]], row[14]) == (Ending.CONNECT_TIMEOUT, errno.ETIMEDOUT)


def test_silent_then_alive(lane: Plane, silent: tuple[str, int], echo: Echo) -> None:
    client = lane.connect(lane.listen(silent, echo.address, connect_ms=200))
    round_trip(client)


def test_client_gives_up_while_connecting(lane: Plane, silent: tuple[str, int]) -> None:
    client = lane.connect(lane.listen(silent))
    lane.row(lambda row: row[0] == OPENED)
    client.shutdown(socket.SHUT_WR)  # legal: it may still want an answer
    lane.hub.snapshot()
    assert lane.gate.live == 1
    reset(client)
    (row,) = closed(lane)
    assert (ENDINGS[row[13]], row[14]) == (Ending.CLIENT_RESET, errno.ECONNRESET)


def test_upstream_that_resets_at_once(lane: Plane) -> None:
    server = lane.own(socket.create_server(("127.0.0.1", 0)))
    listening = lane.listen(server.getsockname())
    for _ in range(20):
        client = lane.connect(listening)
        upstream, _ = server.accept()
        upstream.send(b"go away")
        reset(upstream)
        assert read_to_reset(client) == b"go away"


def test_source_address(lane: Plane) -> None:
    server = lane.own(socket.create_server(("127.0.0.1", 0)))
    lane.connect(lane.listen(server.getsockname(), sources=[("127.0.0.77", 0)]))
    upstream, peer = server.accept()
    upstream.close()
    assert peer[0] == "127.0.0.77"
    with pytest.raises(ConnectionResetError):
        lane.connect(lane.listen(server.getsockname(), sources=[("192.0.2.1", 0)])).recv(1)
    row = lane.row(lambda row: row[0] == CLOSED and ENDINGS[row[13]] is Ending.BIND_FAILED)
    assert row[14] == errno.EADDRNOTAVAIL


def test_source_address_of_the_same_family(lane: Plane) -> None:
    sources = [("::1", 0, 0, 0), ("127.0.0.77", 0), ("127.0.0.78", 0)]
    four, six = (
        lane.own(socket.create_server(("127.0.0.1", 0))),
        lane.own(socket.create_server(("::1", 0), family=socket.AF_INET6)),
    )
    for server, host in ((four, "127.0.0.77"), (six, "::1")):
        lane.connect(lane.listen(server.getsockname(), sources=sources))
        upstream, peer = server.accept()
        upstream.close()
        assert peer[0] == host
    # An address that no source fits is passed over, and is the reason only where there is no other.
    lane.connect(lane.listen(six.getsockname(), four.getsockname(), sources=sources[1:]))
    four.accept()[0].close()
    dead = ("127.0.0.1", free_port())
    for targets in ([six.getsockname()], [dead, six.getsockname()]):
        with pytest.raises(ConnectionResetError):
            ask(lane.listen(*targets, sources=sources[1:]))
    failed = {(ENDINGS[row[13]], row[14]) for row in closed(lane, count=2)}
    assert failed == {(Ending.BIND_FAILED, errno.EAFNOSUPPORT), (Ending.CONNECT_FAILED, errno.ECONNREFUSED)}


def can_listen(port: int) -> bool:
    """Whether nobody has `port`."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def ask(listening: Listening) -> bytes:
    """What comes back from who is behind a listener. Raises `ConnectionResetError` where nobody is."""
    with socket.create_connection(listening.sock.getsockname(), PATIENCE_S) as client:
        client.send(b"hello")
        return client.recv(5)


def test_a_connect_that_comes_back_to_itself_is_refused(make_plane: Plane) -> None:
    """With nobody listening, the kernel may choose the very port for the outgoing end, and TCP connects it to itself.

    It goes through every second port in order, now and then skipping one: three rounds come by this one almost surely.
    """
    lane = make_plane(threads=1)
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    port = next(port for port in range(first, last, 2) if can_listen(port))
    listening = lane.listen(*[("127.0.0.1", port)] * ADDRESSES_MAX, may_self_connect=True)
    for _ in range(3 * (last - first) // 2 // ADDRESSES_MAX):
        with pytest.raises(ConnectionResetError):
            ask(listening)
        lane.rows.clear()
        (row,) = closed(lane)
        assert (ENDINGS[row[13]], row[14]) == (Ending.CONNECT_FAILED, errno.ECONNREFUSED)


@pytest.mark.parametrize(
    ("access", "verdict"),
    [
        (([], [(1, b"127.*")], [], []), Ending.DENIED),
        (([(1, b"10.*")], [], [], []), Ending.NOT_ALLOWED),
        (([], [], [(2, b"\x0a\0\0\0\x08")], []), Ending.NOT_ALLOWED),
        (([(2, b"\x7f\0\0\0\x08")], [], [], [(1, b"*.1")]), Ending.DENIED),
    ],
)
def test_unwelcome_clients_see_a_close(lane: Plane, echo: Echo, access: Any, verdict: Ending) -> None:
    listening = lane.listen(echo.address, access=access)
    client = lane.connect(listening)
    assert client.recv(1) == b""
    (row,) = closed(lane)
    assert ENDINGS[row[13]] is verdict
    assert [row[0] for row in lane.rows] == [CLOSED]
    assert (echo.accepted, lane.gate.live, listening.gate.live) == (0, 0, 0)


@pytest.mark.parametrize("whose", ["process", "rule"])
def test_at_the_maximum_connections_wait(lane: Plane, echo: Echo, whose: str) -> None:
    listening = lane.listen(echo.address)
    (lane.gate if whose == "process" else listening.gate).set_limits(3, 0)
    inside = [lane.connect(listening) for _ in range(3)]
    for client in inside:
        round_trip(client)
    waiting = [lane.connect(listening) for _ in range(5)]
    for client in waiting:
        client.sendall(b"hello")
    loops = lane.hub.stats()["loops"]
    assert (lane.gate.live, lane.hub.stats()["accepted"]) == (3, 3)
    for client in [*inside, *waiting]:
        if client in waiting:
            assert read_exactly(client, 5) == b"hello"
        assert lane.gate.live <= 3
        client.close()
    closed(lane, count=8)
    assert lane.gate.live == 0
    assert lane.hub.stats()["loops"] - loops < 400  # it waited and did not ask again and again


def test_a_place_given_back_by_python_lets_the_next_in(lane: Plane, echo: Echo) -> None:
    lane.gate.set_limits(1, 0)
    assert lane.gate.enter()
    assert not lane.gate.enter()
    client = lane.connect(lane.listen(echo.address))
    client.sendall(b"hello")
    assert lane.hub.stats()["accepted"] == 0
    lane.gate.leave()
    assert read_exactly(client, 5) == b"hello"
    second = lane.connect(lane.listen(echo.address))
    second.sendall(b"hello")
    lane.gate.set_limits(2, 0)
    assert read_exactly(second, 5) == b"hello"


@pytest.mark.parametrize("whose", ["process", "rule"])
def test_a_source_at_its_maximum_is_refused(lane: Plane, echo: Echo, whose: str) -> None:
    listening = lane.listen(echo.address)
    gate = lane.gate if whose == "process" else listening.gate
    gate.set_limits(0, 2)
    inside = [lane.connect(listening) for _ in range(2)]
    for client in inside:
        round_trip(client)
    third = lane.connect(listening)
    assert third.recv(1) == b""
    assert ENDINGS[closed(lane)[0][13]] is Ending.LIMITED
    assert gate.of_source("127.0.0.1", (32, 64)) == 2
    inside[0].close()
    closed(lane, count=2)
    round_trip(lane.connect(listening))
    for each in inside:
        each.close()
    assert gate.of_source("127.0.0.2", (32, 64)) == 0


def test_three_failures_in_a_row_are_told_once(lane: Plane, echo: Echo) -> None:
    listening = lane.listen(("127.0.0.1", free_port()))
    for _ in range(5):
        with pytest.raises(ConnectionResetError):
            lane.connect(listening).recv(1)
    closed(lane, count=5)
    assert [row[0] for row in lane.rows].count(UNREACHABLE) == 1


def test_rules_change_and_the_queue_stays(lane: Plane, echo: Echo) -> None:
    """Thousands of connections while what is in force changes all the time: none refused, none reset."""
    listening = lane.listen(echo.address, backlog=1024)
    stop = threading.Event()
    failures: list[BaseException] = []

    def connect_again_and_again() -> None:
        try:
            while not stop.is_set():
                with socket.create_connection(listening.sock.getsockname(), 20) as client:
                    round_trip(client)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=connect_again_and_again) for _ in range(8)]
    for thread in threads:
        thread.start()
    changes = 0
    while lane.hub.stats()["accepted"] < 1500 and not failures:
        lane.hub.replace_listener(listening.index, lane.make_policy(listening.gate, addresses=[echo.address]))
        lane.hub.drain(1000)
        changes += 1
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert changes > 10


def test_removed_listener_is_let_go_and_may_come_back(lane: Plane, echo: Echo) -> None:
    listening = lane.listen(echo.address)
    round_trip(lane.connect(listening))
    for _ in range(20):
        lane.hub.remove_listener(listening.index)
        waiting = lane.connect(listening)
        waiting.sendall(b"hello")
        accepted = lane.hub.stats()["accepted"]
        rules = lane.make_policy(listening.gate, addresses=[echo.address])
        listening.index = lane.hub.add_listener(listening.sock.fileno(), rules)
        assert read_exactly(waiting, 5) == b"hello"
        assert lane.hub.stats()["accepted"] == accepted + 1


@contextlib.contextmanager
def no_descriptor() -> Iterator[None]:
    """None is left for a while."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 2, hard))
    plugs = []
    try:
        with contextlib.suppress(OSError):
            while True:
                plugs.append(os.open("/dev/null", os.O_RDONLY))
        yield
    finally:
        for plug in plugs:
            os.close(plug)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_no_descriptor_left(lane: Plane, echo: Echo) -> None:
    """Accepting pauses, says so once, and recovers; what is open goes on. That it comes and goes is not said."""
    listening = lane.listen(echo.address)
    first = lane.connect(listening)
    round_trip(first)
    for _ in range(3):
        clients = [lane.own(socket.socket()) for _ in range(4)]
        with no_descriptor():
            for client in clients:
                client.connect(listening.sock.getsockname())
                client.settimeout(PATIENCE_S)
                client.sendall(b"hello")
            assert lane.row(lambda row: row[0] == TROUBLE)[14] == errno.EMFILE
            round_trip(first)
        for client in clients:
            assert read_exactly(client, 5) == b"hello"
    lane.row(lambda row: row[0] == RESUMED)
    assert [row[0] for row in lane.rows if row[0] in (TROUBLE, RESUMED)] == [TROUBLE, RESUMED]


def test_full_ring_stops_accepting_and_loses_nothing(make_plane: Plane, echo: Echo) -> None:
    plane = make_plane(threads=1)
    listening = plane.listen(echo.address, access=([], [(1, b"*")], [], []), backlog=4096)
    total = 4500  # more than the ring takes
    done = threading.Event()

    def knock() -> None:
        for _ in range(total):
            with socket.create_connection(listening.sock.getsockname(), 20):
                pass
        done.set()

    knocking = threading.Thread(target=knock)
    knocking.start()
    plane.until(lambda: plane.hub.stats()["refused"] >= 4000)
    assert plane.hub.stats()["refused"] <= 4096
    rows = []
    while len(rows) < total:
        rows += plane.hub.drain(100)
    knocking.join()
    ids = [row[1] for row in rows]
    assert len(set(ids)) == len(ids) == total


def test_closing_records_wait_for_room(make_plane: Plane, echo: Echo) -> None:
    plane = make_plane(threads=1)
    wires = [plane.wire() for _ in range(50)]
    listening = plane.listen(echo.address, access=([], [(1, b"*")], [], []), backlog=4096)
    for _ in range(4032):
        with socket.create_connection(listening.sock.getsockname(), 20):
            pass
    plane.until(lambda: plane.hub.stats()["refused"] >= 4030)
    for _ in range(2):
        plane.hub.abort_all()
    plane.until(lambda: plane.hub.stats()["live"] == [0])
    for _, _, token in wires:
        assert ENDINGS[plane.result(token)[0]] is Ending.ABORTED


def test_no_memory_for_a_pair(make_plane: Plane) -> None:
    """It ends with a record, also where the ring has no room for that at first."""
    plane = make_plane(slots_max=64)
    inside = [plane.wire() for _ in range(64)]
    client, upstream, token = plane.wire()
    assert plane.result(token) == (ENDINGS.index(Ending.ABORTED), 0, 0, errno.ENOMEM)
    for sock in (client, upstream):
        assert read_to_reset(sock) == b""
    with socket.socket() as sock:
        tokens = range(1_000_000, 1_000_000 + RING_RECORDS + 10)
        for each in tokens:
            plane.hub.relay(os.dup(sock.fileno()), os.dup(sock.fileno()), plane.make_policy(), each)
    missing = set(tokens)
    plane.row(lambda row: missing.discard(row[3]) or not missing)
    told = sorted((row[3], ENDINGS[row[13]], row[14]) for row in plane.rows if row[3] in tokens)
    assert told == [(each, Ending.ABORTED, errno.ENOMEM) for each in tokens]
    client, upstream, token = inside[0]
    client.close()
    upstream.close()
    assert plane.result(token)[3] == 0


def test_no_memory_for_a_client(echo: Echo, make_plane: Plane) -> None:
    plane = make_plane(slots_max=64)
    listening = plane.listen(echo.address)
    inside = [plane.connect(listening) for _ in range(64)]
    for client in inside:
        round_trip(client)
    with pytest.raises(ConnectionResetError):
        ask(listening)
    row = plane.row(lambda row: row[0] == CLOSED)
    assert (ENDINGS[row[13]], row[14]) == (Ending.ACCEPT_FAILED, errno.ENOMEM)
    assert plane.row(lambda row: row[0] == TROUBLE)[14] == errno.ENOMEM
    assert (plane.gate.live, listening.gate.live, plane.hub.stats()["live"]) == (64, 64, [64])
    inside[0].close()
    round_trip(plane.connect(listening))
