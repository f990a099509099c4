"""The bench's datagram load: what it reckons, how its subjects are configured, and its native half against itself."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bench.account import Account, Watch
from bench.datagrams import PATIENCE_S, RECEIVE_TIMEOUT_US, main, verify
from bench.errors import BenchError
from bench.experiment import Options
from bench.experiments.udp import Udp, datagram_faults, offered_figures, round_trip_figures
from bench.identity import RunName
from bench.key import VARIABLE, run_key
from bench.meter import Spent
from bench.programs import Program, listening_ports, python_command, wait_until
from bench.stand import FarEnd
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
    found = {"operations": 500, "lost": 125, "strays": 1500, "elapsed_s": 0.5, "histogram": [[100, 500]]}
    figures = round_trip_figures(found, spent(0.002, 0.004))
    assert figures["datagrams_per_s"] == 2000
    assert figures["loss_percent"] == 20
    assert figures["stray_percent"] == 75
    assert figures["cpu_s_per_million"] == pytest.approx(2.0)
    assert figures["total_cpu_s_per_million"] == pytest.approx(4.0)
    assert figures["p50_us"] == pytest.approx(0.1)


def test_what_is_offered_is_not_what_arrives() -> None:
    found = {"sent": 800, "warm_up_sent": 200, "elapsed_s": 0.25}
    figures = offered_figures(found, 750, spent(None, 0.006))
    assert (figures["offered_per_s"], figures["datagrams_per_s"], figures["loss_percent"]) == (3200, 2400, 25)
    assert figures["cpu_s_per_million"] is None
    assert figures["total_cpu_s_per_million"] == pytest.approx(10.0)


def test_loss_is_never_negative_and_nothing_offered_has_none() -> None:
    nothing = {"sent": 0, "warm_up_sent": 0, "elapsed_s": 1.0}
    assert offered_figures(nothing, 0, spent(1.0, 1.0))["loss_percent"] is None
    assert offered_figures({**nothing, "sent": 100}, 120, spent(1.0, 1.0))["loss_percent"] == 0


def test_faults_of_datagrams() -> None:
    counted = {"echoed": 10, "counted": 0, "doubled": 0, "wrong": 0}
    assert datagram_faults({"every": 10, "doubled": 0, "wrong": 0}, counted) == []
    assert datagram_faults({"every": 12, "doubled": 1, "wrong": 2}, {**counted, "doubled": 3}) == [
        "4 datagrams were doubled",
        "2 datagrams were changed, or not the other end's",
        "2 datagrams were answered that the server never saw",
    ]


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


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> object:
    """The key of a run, in the environment as client and server have it."""
    monkeypatch.setenv(VARIABLE, "00112233445566778899aabbccddeeff")
    return run_key()


@contextlib.contextmanager
def far_end(directory: Path) -> Iterator[FarEnd]:
    port = free_port()
    command = python_command("bench.datagrams", "serve", "127.0.0.1", str(port))
    program = Program(command, RunName.new(), directory / "far-end.log", pipe=True)
    try:
        program.wait_listening(port, protocol="udp")
        yield FarEnd(port, program)
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


def settled(far: FarEnd, name: str, wanted: int) -> dict[str, int]:
    wait_until(lambda: far.counts().numbers[name] >= wanted, 5.0, f"{name} {wanted}")
    return far.counts().numbers


def test_the_far_end_answers_and_counts_each_number_once(tmp_path: Path, key: object) -> None:
    with far_end(tmp_path) as far, connected(far.port) as (sock,):
        assert verify("127.0.0.1", far.port) == ""
        before = far.counts().numbers
        offered = _bench.datagram_offer(key, [sock.fileno()], 64, 5, 2000, 0.05)
        assert offered["sent"] > 0
        assert offered["refused"] == 0
        assert settled(far, "counted", offered["sent"])["counted"] == offered["sent"]
        again = _bench.datagram_offer(key, [sock.fileno()], 64, 5, 2000, 0.02)
        counts = settled(far, "doubled", min(again["sent"], offered["sent"]))
        assert counts["counted"] + counts["doubled"] == offered["sent"] + again["sent"]
        sock.send(b"short")
        sock.send(bytes(64))
        assert settled(far, "wrong", 2)["wrong"] == before["wrong"] + 2


@pytest.mark.parametrize(("clients", "depth"), [(1, 1), (1, 64), (70, 1), (3, 5)])
def test_every_answer_is_in_the_histogram(tmp_path: Path, key: object, clients: int, depth: int) -> None:
    with far_end(tmp_path) as far, connected(far.port, clients) as socks:
        fds = [sock.fileno() for sock in socks]
        found = _bench.datagram_round_trips(key, fds, depth, 1400, 7, 0.05)
    assert found["operations"] >= clients * depth - found["lost"]
    assert sum(count for _, count in found["histogram"]) == found["operations"]
    assert 0 < found["elapsed_s"] <= 0.05
    assert (found["doubled"], found["wrong"]) == (0, 0)


@pytest.mark.parametrize("clients", [1, 3])
def test_what_is_never_answered_is_lost(key: object, clients: int) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        with connected(silent.getsockname()[1], clients) as socks:
            found = _bench.datagram_round_trips(key, [sock.fileno() for sock in socks], 4, 64, 7, 0.01)
            assert (found["operations"], found["lost"]) == (0, 4 * clients)


def test_answers_of_a_relay_that_makes_them_itself_are_wrong(key: object) -> None:
    """It sends back what came: not what the far end would have answered."""
    with socket.socket(type=socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(PATIENCE_S)
        with connected(server.getsockname()[1]) as (sock,), ThreadPoolExecutor(1) as threads:

            def echo() -> None:
                data, address = server.recvfrom(100)
                server.sendto(data, address)

            answering = threads.submit(echo)
            found = _bench.datagram_round_trips(key, [sock.fileno()], 1, 64, 7, 0.0)
            answering.result()
    assert (found["operations"], found["lost"], found["wrong"]) == (0, 1, 1)


def test_a_refused_port_ends_in_loss_and_not_in_an_error(key: object) -> None:
    with connected(free_port()) as (sock,):
        found = _bench.datagram_round_trips(key, [sock.fileno()], 2, 64, 7, 0.01)
        assert (found["operations"], found["lost"]) == (0, 2)


@pytest.mark.parametrize(
    ("fds", "depth", "size"), [([0], 0, 64), ([0], 65, 64), ([0], 1, 31), ([0], 1, 9217), ([], 1, 64)]
)
def test_an_impossible_load_is_refused(key: object, fds: list[int], depth: int, size: int) -> None:
    with pytest.raises(ValueError, match=r"1 to 64 places|32 to 9216 bytes"):
        _bench.datagram_round_trips(key, fds, depth, size, 7, 0.01)


def test_what_is_no_socket_is_an_error(key: object) -> None:
    with open(os.devnull) as no_socket:
        fd = no_socket.fileno()
        with pytest.raises(OSError, match="the round trips failed"):
            _bench.datagram_round_trips(key, [fd], 1, 64, 7, 0.01)
        with pytest.raises(OSError, match="the offer failed"):
            _bench.datagram_offer(key, [fd], 64, 7, 1000, 0.1)
        with pytest.raises(OSError, match="the far end failed"):
            _bench.DatagramServer(key).serve(fd)


def test_a_client_says_where_it_is_and_then_what_it_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n\n"))
    with far_end(tmp_path) as far:
        common = ["127.0.0.1", str(far.port), "--seconds", "0.05", "--warm-up", "0.01", "--clients", "2"]
        main(["round-trips", *common, "--window", "3"])
        main(["offer", *common, "--rate", "1000"])
    *words, round_trips, up, go, over, offered = capsys.readouterr().out.splitlines()
    assert words == [up, go, over] == ["up", "go", "over"]
    assert json.loads(round_trips)["operations"] > 0
    assert json.loads(offered)["sent"] > 0
