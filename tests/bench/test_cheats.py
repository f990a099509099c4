"""Relays that cheat are told from honest ones: their samples say why, and the run ends with status 1."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.cgroup import group_roots
from bench.experiment import Experiment, Options
from bench.experiments.latency import Latency
from bench.experiments.mixed import Mixed
from bench.experiments.rate import Rate
from bench.experiments.throughput import Throughput
from bench.experiments.udp import Udp
from bench.results import Result, Sample
from bench.stand import Stand
from bench.subjects import choose_from
from bench.subjects.datagram import datagram_subjects
from bench.subjects.peers import Custom
from bench.subjects.subject import Subject

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

ROOT = Path(__file__).resolve().parents[2]
CHEATS = Path(__file__).with_name("cheats.py")
WARM_UP_S, SECONDS = 0.1, 0.1
OFFERED = 2000
in_groups = pytest.mark.skipif(group_roots() is None, reason="processor time of a group needs control groups")


def command(mode: str) -> str:
    return f"{sys.executable} -S {CHEATS} {mode} {{listen}} {{connect}}"


class Bed:
    """One stand and one server of each kind for all relays of this file; each relay has namespaces of its own."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.stand = stack.enter_context(Stand("netns"))
        self.stand.warm_up_s = WARM_UP_S
        self._ready: list[tuple[Experiment, tuple[int, ...]]] = []
        kinds: list[tuple[type[Experiment], dict[str, Any]]] = [
            (Throughput, {"no_iperf3": True}), (Latency, {}), (Latency, {"rate": [OFFERED]}), (Rate, {}),
            (Mixed, {"idle": 20}), (Udp, {"rate": [1000]}),
        ]  # fmt: skip
        for kind, extra in kinds:
            experiment = kind(
                Options(quick=True, seconds=0.6 if extra == {"rate": [OFFERED]} else SECONDS, extra=extra)
            )
            self._ready.append((experiment, stack.enter_context(experiment.server(self.stand))))

    def measured(self, subject: Subject, case: str) -> Sample:
        """What an experiment makes of a subject in the case of that name."""
        for experiment, ports in self._ready:
            for each in experiment.cases():
                if each.name == case:
                    with self.stand.subject(subject, *ports) as running:
                        return experiment.measure(self.stand, running, each)
        raise AssertionError(case)


@pytest.fixture(scope="module")
def bed() -> Iterator[Bed]:
    with contextlib.ExitStack() as stack:
        yield Bed(stack)


def judge(sample: Sample, wanted: str) -> None:
    """An honest relay has no fault: `wanted` is empty."""
    texts = "; ".join(sample.invalid)
    assert wanted in texts if wanted else texts == "", texts


@pytest.mark.parametrize(
    ("mode", "wanted"),
    [
        ("honest", ""),
        ("lossy", "bytes were lost"),
        ("early", "closed early"),
        ("swap", "changed, swapped"),
        ("first", "streams silent"),
        ("reorder", "changed, swapped"),
        ("duplicate", "bytes were doubled"),
        ("change", "changed, swapped"),
        ("no-half-close", "half-close not passed on"),
        ("last-byte", "changed, swapped"),
        ("cross", "changed, swapped"),
    ],
)
def test_streams_that_do_not_arrive_as_they_were_sent(bed: Bed, mode: str, wanted: str) -> None:
    judge(bed.measured(Custom(mode, command(mode)), "P8"), wanted)


@pytest.mark.parametrize(
    ("mode", "wanted"), [("honest", ""), ("lossy", "with a gap"), ("duplicate", "doubled"), ("early", "closed early")]
)
def test_streams_that_come_back_otherwise(bed: Bed, mode: str, wanted: str) -> None:
    judge(bed.measured(Custom(mode, command(mode)), "P1 reverse"), wanted)


@pytest.mark.parametrize(
    ("mode", "wanted"),
    [
        ("honest", ""),
        ("cache", "answered that the server never saw"),
        pytest.param("outside", "has left its control group", marks=in_groups),
        pytest.param("half", "has left its control group", marks=in_groups),
        pytest.param("kernel", "requests were answered, and theirs was", marks=in_groups),
    ],
)
def test_answers_that_the_server_did_not_give_and_work_that_is_not_counted(bed: Bed, mode: str, wanted: str) -> None:
    judge(bed.measured(Custom(mode, command(mode)), "64B × 1"), wanted)


def test_a_relay_that_sleeps_during_the_warm_up(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bed.stand, "warm_up_s", 0.4)
    longer = Latency(Options(quick=True, seconds=0.8))
    with (
        longer.server(bed.stand) as ports,
        bed.stand.subject(Custom("slow", command("slow-warm-up")), *ports) as running,
    ):
        (case,) = (each for each in longer.cases() if each.name == "64B × 1")
        judge(longer.measure(bed.stand, running, case), "drift")


@pytest.mark.parametrize(
    ("mode", "wanted"),
    [
        ("honest", ""),
        ("reuse", "used for more than one client"),
        ("pool", "made before the client's"),
    ],
)
def test_connections_that_were_there_before(bed: Bed, mode: str, wanted: str) -> None:
    judge(bed.measured(Custom(mode, command(mode)), "connect/close × 1"), wanted)


@in_groups
def test_work_of_processes_that_are_over_before_anybody_looks(bed: Bed) -> None:
    judge(bed.measured(Custom("brief", command("brief")), "connect/close × 16"), "has left its control group")


@pytest.mark.parametrize("case", ["64B × 1, one under way each", "64B × 1, 1000 offered a second"])
@pytest.mark.parametrize(
    ("mode", "wanted"),
    [("udp-honest", ""), ("udp-double", "datagrams were doubled"), ("udp-change", "datagrams were changed")],
)
def test_datagrams_that_are_doubled_or_changed(bed: Bed, case: str, mode: str, wanted: str) -> None:
    (peer,) = choose_from(datagram_subjects([f"{mode}={command(mode)}"]), [mode])
    judge(bed.measured(peer, case), wanted)


@pytest.mark.parametrize(
    ("mode", "wanted", "beside"), [("honest", "", "beside 20 idle"), ("lossy", "bytes were lost", "beside 4 streams")]
)
def test_what_goes_on_beside_small_messages_is_checked_too(bed: Bed, mode: str, wanted: str, beside: str) -> None:
    sample = bed.measured(Custom(mode, command(mode)), f"64B × 16 at 2000/s, {beside}")
    judge(sample, wanted)
    assert sample.values["p99_us"]
    assert ("beside_gbit_s" in sample.values) == ("streams" in beside)


def test_a_stall_of_one_in_a_thousand_shows_at_a_fixed_rate(bed: Bed) -> None:
    sample = bed.measured(Custom("delay", command("delay")), f"64B × 64, offered {OFFERED}/s")
    judge(sample, "")
    stalled = sample.values["p99.9_us"]
    assert stalled is not None
    assert stalled > 200_000  # the stall itself is 250 ms; nothing is asserted of what is fast


def test_a_run_with_an_invalid_sample_says_so_and_ends_with_1(tmp_path: Path) -> None:
    words = ["rate", "--quick", "--rounds", "1", "--seconds", "0.1", "--no-check", "--cases", "connect/close × 1",
             "--subjects", "direct", "--peer", f"reuse={command('reuse')}", "--out", str(tmp_path)]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "bench", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "INVALID reuse" in done.stdout
    # A moment this short may be a bad one on a busy machine.
    assert not re.search("INVALID direct(?!.*drift)", done.stdout)
    (path,) = tmp_path.iterdir()
    result = Result.load(path)
    assert "used for more than one client" in "; ".join(result.invalid("reuse", "connect/close × 1"))
