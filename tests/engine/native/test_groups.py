"""Groups of servers in the reactors: another server before the client notices, counts that return, room that is waited
for."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from oinetd.core.record import Ending
from tests.engine.native.plane import PATIENCE_S, Listening, Plane, read_exactly, read_to_reset
from tests.engine.native.test_accept import CLOSED, ENDINGS, closed

_fastpath = pytest.importorskip("oinetd._fastpath")

UP, DOWN, EJECTED, DRAIN, MAINT = range(5)
OPENED, SERVER = 1, 21
CONNECT_MS = 2000


class Servers:
    """Listening sockets that nobody accepts from: the kernel completes their handshakes. `dead` ones refuse, `silent`
    ones have a queue that is full."""

    def __init__(self, *fates: str) -> None:
        self.socks: list[socket.socket] = []
        self.addresses: list[tuple[str, int]] = []
        self._fillers: list[socket.socket] = []
        for fate in fates:
            sock = socket.socket()
            sock.bind(("127.0.0.1", 0))
            self.socks.append(sock)
            self.addresses.append(sock.getsockname())
            if fate == "alive":
                sock.listen(256)
            elif fate == "silent":
                sock.listen(0)
                for _ in range(4):
                    filler = socket.socket()
                    filler.setblocking(False)
                    filler.connect_ex(sock.getsockname())
                    self._fillers.append(filler)

    def accept(self, at: int) -> socket.socket:
        self.socks[at].settimeout(PATIENCE_S)
        sock, _ = self.socks[at].accept()
        sock.settimeout(PATIENCE_S)
        return sock

    def close(self) -> None:
        for sock in (*self.socks, *self._fillers):
            sock.close()


@contextlib.contextmanager
def servers(*fates: str) -> Iterator[Servers]:
    made = Servers(*fates)
    try:
        yield made
    finally:
        made.close()


def group_of(made: Servers, **said: Any) -> Any:
    """A group of servers with the tags 1, 2, …; what is in `each` is said of single ones."""
    each = said.pop("each", {})
    members = []
    for at, address in enumerate(made.addresses):
        more = dict(each.get(at, {}))
        server = _fastpath.Server(at + 1, more.pop("weight", 1))
        server.state, server.max_connections = more.pop("state", UP), more.pop("bound", 0)
        members.append(_fastpath.Member(server, [address], **more))
    return _fastpath.Group(members, **said)


def listen(plane: Plane, group: Any, **said: Any) -> Listening:
    return plane.listen(group=group, **{"connect_ms": CONNECT_MS, **said})


def live(group: Any) -> list[int]:
    return [server.live for server in group.servers]


def tries(row: Any) -> list[tuple[int, int]]:
    """Server and errno of each address that did not take the connection."""
    return [(server, code) for _, _, code, server in row.tries]


def end(plane: Plane, group: Any, *clients: socket.socket, servers_end: tuple[socket.socket, ...] = ()) -> None:
    """Everybody hangs up, and every server has got its session back."""
    for sock in (*clients, *servers_end):
        sock.close()
    plane.hub.abort_all()
    plane.until(lambda: not any(live(group)))


def gets_a_reset(plane: Plane, listening: Listening) -> None:
    """A client without a server gets a reset, perhaps before its own connect returns."""
    with contextlib.suppress(ConnectionResetError):
        assert read_to_reset(plane.connect(listening)) == b""


FIRST = {"balance": 4}


def test_a_refusal_is_followed_by_the_next_server(make_plane: Any) -> None:
    plane = make_plane(threads=1)
    with servers("dead", "dead", "alive") as made:
        group = group_of(made, **FIRST)
        client = plane.connect(listen(plane, group))
        client.sendall(b"early")
        upstream = made.accept(2)
        assert read_exactly(upstream, 5) == b"early"
        (row,) = plane.hub.snapshot()
        assert row.server == 3
        assert live(group) == [0, 0, 1]
        end(plane, group, client, servers_end=(upstream,))
        (row,) = closed(plane)
    assert row.server == 3
    assert tries(row) == [(1, errno.ECONNREFUSED), (2, errno.ECONNREFUSED)]
    assert [server.selected for server in group.servers] == [1, 1, 1]
    assert [server.failed for server in group.servers] == [1, 1, 0]


def test_a_silent_server_is_given_up_for_another(make_plane: Any) -> None:
    plane = make_plane(threads=1)
    with servers("silent", "alive") as made:
        group = group_of(made, **FIRST)
        client = plane.connect(listen(plane, group, connect_ms=600))
        upstream = made.accept(1)
        end(plane, group, client, servers_end=(upstream,))
        (row,) = closed(plane)
    assert tries(row) == [(1, errno.ETIMEDOUT)]
    assert group.servers[0].failures == 1


def test_the_last_server_has_all_the_time_that_is_left(make_plane: Any) -> None:
    plane = make_plane(threads=1)
    with servers("silent", "dead") as made:
        group = group_of(made, **FIRST)
        group.servers[1].state = DRAIN
        client = plane.connect(listen(plane, group, connect_ms=600))
        assert read_to_reset(client) == b""
        (row,) = closed(plane)
    assert ENDINGS[row.ending] is Ending.CONNECT_TIMEOUT
    assert row.duration_s >= 0.6
    assert (row.server, tries(row), live(group)) == (0, [(1, errno.ETIMEDOUT)], [0, 0])


def test_no_more_than_five_servers_and_none_twice(make_plane: Any) -> None:
    plane = make_plane(threads=1)
    with servers(*["dead"] * 7) as made:
        group = group_of(made)
        gets_a_reset(plane, listen(plane, group))
        (row,) = closed(plane)
    assert (ENDINGS[row.ending], row.errno) == (Ending.CONNECT_FAILED, errno.ECONNREFUSED)
    assert len({server for server, _ in tries(row)}) == len(tries(row)) == 5
    assert sum(server.selected for server in group.servers) == 5
    assert live(group) == [0] * 7


def test_with_totals_only_the_search_goes_on_too(make_plane: Any) -> None:
    plane = make_plane(threads=1)
    plane.hub.totals_only = True
    with servers("dead", "dead", "alive") as made:
        group = group_of(made, **FIRST)
        client = plane.connect(listen(plane, group))
        upstream = made.accept(2)
        end(plane, group, client, servers_end=(upstream,))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_burst_lands_evenly_over_all_reactors(make_plane: Any, threads: int) -> None:
    plane = make_plane(threads=threads)
    with servers(*["alive"] * 4) as made:
        group = group_of(made)
        listening = listen(plane, group)
        clients = [plane.connect(listening) for _ in range(64)]
        plane.until(lambda: sum(live(group)) == 64)
        assert all(15 <= count <= 17 for count in live(group))
        end(plane, group, *clients)


def test_round_robin_is_one_round_over_all_reactors(make_plane: Any) -> None:
    plane = make_plane(threads=2)
    with servers(*["alive"] * 4) as made:
        group = group_of(made, balance=1, each={0: {"weight": 3}})
        group.servers[0].passed = (1 << 36) // 3000 // 2
        listening = listen(plane, group)
        clients = [plane.connect(listening) for _ in range(60)]
        plane.until(lambda: sum(live(group)) == 60)
        assert live(group) == [30, 10, 10, 10]
        end(plane, group, *clients)


def test_backups_serve_when_all_others_have_failed_in_one_search(make_plane: Any) -> None:
    plane = make_plane(threads=1)
    with servers("alive", "dead") as made:
        group = group_of(made, each={0: {"backup": True}})
        client = plane.connect(listen(plane, group))
        upstream = made.accept(0)
        end(plane, group, client, servers_end=(upstream,))
        (row,) = closed(plane)
    assert (row.server, tries(row)) == (1, [(2, errno.ECONNREFUSED)])


def test_without_a_usable_server_those_that_are_down_are_tried_or_none(make_plane: Any) -> None:
    plane = make_plane(threads=1)
    with servers("alive", "dead") as made:
        group = group_of(made, each={0: {"state": DOWN}, 1: {"state": EJECTED}})
        group.servers[0].failed_ms = 9
        client = plane.connect(listen(plane, group))
        upstream = made.accept(0)
        end(plane, group, client, servers_end=(upstream,))
        (row,) = closed(plane)
        assert tries(row) == [(2, errno.ECONNREFUSED)], "its last failure is older"
        plane.rows.clear()
        refusing = group_of(made, refuse=True, each={0: {"state": DOWN}, 1: {"state": MAINT}})
        gets_a_reset(plane, listen(plane, refusing))
        (row,) = closed(plane)
        assert (ENDINGS[row.ending], row.errno, row.tries) == (Ending.NO_SERVER, 0, ())


def test_full_servers_are_passed_over_and_then_nobody_is_accepted(make_plane: Any) -> None:
    plane = make_plane(threads=2)
    with servers("alive", "alive") as made:
        group = group_of(made, each={0: {"bound": 1}, 1: {"bound": 2}})
        listening = listen(plane, group)
        inside = [plane.connect(listening) for _ in range(3)]
        plane.until(lambda: live(group) == [1, 2])
        accepted = plane.hub.stats()["accepted"]
        waiting = [plane.connect(listening) for _ in range(3)]
        loops = plane.hub.stats()["loops"]
        plane.until(lambda: plane.hub.stats()["loops"] >= loops)
        assert plane.hub.stats()["accepted"] == accepted == 3
        for sock in (*inside, made.accept(0), made.accept(1), made.accept(1)):
            sock.close()
        plane.until(lambda: plane.hub.stats()["accepted"] == 6)
        end(plane, group, *waiting)


def test_a_client_for_whom_only_full_servers_are_left_waits_for_room(make_plane: Any) -> None:
    plane = make_plane(threads=1)
    with servers("dead", "alive") as made:
        group = group_of(made, **FIRST, each={1: {"bound": 1}})
        assert group.servers[1].enter()
        client = plane.connect(listen(plane, group, connect_ms=0))
        plane.until(lambda: group.servers[0].failed == 1 and live(group) == [0, 1])
        group.servers[1].leave()
        upstream = made.accept(1)
        end(plane, group, client, servers_end=(upstream,))
        (row,) = closed(plane)
        assert row.server == 2
        plane.rows.clear()
        assert group.servers[1].enter()
        client = plane.connect(listen(plane, group, connect_ms=300))
        assert read_to_reset(client) == b""
        (row,) = closed(plane)
        assert ENDINGS[row.ending] is Ending.LIMITED
        group.servers[1].leave()
        assert live(group) == [0, 0]


@pytest.mark.parametrize("gives_up", [False, True])
def test_the_queue_is_served_after_a_client_that_waited_for_room(make_plane: Any, gives_up: bool) -> None:
    """The room that one makes is for a client that waits inside; when that one ends, it is for the queue."""
    plane = make_plane(threads=1)
    with servers("dead", "alive") as made:
        group = group_of(made, **FIRST, each={1: {"bound": 1}})
        listening = listen(plane, group, connect_ms=0)
        first = plane.connect(listening)
        plane.until(lambda: live(group) == [0, 1])
        waiting = plane.connect(listening)
        plane.until(lambda: group.servers[0].failed == 2)
        group.servers[0].state = DOWN
        queued = plane.connect(listening)
        plane.until(lambda: plane.hub.stats()["accepted"] == 2)
        if gives_up:
            waiting.close()
            plane.until(lambda: plane.hub.stats()["closed"] == 1)
        upstream = made.accept(1)
        first.close()
        upstream.close()
        if not gives_up:
            upstream = made.accept(1)
            waiting.close()
            upstream.close()
        plane.until(lambda: plane.hub.stats()["accepted"] == 3)
        end(plane, group, queued, servers_end=(made.accept(1),))


def test_a_client_that_gives_up_leaves_its_server(make_plane: Any) -> None:
    plane = make_plane(threads=1)
    with servers("silent") as made:
        group = group_of(made)
        client = plane.connect(listen(plane, group, connect_ms=0))
        plane.until(lambda: live(group) == [1])
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        plane.until(lambda: live(group) == [0])
        (row,) = closed(plane)
        assert ENDINGS[row.ending] is Ending.CLIENT_RESET
        assert group.servers[0].failures == 0


def test_failures_in_a_row_are_reported_and_that_it_works_again(make_plane: Any) -> None:
    plane = make_plane(threads=1)
    with servers("dead") as made:
        group = group_of(made, failures_told=2)
        listening = listen(plane, group)
        for _ in range(3):
            gets_a_reset(plane, listening)
        closed(plane, count=3)
        told = [(row.server, row.id, row.errno) for row in plane.rows if row.kind == SERVER]
        assert told == [(1, 2, errno.ECONNREFUSED), (1, 3, errno.ECONNREFUSED)]
        made.socks[0].listen(8)
        client = plane.connect(listening)
        upstream = made.accept(0)
        row = plane.row(lambda row: row.kind == SERVER and row.errno == 0)
        assert (row.server, row.id, group.servers[0].failures) == (1, 0, 0)
        end(plane, group, client, servers_end=(upstream,))


def test_the_sessions_of_a_server_are_ended_part_by_part(make_plane: Any) -> None:
    plane = make_plane(threads=2)
    with servers("alive", "alive") as made:
        group = group_of(made)
        listening = listen(plane, group)
        clients = [plane.connect(listening) for _ in range(40)]
        plane.until(lambda: live(group) == [20, 20])
        plane.until(lambda: plane.hub.stats()["opened"] == 40)
        group.servers[0].state = DRAIN
        for part in range(3):
            plane.hub.end_sessions(group.servers[0], ENDINGS.index(Ending.DRAINED), part, 3)
        rows = closed(plane, count=20)
        assert Counter((row.server, ENDINGS[row.ending]) for row in rows) == {(1, Ending.DRAINED): 20}
        assert live(group) == [0, 20]
        end(plane, group, *clients)


def test_what_can_be_read_of_no_group_is_as_before(make_plane: Any) -> None:
    plane = make_plane(threads=1)
    with servers("alive") as made:
        client = plane.connect(plane.listen(made.addresses[0]))
        upstream = made.accept(0)
        plane.until(lambda: plane.hub.stats()["opened"] == 1)
        client.close()
        upstream.close()
        (row,) = closed(plane)
        assert (row.server, row.tries) == (0, ())
        assert row.kind == CLOSED


# UDP


def udp() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    sock.settimeout(PATIENCE_S)
    return sock


class Exchange:
    """A UDP listener with a group of two servers."""

    def __init__(self, plane: Plane, **said: Any) -> None:
        self.plane = plane
        self.servers = [udp(), udp()]
        self.tagged = [_fastpath.Server(1), _fastpath.Server(2)]
        addresses = [sock.getsockname() for sock in self.servers]
        self.group = _fastpath.Group(
            [_fastpath.Member(each, [at]) for each, at in zip(self.tagged, addresses, strict=True)], **FIRST
        )
        self.sock = udp()
        self.sock.setblocking(False)
        self.policy = plane.make_policy(_fastpath.Gate(), group=self.group, **said)
        self.key = plane.hub.add_udp_listener(self.sock.fileno(), self.policy)

    def ask(self, client: socket.socket, at: int, *, answer: bool = True) -> None:
        """A question arrives at a server, and its answer at the client."""
        client.sendto(b"question", self.sock.getsockname())
        data, sender = self.servers[at].recvfrom(100)
        assert data == b"question"
        if answer:
            self.servers[at].sendto(b"answer", sender)
            assert client.recv(100) == b"answer"

    def close(self) -> None:
        self.plane.hub.remove_udp_listener(self.key)
        self.plane.until(lambda: [each.live for each in self.tagged] == [0, 0])
        for sock in (*self.servers, self.sock):
            sock.close()


def test_a_datagram_session_moves_from_a_server_that_is_down_and_stays_with_one_that_drains(make_plane: Any) -> None:
    plane = make_plane(threads=1)
    exchange, client = Exchange(plane), udp()
    exchange.ask(client, 0)
    exchange.tagged[0].state = DRAIN
    exchange.ask(client, 0)
    exchange.tagged[0].state = DOWN
    exchange.ask(client, 1)
    (row,) = closed(plane)
    assert (ENDINGS[row.ending], row.server) == (Ending.SERVER_DOWN, 1)
    assert [each.live for each in exchange.tagged] == [0, 1]
    client.close()
    exchange.close()


def test_refusals_of_two_sessions_count_against_a_server(make_plane: Any) -> None:
    plane = make_plane(threads=1)
    exchange = Exchange(plane)
    clients = [udp(), udp()]
    exchange.servers[0].close()
    for client in clients:
        client.sendto(b"question", exchange.sock.getsockname())
        assert ENDINGS[closed(plane)[-1].ending] is Ending.UPSTREAM_RESET
        plane.rows = [row for row in plane.rows if row.kind == SERVER]
    assert exchange.tagged[0].failures == 2
    assert not plane.rows, "three failures are told by default"
    clients[0].sendto(b"question", exchange.sock.getsockname())
    row = plane.row(lambda row: row.kind == SERVER)
    assert (row.server, row.id, row.errno) == (1, 3, errno.ECONNREFUSED)
    for client in clients:
        client.close()
    exchange.close()


def test_a_silent_server_loses_its_client_to_another(make_plane: Any) -> None:
    plane = make_plane(threads=1)
    exchange, client = Exchange(plane, silence_ms=1), udp()
    exchange.ask(client, 0, answer=False)
    plane.until(lambda: _moved(exchange, client))
    row = plane.row(lambda row: row.kind == CLOSED)
    assert ENDINGS[row.ending] is Ending.UPSTREAM_SILENT
    client.close()
    exchange.close()


def _moved(exchange: Exchange, client: socket.socket) -> bool:
    client.sendto(b"question", exchange.sock.getsockname())
    return exchange.tagged[1].selected > 0


def test_full_servers_take_no_datagram_session(make_plane: Any) -> None:
    plane = make_plane(threads=1)
    exchange = Exchange(plane)
    for each in exchange.tagged:
        each.max_connections = 1
    clients = [udp(), udp(), udp()]
    exchange.ask(clients[0], 0)
    exchange.ask(clients[1], 1)
    clients[2].sendto(b"question", exchange.sock.getsockname())
    row = plane.row(lambda row: row.kind == CLOSED)
    assert ENDINGS[row.ending] is Ending.LIMITED
    assert [each.live for each in exchange.tagged] == [1, 1]
    for client in clients:
        client.close()
    exchange.close()
