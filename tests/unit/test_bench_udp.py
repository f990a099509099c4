"""The bench's datagram load: what it reckons, how its subjects are configured, and its native half against itself."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bench.account import Account, Watch
from bench.datagrams import ECHO, PATIENCE_S, RECEIVE_TIMEOUT_US, TELL, ask_count, exchange, head, main, settled, verify
from bench.errors import BenchError
from bench.experiment import Options
from bench.experiments.udp import Udp, offered_figures, round_trip_figures
from bench.identity import RunName
from bench.meter import Spent
from bench.programs import Program, listening_ports, python_command
from bench.subjects import Route, Setup, choose_from
from bench.subjects.datagram import datagram_subjects
from bench.topology import Loopback
from oinetd.config import parse_config, render_config
from tests.peers import free_port

_bench = pytest.importorskip("bench._native")

ROUTE = Route("127.0.0.1", 5001, "127.0.0.1", 5002)


def spent(cpu_s: float | None, total_cpu_s: float | None) -> Spent:
    return Spent(Watch(Account(None, list)), cpu_s, total_cpu_s)


def test_a_round_trip_is_two_datagrams() -> None:
    told = {"operations": 500, "lost": 125, "strays": 1500, "elapsed_s": 0.5, "histogram": [[100, 500]]}
    figures = round_trip_figures(told, spent(0.002, 0.004))
    assert figures["datagrams_per_s"] == 2000
    assert figures["loss_percent"] == 20
    assert figures["stray_percent"] == 75
    assert figures["cpu_s_per_million"] == pytest.approx(2.0)
    assert figures["total_cpu_s_per_million"] == pytest.approx(4.0)
    assert figures["p50_us"] == pytest.approx(0.1)


def test_what_is_offered_is_not_what_arrives() -> None:
    told = {"sent": 1000, "delivered": 750, "elapsed_s": 0.25}
    figures = offered_figures(told, spent(None, 0.0075))
    assert (figures["offered_per_s"], figures["datagrams_per_s"], figures["loss_percent"]) == (4000, 3000, 25)
    assert figures["cpu_s_per_million"] is None
    assert figures["total_cpu_s_per_million"] == pytest.approx(10.0)


def test_nothing_offered_has_no_share_that_was_lost() -> None:
    assert offered_figures({"sent": 0, "delivered": 0, "elapsed_s": 1.0}, spent(1.0, 1.0))["loss_percent"] is None


def test_a_count_is_the_last_when_it_is_quiet() -> None:
    counts = [(0.0, 5), (0.05, 7), (0.1, 9), (0.15, 9), (0.21, 9), (0.3, 12)]
    assert settled(iter(counts)) == 9


def test_a_count_that_never_rests_is_taken_as_it_is() -> None:
    assert settled((number * 0.05, number) for number in range(1000)) == 40


def test_cases_cover_sizes_windows_and_rates() -> None:
    quick = [case.name for case in Udp(Options(quick=True)).cases()]
    assert "64B × 1, one under way each" in quick
    assert "1400B × 1, 32 under way" in quick
    assert "64B × 100, 50000 offered a second" in quick
    chosen = Udp(Options(extra={"rate": [1000]})).cases()
    assert [case.parameters["rate"] for case in chosen if "rate" in case.parameters] == [1000, 1000, 1000]


def test_subjects_by_name_and_by_group() -> None:
    known = datagram_subjects(["mine=fwd {listen} {connect}"])
    names = [subject.name for subject in choose_from(known, ["floor", "oinetd", "socat"])]
    assert names == ["direct", "oinetd-native", "oinetd-python", "socat", "mine"]
    assert {subject.protocol for subject in known} == {"udp"}
    with pytest.raises(BenchError, match=r"no subject is called haproxy.*nginx"):
        choose_from(known, ["haproxy"])


@pytest.mark.parametrize("name", ["oinetd-native", "oinetd-python", "rinetd"])
def test_a_configuration_forwards_datagrams(name: str, tmp_path: Path) -> None:
    (subject,) = choose_from(datagram_subjects([]), [name])
    (command,) = subject.commands(Setup(Loopback(RunName.new()), (ROUTE,), tmp_path))
    text = Path(command[-1]).read_text()
    assert "127.0.0.1 5001/udp 127.0.0.1 5002/udp" in " ".join(render_config(parse_config(text)).split())


def test_peers_are_told_to_take_datagrams(tmp_path: Path) -> None:
    socat, nginx = choose_from(datagram_subjects([]), ["socat", "nginx"])
    setup = Setup(Loopback(RunName.new()), (ROUTE,), tmp_path)
    (command,) = socat.commands(setup)
    assert command[-2:] == ["UDP4-LISTEN:5001,bind=127.0.0.1,fork,reuseaddr", "UDP4:127.0.0.1:5002"]
    (command,) = nginx.commands(setup)
    assert "listen 127.0.0.1:5001 udp reuseport; proxy_pass 127.0.0.1:5002;" in Path(command[-1]).read_text()


@contextlib.contextmanager
def far_end(directory: Path) -> Iterator[int]:
    port = free_port()
    command = python_command("bench.datagrams", "serve", "127.0.0.1", str(port))
    program = Program(command, RunName.new(), directory / "far-end.log")
    try:
        program.wait_listening(port, protocol="udp")
        yield port
    finally:
        program.stop()


@contextlib.contextmanager
def connected(port: int, count: int = 1) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(count)]
        for sock in socks:
            sock.connect(("127.0.0.1", port))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, RECEIVE_TIMEOUT_US))
        yield socks


def test_a_bound_socket_is_one_that_listens() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sock, socket.socket(type=socket.SOCK_DGRAM) as peer:
        sock.bind(("127.0.0.1", 0))
        peer.connect(sock.getsockname())
        listening = listening_ports(os.getpid(), "udp")
        assert sock.getsockname()[1] in listening
        assert peer.getsockname()[1] not in listening


def test_the_far_end_echoes_counts_and_tells(tmp_path: Path) -> None:
    with far_end(tmp_path) as port, connected(port) as (sock,):
        assert verify("127.0.0.1", port) == ""
        assert ask_count(sock) == 0
        sock.send(b"short")
        sent, refused, elapsed_ns = _bench.datagram_offer([sock.fileno()], 64, 2000, 0.05)
        assert sent > 0
        assert refused == 0
        assert elapsed_ns >= 50_000_000
        assert ask_count(sock) == sent
        assert exchange(sock, head(ECHO) + b"more") == head(ECHO) + b"more"
        assert exchange(sock, head(TELL)) != head(TELL)


@pytest.mark.parametrize(("clients", "depth"), [(1, 1), (1, 64), (70, 1), (3, 5)])
def test_every_answer_is_in_the_histogram(tmp_path: Path, clients: int, depth: int) -> None:
    with far_end(tmp_path) as port, connected(port, clients) as socks:
        fds = [sock.fileno() for sock in socks]
        operations, lost, _, elapsed_ns, histogram = _bench.datagram_round_trips(fds, depth, 1400, 0.05)
    assert operations >= clients * depth - lost
    assert sum(count for _, count in histogram) == operations
    assert 0 < elapsed_ns <= 50_000_000


@pytest.mark.parametrize("clients", [1, 3])
def test_what_is_never_answered_is_lost(clients: int) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        with connected(silent.getsockname()[1], clients) as socks:
            fds = [sock.fileno() for sock in socks]
            assert _bench.datagram_round_trips(fds, 4, 64, 0.01)[:2] == (0, 4 * clients)


def test_an_answer_counts_once_and_for_the_client_that_asked() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(PATIENCE_S)
        with connected(server.getsockname()[1], 2) as socks:
            fds = [sock.fileno() for sock in socks]
            others = {one.getsockname(): other.getsockname() for one, other in itertools.permutations(socks)}

            def answer_both() -> None:
                for _ in range(2):
                    data, address = server.recvfrom(100)
                    for to in (others[address], address, address):
                        server.sendto(data, to)

            with ThreadPoolExecutor(1) as threads:
                answering = threads.submit(answer_both)
                operations, lost, strays, _, _ = _bench.datagram_round_trips(fds, 1, 64, 0.0)
                answering.result()
    assert (operations, lost) == (2, 0)
    assert strays >= 1


def test_a_refused_port_ends_in_loss_and_not_in_an_error() -> None:
    with connected(free_port()) as (sock,):
        operations, lost, _, _, _ = _bench.datagram_round_trips([sock.fileno()], 2, 64, 0.01)
        assert (operations, lost) == (0, 2)


@pytest.mark.parametrize(
    ("fds", "depth", "size"), [([0], 0, 64), ([0], 65, 64), ([0], 1, 15), ([0], 1, 9217), ([], 1, 64)]
)
def test_an_impossible_load_is_refused(fds: list[int], depth: int, size: int) -> None:
    with pytest.raises(ValueError, match=r"1 to 64 places|16 to 9216 bytes"):
        _bench.datagram_round_trips(fds, depth, size, 0.01)


def test_what_is_no_socket_is_an_error() -> None:
    with open(os.devnull) as no_socket:
        fd = no_socket.fileno()
        with pytest.raises(OSError, match="the round trips failed"):
            _bench.datagram_round_trips([fd], 1, 64, 0.01)
        with pytest.raises(OSError, match="the offer failed"):
            _bench.datagram_offer([fd], 64, 1000, 0.1)
        with pytest.raises(OSError, match="the far end failed"):
            _bench.datagram_serve(fd)


def test_a_client_says_go_and_then_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with far_end(tmp_path) as port:
        common = ["127.0.0.1", str(port), "--seconds", "0.05", "--warm-up", "0.01", "--clients", "2"]
        main(["round-trips", *common, "--window", "3"])
        main(["offer", *common, "--rate", "1000", "--sink", f"127.0.0.1:{port}"])
    go, round_trips, again, offered = capsys.readouterr().out.splitlines()
    assert go == again == "go"
    assert json.loads(round_trips)["operations"] > 0
    told = json.loads(offered)
    assert told["delivered"] == told["sent"] > 0
