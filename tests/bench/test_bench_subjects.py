"""Subjects by name, the configurations they are started with, and the names of what a run makes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench import tools
from bench.cgroup import group_roots
from bench.cli import main
from bench.errors import BenchError, ToolMissing
from bench.experiments.micro import benchmark_name
from bench.identity import MARKER, RunName, start_time
from bench.leftovers import find_leftovers, is_dead, remove_leftovers
from bench.subjects import Route, Setup, all_subjects, choose
from bench.topology import Loopback
from oinetd.config import parse_config

ROUTE = Route("127.0.0.1", 5001, "127.0.0.1", 5002)


def setup(directory: Path, threads: int = 0) -> Setup:
    return Setup(Loopback(RunName.new()), (ROUTE,), directory, threads)


def test_a_mode_that_copies_is_there_for_each_buffer() -> None:
    names = [subject.name for subject in choose(["native-copy", "native-splice"], [65536, 8192, 1 << 20], [])]
    assert names == ["native-copy", "native-copy@8K", "native-copy@1M", "native-splice"]
    assert [subject.name for subject in choose(["python@8K"], [65536, 8192], [])] == ["python@8K"]


def test_several_numbers_of_threads_are_several_native_subjects(tmp_path: Path) -> None:
    subjects = choose(["native-auto", "python"], [65536], [], [1, 4])
    assert [subject.name for subject in subjects] == ["native-auto×1", "native-auto×4", "python"]
    (command,) = subjects[1].commands(setup(tmp_path))
    assert parse_config(Path(command[-1]).read_text()).threads == 4


def test_groups_and_names_mix_without_repeating() -> None:
    names = [subject.name for subject in choose(["floor", "direct", "peer"], [65536], [])]
    assert names == [
        "direct", "nftables", "haproxy", "haproxy-splice", "nginx", "haproxy-trixie", "haproxy-splice-trixie",
        "nginx-trixie", "rinetd", "socat", "redir",
    ]  # fmt: skip


def test_names_are_unique() -> None:
    names = [subject.name for subject in all_subjects([8192, 65536])]
    assert len(names) == len(set(names))


def test_an_unknown_subject_is_told_with_the_known_ones() -> None:
    with pytest.raises(BenchError, match=r"no subject is called hproxy.*haproxy"):
        choose(["hproxy"], [65536], [])


def test_a_peer_of_ones_own(tmp_path: Path) -> None:
    *_, peer = choose(["direct"], [65536], ["mine=fwd --listen {listen} --to {connect_host} {connect_port}"])
    assert peer.name == "mine"
    assert peer.commands(setup(tmp_path)) == [["fwd", "--listen", "127.0.0.1:5001", "--to", "127.0.0.1", "5002"]]


@pytest.mark.parametrize("text", ["mine", "=cmd {listen}", "mine=", "mine=cmd", "mine=cmd {lisen}", "mine=cmd {"])
def test_a_peer_that_cannot_be_meant(text: str) -> None:
    with pytest.raises(BenchError, match="--peer"):
        choose(["direct"], [65536], [text])


def test_oinetds_configurations_are_its_language(tmp_path: Path) -> None:
    for subject in all_subjects([8192, 65536]):
        if subject.family == "oinetd":
            (command,) = subject.commands(setup(tmp_path, threads=2))
            config = parse_config(Path(command[-1]).read_text())
            assert config.settings.engine.value == subject.base.partition("-")[0]
            assert config.settings.buffer_bytes == (subject.buffer_bytes or 65536)
            assert config.threads == (2 if config.settings.engine.value == "native" else 0)
            assert config.rules[0].connect.port == 5002


def test_benchmark_names_say_engine_and_relay() -> None:
    assert benchmark_name("native-splice", 64) == "Relay/engine=native/relay=splice/len(payload)=64"
    assert benchmark_name("native-copy@8K", 1) == "Relay/engine=native/relay=copy/buffer=8K/len(payload)=1"
    assert benchmark_name("python", 64) == "Relay/engine=python/relay=copy/len(payload)=64"
    assert benchmark_name("native-auto×2", 64) == "Relay/engine=native/relay=auto/threads=2/len(payload)=64"
    assert benchmark_name("haproxy", 64) == "Relay/subject=haproxy/len(payload)=64"


def test_a_run_name_is_read_from_everything_that_bears_it() -> None:
    run = RunName.new()
    assert run != RunName.new()
    assert RunName.parse(f"{run}-client") == run
    assert RunName.parse("oibench-x") is None
    assert run.owner_alive
    assert not is_dead(str(run))
    # The same process id with another start time is another process.
    assert is_dead(f"oibench-{os.getpid()}-{(start_time(os.getpid()) or 0) + 1}-1")


def test_what_dead_runs_left_is_found_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dead, alive = "oibench-4194304-7-1", RunName.new()
    for name in (f"{dead}-abc", f"{alive}-abc", "something-else"):
        (tmp_path / name).mkdir()
    sleepers = {
        name: subprocess.Popen(
            [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env={**os.environ, MARKER: name}
        )
        for name in (dead, str(alive))
    }
    try:
        found = find_leftovers()
        assert sleepers[dead].pid in found.processes
        assert sleepers[str(alive)].pid not in found.processes
        assert found.directories == [tmp_path / f"{dead}-abc"]
        remove_leftovers(found)
        assert sleepers[dead].wait() == -9
        assert sleepers[str(alive)].poll() is None
        assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted([f"{alive}-abc", "something-else"])
    finally:
        for sleeper in sleepers.values():
            sleeper.kill()
            sleeper.communicate()


def test_control_groups_of_either_version() -> None:
    first = group_roots(
        "cgroup /sys/fs/cgroup/cpuacct cgroup rw,relatime,cpuacct 0 0\n"
        "cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\n"
        "cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n"
    )
    assert first is not None
    assert (first.version, first.cpu.name, first.memory and first.memory.name) == (1, "cpuacct", "memory")
    second = group_roots("cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n")
    assert second is not None
    assert (second.version, second.cpu) == (2, Path("/sys/fs/cgroup"))
    assert group_roots("proc /proc proc rw 0 0\n") is None


def test_a_missing_tool_is_told_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "_SEARCH", "/nowhere")
    with pytest.raises(ToolMissing, match="apt install nftables"):
        tools.need("nft")


@pytest.mark.parametrize("program", ["perf", "wrk", "nginx", "tcpdump", "iperf3"])
def test_what_a_result_names_tells_its_version(program: str) -> None:
    """The programs whose versions the lab and the capture keep with their results."""
    if tools.available(program) is None:
        pytest.skip(f"{program} is not installed")
    assert program in tools.PACKAGES
    assert re.match(r"\d+\.\d+", tools.version(program))


@pytest.mark.parametrize(
    "command",
    [
        "throughput",
        "latency",
        "connections",
        "rate",
        "mixed",
        "udp",
        "failover",
        "bandwidth",
        "micro",
        "quick",
        "full",
        "compare",
        "agree",
        "report",
        "lab",
        "capture",
        "peers",
        "clean",
        "calibrate",
        "checks",
    ],
)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert f"python -m bench {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [["rate", "--rounds", "0"], ["rate", "--buffers", "16Q"], ["rate", "--seconds", "-1"]]
)
def test_a_wrong_command_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert "is not a" in capsys.readouterr().err
