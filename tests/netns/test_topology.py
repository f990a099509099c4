"""The bench's namespaces: they come up as drawn, and nothing of them stays."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from pyroute2 import netns

from bench.cgroup import Group
from bench.errors import BenchError
from bench.identity import MARKER, RunName
from bench.leftovers import find_leftovers, remove_leftovers
from bench.loads import bulk_load
from bench.path import PathQuality
from bench.programs import Place, Program, wait_until
from bench.results import Result
from bench.stand import Stand
from bench.subjects import choose
from bench.tools import available
from bench.topology import NETNS_DIR, Namespaces, remove_namespace

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

ROOT = Path(__file__).resolve().parents[2]
ALLOWED = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")


def of_runs(*pids: int) -> set[str]:
    """Everything on this machine that bears the name of a run of one of the processes, or is marked with it."""
    places = [NETNS_DIR, Path("/tmp"), *Path("/sys/fs/cgroup").iterdir(), Path("/sys/fs/cgroup")]
    found = set()
    for place in places:
        if place.is_dir():
            for entry in place.iterdir():
                run = RunName.parse(entry.name)
                if run is not None and run.pid in pids:
                    found.add(str(entry))
    for process in psutil.process_iter():
        try:
            run = RunName.parse(process.environ().get(MARKER, ""))
        except psutil.Error:
            continue
        if run is not None and run.pid in pids:
            found.add(f"process {process.pid}")
    return found


def inside(namespace: str, *command: str) -> str:
    return subprocess.run(
        ["nsenter", f"--net=/run/netns/{namespace}", *command], capture_output=True, text=True, check=True
    ).stdout


def test_up_and_down_leave_nothing() -> None:
    interfaces = set(psutil.net_if_addrs())
    allowed = ALLOWED.read_text()
    with Namespaces(RunName.new()) as topology, topology.between():
        assert set(psutil.net_if_addrs()) == interfaces
        assert ALLOWED.read_text() == allowed
        for place in topology.places:
            said = inside(place.namespace, "sysctl", "-n", "net.ipv4.tcp_congestion_control")
            assert said.strip() == topology.facts["congestion control"]
            assert said.strip() != "bbr"
        listening = subprocess.Popen(
            topology.server.enter([sys.executable, "-c", LISTEN]), stdout=subprocess.PIPE, text=True
        )
        with listening:
            assert listening.stdout is not None
            assert listening.stdout.readline() == "listening\n"
            assert inside(topology.client.namespace, sys.executable, "-c", CONNECT) == "from 10.0.1.2"
    assert of_runs(os.getpid()) == set()


LISTEN = """
import socket
with socket.create_server(("10.0.0.2", 5000)) as listener:
    print("listening", flush=True)
    peer, address = listener.accept()
    with peer:
        peer.sendall(f"from {address[0]}".encode())
"""
CONNECT = """
import socket
with socket.create_connection(("10.0.0.2", 5000), timeout=20) as sock:
    print(sock.recv(100).decode(), end="")
"""


def test_two_topologies_side_by_side() -> None:
    with (
        Namespaces(RunName.new()) as one,
        Namespaces(RunName.new()) as two,
        one.between(),
        two.between(),
    ):
        names = {place.namespace for topology in (one, two) for place in topology.places}
        assert len(names) == 6
        assert names <= {entry.name for entry in NETNS_DIR.iterdir()}
    assert of_runs(os.getpid()) == set()


def test_an_error_within_takes_everything_down() -> None:
    with pytest.raises(BenchError, match="on purpose"), Stand("netns") as stand, stand.far_end():
        raise BenchError("on purpose")
    assert of_runs(os.getpid()) == set()


def test_a_subject_that_cannot_start_says_why() -> None:
    (peer,) = choose([], [65536], ["broken=sh -c 'echo no luck >&2; exit 3' {listen}"])
    with (
        Stand("netns") as stand,
        pytest.raises(BenchError, match="status 3: no luck"),
        stand.subject(peer, 5001),
    ):
        pass
    assert of_runs(os.getpid()) == set()


def test_loss_and_bandwidth_of_the_path() -> None:
    quality = PathQuality(loss_percent=2.0, mbit=50.0)
    with Stand("netns", path=quality) as stand, stand.far_end() as far:
        (direct,) = choose(["direct"], [65536], [])
        with stand.subject(direct, far.port) as running:
            load = bulk_load(stand, running, far, connections=1, up=True, seconds=0.3)
            place = stand.topology.client.namespace
            queues = inside(place, "tc", "qdisc", "show", "dev", "to-forwarder")
    assert load.invalid == [] or all(text.startswith("drift") for text in load.invalid)
    assert sum(load.figures["streams"]) > 0
    assert "tbf" in queues or "netem" in queues


def test_settings_that_a_subject_leaves_are_its_own_and_are_named() -> None:
    relay = Path(__file__).parents[1] / "bench" / "cheats.py"
    script = f"sysctl -qw net.ipv4.tcp_fin_timeout=17; exec {sys.executable} {relay} honest {{listen}} {{connect}}"
    (peer,) = choose([], [65536], [f"setter=sh -c '{script}'"])
    with Stand("netns") as stand:
        with stand.subject(peer, 5001) as running:
            place = stand.topology.forwarder
            wait_until(
                lambda: inside(place.namespace, "sysctl", "-n", "net.ipv4.tcp_fin_timeout").strip() == "17",
                5.0,
                "sysctl",
            )
        assert running.changed == ["net.ipv4.tcp_fin_timeout was 60 and is 17"]
        with stand.subject(peer, 5001):
            assert place != stand.topology.forwarder
    assert of_runs(os.getpid()) == set()


def bench(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "bench", *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.parametrize("ended", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_takes_everything_down(ended: signal.Signals, tmp_path: Path) -> None:
    with bench("rate", "--subjects", "direct,ref-polling", "--out", str(tmp_path)) as run:
        started(run, lambda: any("process" in thing for thing in of_runs(run.pid)))
        run.send_signal(ended)
        output, _ = run.communicate()
    assert "interrupted" in output
    assert of_runs(run.pid) == set()


def test_what_a_killed_run_leaves_is_found_by_the_next(tmp_path: Path) -> None:
    with bench("rate", "--subjects", "direct,ref-polling", "--out", str(tmp_path)) as run:
        started(run, lambda: any("process" in thing for thing in of_runs(run.pid)))
        run.kill()
    assert of_runs(run.pid)
    remove_leftovers(find_leftovers())
    assert of_runs(run.pid) == set()


DISGUISED = """
import ctypes, os, time
libc = ctypes.CDLL(None)
words = open("/proc/self/stat").read().rpartition(")")[2].split()
begin, end = int(words[47]), int(words[48])  # where the kernel reads the environment
ctypes.memset(begin, 0, end - begin)
print("ready", flush=True)
time.sleep(600)
"""


def test_programs_that_wrote_over_their_environment_are_found_by_group_and_namespace(tmp_path: Path) -> None:
    run = RunName(2, 1, 1)  # of an owner that is dead: no process 2 began then
    place = Place(f"{run}-client")
    group = Group.make(run, "loads")
    netns.create(place.namespace)
    try:
        with contextlib.ExitStack() as stack:
            programs = [
                Program([sys.executable, "-c", DISGUISED], run, tmp_path / "log", pipe=True, **where)
                for where in ({"place": place}, {"groups": group.directories if group else []})
            ]
            for program in programs:
                stack.callback(program.stop)
                assert program.read_line() == "ready\n"
            found = find_leftovers()
            expected = {program.pid for program in programs[: 2 if group else 1]}
            assert expected <= set(found.processes)
            found.processes = sorted(expected)
            found.namespaces, found.groups, found.directories = [place.namespace], [], []
            remove_leftovers(found)
            wait_until(lambda: not any(program.running for program in programs[: len(expected)]), 5.0, "they run on")
    finally:
        remove_namespace(place.namespace)
        if group:
            group.close()


def clocks_were_late(result: Result, name: str) -> bool:
    """Whether the machine was too busy for the bench to say what a load cost."""
    return any("CPU unknown" in text for each in result.samples if each.subject == name for text in each.ambient)


def started(run: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    def holds() -> bool:
        assert run.poll() is None, run.stdout and run.stdout.read()
        return condition()

    wait_until(holds, 30, "the run does not begin")


@pytest.mark.skipif(available("iperf3") is None, reason="iperf3 is not installed")
def test_a_quick_run(tmp_path: Path) -> None:
    with bench(
        "throughput",
        "--quick",
        "--seconds",
        "0.2",
        "--subjects",
        "direct,ref-polling,python",
        "--rounds",
        "1",
        "--out",
        str(tmp_path),
    ) as run:
        output, _ = run.communicate()
    assert run.returncode == 0, output
    (path,) = tmp_path.iterdir()
    result = Result.load(path)
    assert json.loads(path.read_text())["format"] == 1
    assert [subject.name for subject in result.measured()] == ["direct", "ref-polling", "python"], output
    for subject in result.subjects:
        assert (subject.integrity, subject.half_close, subject.unavailable) == ("", "", "")
        assert len(result.values(subject.name, "P1", "gbit_s")) == 1
        assert [result.invalid(subject.name, case) for case in result.cases()] == [[], [], []]
        costs = result.values(subject.name, "P1", "cpu_s_per_gb")
        assert len(costs) == (0 if subject.family == "floor" or clocks_were_late(result, subject.name) else 1)
    assert "ref-polling" in output
    assert of_runs(run.pid) == set()


def test_a_quick_run_of_datagrams(tmp_path: Path) -> None:
    subjects = ["direct", "oinetd-native", "oinetd-python"]
    words = [
        "--quick",
        "--rounds",
        "1",
        "--seconds",
        "0.05",
        "--rate",
        "1000",
        "--subjects",
        ",".join(subjects),
        "--out",
        str(tmp_path),
    ]
    with bench("udp", *words) as run:
        output, _ = run.communicate()
    assert run.returncode == 0, output
    (path,) = tmp_path.iterdir()
    result = Result.load(path)
    assert not [sample.error for sample in result.samples if sample.error]
    assert [subject.name for subject in result.measured()] == subjects, output
    for subject in result.subjects:
        assert (subject.integrity, subject.half_close, subject.unavailable) == ("", None, "")
        for case in result.cases():
            assert result.values(subject.name, case, "datagrams_per_s") > [0.0]
            assert len(result.values(subject.name, case, "loss_percent")) == 1
            costs = result.values(subject.name, case, "cpu_s_per_million")
            assert len(costs) == (0 if subject.family == "floor" else 1)
    assert "64B × 100, 1000 offered a second" in output
    assert of_runs(run.pid) == set()
