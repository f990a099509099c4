"""The experiment about bandwidths: what its figures are made of, and how its subjects are told their bounds."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bench.experiment import Options
from bench.experiments import bandwidth
from bench.experiments.bandwidth import BOUNDS, NO_BOUND, Bandwidth, evenness, within_window
from bench.identity import RunName
from bench.stand import Stand
from bench.subjects import Route, Setup, choose_from
from bench.subjects.bandwidth import bandwidth_subjects, over_udp
from bench.topology import Loopback
from oinetd.config import parse_config

pytest.importorskip("bench._native")

WAYS = ("plain", "bandwidth=1024K", "bandwidth-per-source=10240K", "bandwidth-per-rule=102400K")
ROUTES = tuple(Route("127.0.0.1", 5001 + number, "127.0.0.1", 9, way) for number, way in enumerate(WAYS))


def test_the_window_begins_after_the_warm_up_and_ends_before_what_came_late() -> None:
    slices = [500, 500, 500, *([100] * 9), 5000]
    assert within_window(slices, 0.5, 1.5) == pytest.approx(200)
    assert within_window(slices, 0.5, 1.1) == pytest.approx(200)  # a part that holds some of both is left out


@pytest.mark.parametrize("seconds", [0.3, 2.0, 5.0, 10.0, 60.0])
@pytest.mark.parametrize("begin", [0.0, 0.07, 0.2])
def test_it_does_not_matter_when_pieces_come(seconds: float, begin: float) -> None:
    """A thousand bytes each quarter of a second, whenever the first one came."""
    warm_up = Bandwidth(Options(seconds=seconds)).warm_up_each
    length = (warm_up + seconds) / 128
    slices = [0.0] * 128
    while begin < warm_up + seconds + 1:
        slices[min(127, int(begin / length))] += 1000
        begin += 0.25
    assert within_window(slices, length, warm_up) == pytest.approx(4000, rel=0.01 if seconds <= 10 else 0.03)


def test_each_connection_counts_until_its_own_end() -> None:
    first = {"moved": 1100, "at_go": 100, "ended_ns": 8_000_000_000}
    second = {"moved": 1000, "at_go": 0, "ended_ns": 10_000_000_000}
    assert evenness([first, second], 4.0) == (pytest.approx(250), pytest.approx(500))


def test_cases_are_bounds_of_one_connection_and_of_many() -> None:
    cases = {case.name: case.parameters for case in Bandwidth(Options()).cases()}
    assert cases["1 × 10 MiB/s, bandwidth"]["way"] == "bandwidth=10240K"
    assert cases["100 × 1 MiB/s, bandwidth"]["way"] == "bandwidth=1024K"
    assert cases["100 × 1 MiB/s, bandwidth-per-rule"]["way"] == "bandwidth-per-rule=102400K"
    assert cases["UDP, 100 × 100 KiB/s, bandwidth"]["way"] == "bandwidth=100K"
    assert {name.rpartition(", ")[2] for name in cases} == {*BOUNDS, NO_BOUND}


@pytest.mark.parametrize("subject", bandwidth_subjects(), ids=lambda subject: subject.name)
def test_a_subject_is_told_its_bounds(subject: object, tmp_path: Path) -> None:
    (chosen,) = choose_from(bandwidth_subjects(), [subject.name])  # type: ignore[attr-defined]
    setup = Setup(Loopback(RunName.new()), ROUTES, tmp_path)
    (command,) = chosen.commands(setup)
    text = next(tmp_path.glob("*.c*f*")).read_text()
    experiment = Bandwidth(Options())
    counts = len(experiment.cases_of(chosen, experiment.cases()))
    if chosen.family == "oinetd":
        rules = parse_config(text).rules
        assert [rule.options.bandwidth_per_rule_bytes for rule in rules] == [None, None, None, 100 << 20]
        datagrams = over_udp(chosen)
        assert datagrams is not None
        datagrams.commands(setup)
        assert "5002/udp 127.0.0.1 9/udp [bandwidth=1024K]" in (tmp_path / "oinetd.conf").read_text()
        assert counts == len(experiment.cases())
        return
    assert "default-limit 1024k default-period 1s" in text
    assert "limit 102400k key fe_id table table3" in text
    assert counts == 8
    if reason := chosen.unavailable(setup.topology):
        pytest.skip(reason)
    done = subprocess.run([*command[:-3], "-c", "-f", command[-1]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("case", ["1 × 10 MiB/s, bandwidth", "UDP, 1 * bandwidth-per-rule"])
def test_it_measures(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "_LEAST_WARM_UP_S", 0.05)
    experiment = Bandwidth(Options(seconds=0.3, cases=[case]))
    (subject,) = choose_from(bandwidth_subjects(), ["native-splice"])
    with Stand("loopback") as stand:
        if reason := subject.unavailable(stand.topology):
            pytest.skip(reason)
        with experiment.server(stand) as places, stand.subject(subject, *places) as running:
            (chosen,) = experiment.chosen_cases()
            sample = experiment.measure(stand, running, chosen)
    assert sample.invalid == []
    assert sample.values["reached_percent"]
    assert (sample.values.get("loss_percent") is not None) == chosen.parameters["udp"]
