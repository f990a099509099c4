"""UDP in the reactors: many sessions, many reactors, a control plane that is busy elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import resource
import select
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

import pytest

from oinetd import Ending, Forwarder, parse_config
from tests.daemon.process import own_address
from tests.peers import until
from tests.udp.rig import PATIENCE_S, Party, echo, serving

_fastpath = pytest.importorskip("oinetd._fastpath")

CLOSED, OPENED = 2, 1


def udp(host: str = "127.0.0.1") -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    sock.settimeout(PATIENCE_S)
    sock.bind((host, 0))
    return sock


class Ground:
    """A data plane with one UDP listener on every address; `upstream` is where its sessions write to."""

    def __init__(self, *, threads: int = 1, sessions_max: int = 0, **said: Any) -> None:
        self.udp_gate = _fastpath.Gate(sessions_max)
        self.hub = _fastpath.Hub(_fastpath.Gate(), threads, udp_gate=self.udp_gate)
        self.upstream = udp()
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.sock.setsockopt(socket.IPPROTO_IP, 8, 1)  # IP_PKTINFO
        self.sock.bind(("0.0.0.0", 0))
        self.gate = _fastpath.Gate()
        self.policy = _fastpath.Policy(7, self.gate, addresses=[self.upstream.getsockname()], **said)
        self.key = self.hub.add_udp_listener(self.sock.fileno(), self.policy)

    def at(self, number: int) -> tuple[str, int]:
        """One of 62,500 addresses at which the listener is reached."""
        return f"127.1.{number // 250}.{number % 250 + 1}", self.sock.getsockname()[1]

    def rows(self) -> list[Any]:
        found = []
        while rows := self.hub.drain(1000):
            found += rows
        return found

    def close(self) -> list[Any]:
        rows = self.rows() + list(self.hub.stop())
        for sock in (self.sock, self.upstream):
            sock.close()
        return rows


@contextlib.contextmanager
def ground(**said: Any) -> Iterator[Ground]:
    made = Ground(**said)
    try:
        yield made
    finally:
        made.close()


def quiet(sock: socket.socket) -> bool:
    return not select.select([sock], [], [], 0)[0]


def until_now(condition: Any) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 11_000:
        pytest.skip("the limit of descriptors is below 11,000")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_descriptors")
def test_ten_thousand_sessions() -> None:
    with ground() as made, udp() as client:
        ends = {}
        opened = []
        for number in range(10_000):
            client.sendto(b"%d" % number, made.at(number))
            data, ends[number] = made.upstream.recvfrom(100)
            assert data == b"%d" % number
            if number % 1000 == 999:
                opened += made.rows()
        assert len(set(ends.values())) == 10_000
        for number in range(0, 10_000, 97):  # each keeps its port, and each answer comes from where was written to
            client.sendto(b"again", made.at(number))
            assert made.upstream.recvfrom(100) == (b"again", ends[number])
            made.upstream.sendto(b"answer", ends[number])
            assert client.recvfrom(100) == (b"answer", made.at(number))
        opened += made.rows()
        assert [row[0] for row in opened] == [OPENED] * 10_000
        stats = made.hub.stats()
        assert stats["udp_sessions"] == [10_000]
        assert stats["udp_session_bytes"] <= 320
        assert len(made.hub.snapshot()) == 10_000
        made.hub.abort_all()
        until_now(lambda: made.hub.stats()["udp_sessions"] == [0])
        closed: list[Any] = []
        until_now(lambda: closed.extend(made.rows()) or len(closed) >= 10_000)
        assert {row[13] for row in closed} == {list(Ending).index(Ending.ABORTED)}
        assert len({row[1] for row in closed}) == 10_000
        assert made.udp_gate.live == made.gate.live == 0


@pytest.mark.parametrize("sessions", [300, 6000])
@pytest.mark.usefixtures("many_descriptors")
def test_a_bound_of_a_rule_that_is_lowered(sessions: int) -> None:
    """Who is too many ends, also where that is more than the ring of records holds; newcomers still get their turn."""
    with ground() as made, udp() as client:
        rows = []
        for number in range(sessions):
            client.sendto(b"x", made.at(number))
            made.upstream.recvfrom(100)
            if number % 1000 == 999:
                rows += made.rows()
        made.gate.set_limits(10, 0)
        for number in range(sessions, sessions + 3):  # before the reactor is told, a few end for each
            client.sendto(b"x", made.at(number))
        until_now(lambda: made.gate.live < sessions)
        rules = _fastpath.Policy(8, made.gate, addresses=[made.upstream.getsockname()])
        made.hub.replace_udp_listener(made.key, rules, True)
        until_now(lambda: rows.extend(made.rows()) or made.gate.live <= 10)
        while not quiet(made.upstream):
            made.upstream.recvfrom(100)
        client.sendto(b"new", made.at(sessions + 9))
        while made.upstream.recvfrom(100)[0] != b"new":  # the newcomers' datagrams may still come before
            pass
        assert made.gate.live <= 10
        rows += made.close()
        assert len([row for row in rows if row[0] == CLOSED]) == len([row for row in rows if row[0] == OPENED])


def test_a_bounded_rule_serves_each_of_its_ports() -> None:
    """Its sessions make room for each other whatever socket they came by."""
    with ground(threads=2) as made, udp() as client:
        made.gate.set_limits(1, 0)
        others = [udp() for _ in range(3)]
        for sock in others:
            sock.setblocking(False)
        keys = [made.hub.add_udp_listener(sock.fileno(), made.policy, made.key) for sock in others]
        assert {key >> 32 for key in keys} == {made.key >> 32}
        for _ in range(3):
            for sock in others:
                client.sendto(b"x", sock.getsockname())
                assert made.upstream.recvfrom(100)[0] == b"x"
        for key, sock in zip(keys, others, strict=True):
            made.hub.remove_udp_listener(key)
            sock.close()


def test_records_of_connections_have_no_datagrams() -> None:
    """Places in the ring of records are used again, whatever stood there."""
    with ground() as made, udp() as client, socket.create_server(("127.0.0.1", 0)) as upstream:
        for number in range(30):
            client.sendto(b"x", made.at(number))
            made.upstream.recvfrom(100)
        listening = socket.create_server(("127.0.0.1", 0))
        listening.setblocking(False)
        index = made.hub.add_listener(
            listening.fileno(), _fastpath.Policy(9, made.gate, addresses=[upstream.getsockname()])
        )
        made.hub.abort_all()
        until_now(lambda: made.gate.live == 0)
        rows = made.rows()
        for _ in range(2100):  # once around the ring
            with socket.create_connection(listening.getsockname()):
                upstream.accept()[0].close()
            rows += made.rows()
        made.hub.remove_listener(index)
        listening.close()
        rows += made.close()
        assert {row[16:19] for row in rows if row[2] == 9} == {(0, 0, 0)}
        assert sum(row[16] for row in rows if row[0] == CLOSED) == 30


def test_records_wait_for_room_and_datagrams_do_not() -> None:
    """Nobody takes records: sessions go on, no new one begins, and no record is lost."""
    with ground(sessions_max=50) as made, udp() as client:
        begun = 0
        for number in range(10_000):
            client.sendto(b"new", made.at(number))
            client.sendto(b"known", made.at(max(begun - 1, 0)))
            data, session = made.upstream.recvfrom(100)
            begun += data == b"new"
            if data == b"new":
                made.upstream.recvfrom(100)
            if begun <= number:
                break
        assert 1000 < begun < 10_000
        for _ in range(100):
            made.upstream.sendto(b"answer", session)
            assert client.recvfrom(100) == (b"answer", made.at(begun - 1))
        assert made.gate.take_lost() == 1
        rows = made.rows()
        client.sendto(b"at last", made.at(12_000))
        assert made.upstream.recvfrom(100)[0] == b"at last"
        rows += made.rows()
        assert sorted(row[1] for row in rows if row[0] == OPENED) == list(range(1, begun + 2))
        assert sum(row[0] == CLOSED for row in rows) == begun + 1 - 50


def test_a_reactor_with_all_places_gives_one_up() -> None:
    with ground(threads=2, sessions_max=2) as made, udp() as client, udp() as other_client, udp() as second:
        second.setblocking(False)
        key = made.hub.add_udp_listener(second.fileno(), made.policy)
        assert made.hub.stats()["udp_listeners"] == [1, 1]
        for number in range(2):
            client.sendto(b"x", made.at(number))
            made.upstream.recvfrom(100)
        other_client.sendto(b"served", second.getsockname())
        # It asks the other reactor for room, and is served at once where that is as fast.
        until_now(lambda: made.gate.take_lost() or not quiet(made.upstream))
        if quiet(made.upstream):
            until_now(lambda: made.udp_gate.live == 1)
            other_client.sendto(b"served", second.getsockname())
        assert made.upstream.recvfrom(100)[0] == b"served"
        assert sorted(made.hub.stats()["udp_sessions"]) == [1, 1]
        (closed,) = [row for row in made.rows() if row[0] == CLOSED]
        assert (closed[1], closed[13]) == (1, list(Ending).index(Ending.DISPLACED))
        made.hub.remove_udp_listener(key)


def test_a_lower_bound_ends_the_oldest() -> None:
    with ground(sessions_max=10) as made, udp() as client:
        for number in range(10):
            client.sendto(b"x", made.at(number))
            made.upstream.recvfrom(100)
        made.udp_gate.set_limits(3, 0)
        made.hub.trim_udp_sessions()
        assert made.udp_gate.live == 3
        assert [row[1] for row in made.rows() if row[0] == CLOSED] == [1, 2, 3, 4, 5, 6, 7]


def test_the_refused_are_told_of_once() -> None:
    """Of 5,000 addresses the last ones are still known afterwards; the first ones had to make room."""
    with ground(access=((), [(1, b"*")], (), ())) as made:

        def send_from(numbers: range) -> int:
            for number in numbers:
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                    client.bind((f"127.2.{number // 250}.{number % 250 + 1}", 0))
                    client.sendto(b"x", made.at(0))
                until_now(made.gate.take_lost)
            return sum(row[0] == CLOSED for row in made.rows())

        assert send_from(range(2000)) + send_from(range(2000, 5000)) == 5000
        assert send_from(range(4990, 5000)) == 0
        assert send_from(range(10)) == 10


def test_datagrams_flow_while_python_does_not() -> None:
    """The interpreter lock is held for two seconds; a thousand round trips are over before it is let go."""
    with ground() as made, udp() as client:
        go, told = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            os.read(go[0], 1)
            for number in range(1000):
                client.sendto(b"%d" % number, made.at(number % 20))
                data, session = made.upstream.recvfrom(100)
                made.upstream.sendto(data, session)
                if client.recv(100) != b"%d" % number:
                    os._exit(1)
            os.write(told[1], struct.pack("d", time.monotonic()))
            os._exit(0)
        os.write(go[1], b"x")
        ctypes.PyDLL(None).usleep(2_000_000)
        released = time.monotonic()
        (finished,) = struct.unpack("d", os.read(told[0], 8))
        assert os.waitpid(child, 0)[1] == 0
        assert finished < released
        for end in (*go, *told):
            os.close(end)


async def test_reloads_under_load() -> None:
    """Ports stay, nothing is lost, while a hundred reloads change the destination's options."""
    front = own_address()
    with echo() as upstream, Party() as client:
        text = f"{front} 8000/udp 127.0.0.1 {upstream.address[1]}/udp\n"
        async with serving(text) as served:
            answered = 0
            stop = False

            async def load() -> None:
                nonlocal answered
                while not stop:
                    for number in range(32):
                        client.send(b"%d" % number, (front, 8000))
                    assert [(await client.receive())[0] for _ in range(32)] == [b"%d" % number for number in range(32)]
                    answered += 32

            loading = asyncio.ensure_future(load())
            for turn in range(100):
                await served.forwarder.reload(
                    parse_config(f"{text}drain-timeout {turn + 1}\nmax-udp-sessions {9 + turn}\n")
                )
                before = answered
                await until(lambda before=before: answered > before or loading.done())
            stop = True
            await loading
            assert (len(served.opened), len(served.closed)) == (1, 0)
            (record,) = served.forwarder.sessions()
            assert (record.datagrams_up, record.datagrams_down, record.datagrams_lost) == (answered, answered, 0)


async def test_sums_where_nobody_wants_records() -> None:
    """Without a log and hooks the counters are the same; a listener that lingers closes all the same."""
    front = own_address()
    with echo() as upstream, Party() as one, Party() as other, Party("127.0.0.2") as refused:
        rule = f"{front} 8000/udp 127.0.0.1 {upstream.address[1]}/udp [timeout=0.1]\ndeny 127.0.0.2\n"
        async with Forwarder(parse_config(rule)) as forwarder:
            for client in (one, other):
                await client.ask(b"hello", (front, 8000))
            refused.send(b"x", (front, 8000))
            await until(lambda: forwarder.stats().refused)
            await until(lambda: forwarder.stats().live == 0)
            stats = forwarder.stats()
            await until(lambda: forwarder.stats().datagrams_up == 2)
            stats = forwarder.stats()
            assert (stats.accepted, stats.refused, stats.failed) == (3, 1, 0)
            assert (stats.bytes_up, stats.bytes_down) == (10, 10)
            assert (stats.datagrams_up, stats.datagrams_down, stats.datagrams_lost) == (2, 2, 1)
            assert next(iter(stats.rules.values())).endings == {Ending.IDLE_TIMEOUT: 2, Ending.DENIED: 1}
            await one.ask(b"again", (front, 8000))
            await forwarder.reload(parse_config(""))
            await until(lambda: is_free(front, 8000))


def is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((host, port))
        except OSError:
            return False
    return True
