"""UDP rules in the daemon: its log, its reloads, its end."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.daemon.process import PATIENCE_S, Oinetd, own_address, until
from tests.daemon.test_manager import handed

Start = Callable[..., Oinetd]

AT_ONCE = "drain-timeout off\n"


def party(host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(PATIENCE_S)
    sock.bind((host, port))
    return sock


@pytest.fixture
def upstream() -> Iterator[socket.socket]:
    with party() as sock:
        yield sock


@pytest.fixture
def client() -> Iterator[socket.socket]:
    with party() as sock:
        yield sock


def ask(client: socket.socket, upstream: socket.socket, to: tuple[str, int], data: bytes = b"hello") -> int:
    """One datagram there and one back; the port from which the daemon wrote."""
    client.sendto(data, to)
    got, session = upstream.recvfrom(70_000)
    assert got == data
    upstream.sendto(data, session)
    assert client.recvfrom(70_000) == (data, to)
    return int(session[1])


def rule(upstream: socket.socket, options: str = "") -> str:
    host, port = upstream.getsockname()
    return f"127.0.0.1 0/udp {host} {port}/udp {options}\n"


def test_the_log(oinetd: Start, tmp_path: Path, upstream: socket.socket, client: socket.socket) -> None:
    log = tmp_path / "log"
    daemon = oinetd(f"logfile {log}\n{rule(upstream, '[timeout=0.1]')}").ready()
    ask(client, upstream, daemon.address)
    until(lambda: log.read_text().count("\n") == 2, "both lines")
    first, last = [line.split("\t", 1)[1] for line in log.read_text().splitlines()]
    route = f"127.0.0.1\t127.0.0.1\t0\t127.0.0.1\t{upstream.getsockname()[1]}"
    assert first == f"{route}\t0\t0\topened"
    assert last == f"{route}\t5\t5\tdone-local-closed"
    assert daemon.stop() == 0


def test_the_json_log(oinetd: Start, tmp_path: Path, upstream: socket.socket, client: socket.socket) -> None:
    log = tmp_path / "log"
    text = f"logfile {log}\nlogformat json\n{rule(upstream, '[timeout=0.1]')}deny 127.0.0.2\n"
    daemon = oinetd(text).ready()
    with party("127.0.0.2") as refused:
        refused.sendto(b"x", daemon.address)
        refused.sendto(b"x", daemon.address)
    ask(client, upstream, daemon.address)
    until(lambda: log.read_text().count("\n") == 3, "three lines")
    turned_away, _, last = map(json.loads, log.read_text().splitlines())
    assert (turned_away["event"], turned_away["ending"], turned_away["client"]) == ("refused", "denied", "127.0.0.2")
    assert (last["ending"], last["engine"]) == ("idle-timeout", "native")
    assert (last["datagrams_up"], last["datagrams_down"], last["datagrams_lost"]) == (1, 1, 0)
    assert daemon.stop() == 0


def test_sessions_outlive_reloads(oinetd: Start, upstream: socket.socket, client: socket.socket) -> None:
    daemon = oinetd(AT_ONCE + rule(upstream)).ready()
    port = ask(client, upstream, daemon.address)
    for turn in range(20):
        assert "reloaded" in daemon.reload(f"{AT_ONCE}connect-timeout {turn + 1}\n{rule(upstream)}")
        assert ask(client, upstream, daemon.address) == port
    for _ in range(2):  # at once, as those who script it do
        daemon.signal(signal.SIGHUP)
    assert ask(client, upstream, daemon.address) == port
    daemon.signal(signal.SIGUSR2)
    daemon.wait_said("1 session live, 1 accepted")
    assert daemon.stop() == 0


def test_a_reload_that_fails_changes_nothing(oinetd: Start, upstream: socket.socket, client: socket.socket) -> None:
    daemon = oinetd(AT_ONCE + rule(upstream)).ready()
    port = ask(client, upstream, daemon.address)
    taken = upstream.getsockname()[1]
    assert "is in use" in daemon.reload(f"{rule(upstream)}127.0.0.1 {taken}/udp 127.0.0.1 9/udp\n")
    assert ask(client, upstream, daemon.address) == port
    assert daemon.stop() == 0


def test_it_ends_when_sessions_are_silent(
    oinetd: Start, tmp_path: Path, upstream: socket.socket, client: socket.socket
) -> None:
    log = tmp_path / "log"
    daemon = oinetd(f"drain-timeout 1h\nlogfile {log}\n{rule(upstream, '[timeout=0.5]')}").ready()
    ask(client, upstream, daemon.address)
    assert daemon.stop() == 0
    assert log.read_text().splitlines()[1].endswith("\t5\t5\tdone-local-closed")


def test_it_ends_when_the_drain_does(
    oinetd: Start, tmp_path: Path, upstream: socket.socket, client: socket.socket
) -> None:
    log = tmp_path / "log"
    daemon = oinetd(f"drain-timeout 0.1\nlogfile {log}\n{rule(upstream)}").ready()
    ask(client, upstream, daemon.address)
    assert daemon.stop() == 0
    assert log.read_text().splitlines()[1].endswith("\t5\t5\tdone-local-closed")


def test_a_socket_of_the_service_manager(oinetd: Start, upstream: socket.socket, client: socket.socket) -> None:
    host = own_address()
    with party(host, 5353) as given:
        text = f"{AT_ONCE}{host} 5353/udp 127.0.0.1 {upstream.getsockname()[1]}/udp\n"
        daemon = oinetd(text, **handed(given)).ready()
        ask(client, upstream, (host, 5353))
        for again in (AT_ONCE, text):
            assert "reloaded" in daemon.reload(again)
        ask(client, upstream, (host, 5353))
        assert daemon.stop() == 0


def test_rinetds_three_kinds_of_rules(oinetd: Start, upstream: socket.socket, client: socket.socket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE_S)
        port, back = upstream.getsockname()[1], listener.getsockname()[1]
        text = f"{AT_ONCE}{rule(upstream)}127.0.0.1 0/udp 127.0.0.1 {back}/tcp\n127.0.0.1 0/tcp 127.0.0.1 {port}/udp\n"
        daemon = oinetd(text).ready()
        until(lambda: len(daemon.addresses) == 3, "its three listeners")
        ask(client, upstream, daemon.address)
        client.sendto(b"to tcp", daemon.addresses[1])
        connection, _ = listener.accept()
        with connection, socket.create_connection(daemon.addresses[2], PATIENCE_S) as stream:
            assert connection.recv(100) == b"to tcp"
            connection.sendall(b"from tcp")
            assert client.recvfrom(100) == (b"from tcp", daemon.addresses[1])
            stream.sendall(b"to udp")
            got, session = upstream.recvfrom(100)
            upstream.sendto(got.upper(), session)
            assert stream.recv(100) == b"TO UDP"
        assert daemon.stop() == 0
