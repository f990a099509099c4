"""The experiments about threads and about replacement: what their figures are made of."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bench.experiments.moves import even_after
from bench.experiments.scaling import Threaded, imbalance
from bench.identity import RunName
from bench.pollers import clients_by_poller
from bench.programs import ROOT, listening_ports, wait_until
from bench.subjects import Route, Setup
from bench.subjects.peers import Haproxy
from bench.subjects.replaceable import replaceable_subjects
from bench.topology import Loopback
from oinetd.config import parse_config
from tests.peers import free_port

ROUTE = Route("127.0.0.1", 5001, "127.0.0.1", 5002)


def test_the_imbalance_is_the_busiest_by_the_mean() -> None:
    assert imbalance([2.0, 2.0, 0.0], 2) == (1.0, 2)
    assert imbalance([3.0, 1.0], 2) == (1.5, 2)
    assert imbalance([4.0, 0.1], 2) == (pytest.approx(8 / 4.1), 1)
    assert imbalance([4.0], 4) == (4.0, 1)
    assert imbalance([], 2) == (None, 0)


def test_each_has_its_number_of_threads(tmp_path: Path) -> None:
    subject = Threaded(Haproxy(splice=False), 3)
    assert subject.name == "haproxy×3"
    subject.commands(Setup(Loopback(RunName.new()), (ROUTE,), tmp_path))
    assert "nbthread 3" in (tmp_path / "haproxy.cfg").read_text()


def test_those_that_can_be_replaced_say_how(tmp_path: Path) -> None:
    for number, subject in enumerate(replaceable_subjects()):
        folder = tmp_path / str(number)
        folder.mkdir()
        (command,) = subject.commands(Setup(Loopback(RunName.new()), (ROUTE,), folder))
        text = next(folder.glob("*.c*f*")).read_text()
        if "oinetd" in subject.name:
            assert len(parse_config(text).rules) == 2
        elif "haproxy" in subject.name:
            assert "expose-fd listeners" in text
            assert command[0] == "sh"
        else:
            assert "listen 127.0.0.1:5001 udp;" in text
            assert text.count("{") == text.count("}")


def test_the_load_counts_what_fails() -> None:
    """Through nothing at all: the server itself, and a port where nobody is."""
    port = free_port()
    words = [sys.executable, "-m", "bench.continuity"]
    server = subprocess.Popen([*words, "serve", "127.0.0.1", str(port)], cwd=ROOT)
    try:
        while True:
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", port)) == 0:
                    break
        many = ["--idle", "3", "--half", "1", "--half-s", "0", "--round-trips", "2", "--bulk", "1", "--datagrams", "2"]
        good = load(port, "--rate", "100", *many)
        assert good["counts"]["lasting"] == 9
        assert good["counts"]["blocks"] > 0
        assert (good["faults"], good["counts"]["new_ports"]) == ({}, 0)
    finally:
        server.kill()
        server.wait()
    bad = load(port, "--rate", "100")
    assert bad["counts"]["new_failed"] > 0
    assert "new" not in bad["counts"]


def load(port: int, *words: str) -> dict[str, dict[str, int]]:
    command = [sys.executable, "-m", "bench.continuity", "load", "127.0.0.1", str(port), *words]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        assert program.stdout.readline() == "up\n"
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.wait(0.3)  # it does not end by itself
        said, _ = program.communicate("\n")
        found: dict[str, dict[str, int]] = json.loads(said)
        return found


def test_threads_are_even_from_when_it_stays_so() -> None:
    def looks(*shares: float) -> list[tuple[float, dict[int, float]]]:
        """Two threads, by the share of the first in each 50 ms."""
        found = [(0.0, {1: 0.0, 2: 0.0})]
        for number, share in enumerate(shares, 1):
            before = found[-1][1]
            found.append((number * 0.05, {1: before[1] + share * 0.05, 2: before[2] + (1 - share) * 0.05}))
        return found

    assert even_after(looks(*[1.0] * 20), 0.0, 2) is None
    assert even_after(looks(*[0.5] * 20), 0.0, 2) == pytest.approx(0.1)
    assert even_after(looks(*[1.0] * 4, *[0.55] * 16), 0.0, 2) == pytest.approx(0.3)
    assert even_after(looks(0.5, 0.5, *[1.0] * 4, *[0.55] * 14), 0.0, 2) == pytest.approx(0.4)
    assert even_after(looks(0.5), 0.0, 2) is None


def test_the_connections_of_each_epoll_are_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, select.epoll() as one, select.epoll() as other:
        clients = [socket.create_connection(listener.getsockname()) for _ in range(3)]
        servers = [listener.accept()[0] for _ in range(3)]
        one.register(listener)
        for epoll, sock in zip((one, one, other), servers, strict=True):
            epoll.register(sock)
        found = clients_by_poller([os.getpid()], listener.getsockname()[1])
        ports = [client.getsockname()[1] for client in clients]
        assert found[os.getpid(), one.fileno()] == set(ports[:2])
        assert found[os.getpid(), other.fileno()] == {ports[2]}
        for sock in (*clients, *servers):
            sock.close()


def test_messages_arrive_as_they_were_sent() -> None:
    port = free_port()
    words = [sys.executable, "-m", "bench.messages"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([*words, "serve", "127.0.0.1", str(port)], cwd=ROOT, **pipes) as server:  # type: ignore[call-overload]
        wait_until(lambda: port in listening_ports(server.pid), 10.0, "the server")
        load = [*words, "load", "127.0.0.1", str(port), "--connections", "4", "--seconds", "0.05"]
        with subprocess.Popen(load, cwd=ROOT, **pipes) as client:  # type: ignore[call-overload]
            ports = json.loads(client.stdout.readline())
            client.stdin.write(json.dumps(ports[:2]) + "\n")
            client.stdin.flush()
            found = json.loads(client.stdout.readline())
        server.stdin.write("\n")
        server.stdin.flush()
        said = json.loads(server.stdout.readline())
        server.stdin.close()
    assert said == {"bytes": found["bytes"], "wrong": 0, "open": 0}
    assert found["messages"] * 16384 == found["bytes"] > 0


def test_what_a_move_costs_is_measured() -> None:
    pytest.importorskip("oinetd._fastpath")
    words = ["--connections", "20", "--rounds", "2", "--blocks", "2", "--round-trips", "20"]
    done = subprocess.run(
        [sys.executable, "-m", "bench.moving", *words], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert found["moves"] >= 40
    assert found["together_s"] > 0
