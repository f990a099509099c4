"""`quick` and `full`: each step is a command line of the bench."""

from __future__ import annotations

import io
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from bench.cli import main, parser
from bench.commands.measurements import experiment, options
from bench.errors import BenchError
from bench.experiment import Options
from bench.experiments.udp import Udp
from bench.machine import describe
from bench.plans import FULL, INTERVALS, QUICK, Settings, about_s, run_plan, unfinished
from bench.publish import publish, second_run
from bench.report.markdown import BEGIN, END
from bench.results import AGAIN, Result, Sample, SubjectInfo

MEASURED = ("lab", "capture")
"""Steps that are no experiments."""


@pytest.mark.parametrize("step", [*QUICK, *FULL])
def test_a_step_is_a_command_with_subjects_and_cases_that_there_are(step: str) -> None:
    arguments = parser().parse_args([*shlex.split(step), "--out", "x"])
    if arguments.command not in MEASURED:
        chosen = experiment(arguments.command, options(arguments))
        assert chosen.chosen()
        assert chosen.chosen_cases()


def test_the_full_plan_states_intervals_and_is_no_longer_than_said() -> None:
    for step in INTERVALS:
        arguments = parser().parse_args(shlex.split(step))
        assert experiment(arguments.command, options(arguments)).round_count >= 6, step
    assert set(INTERVALS) <= set(FULL)
    assert sum(map(about_s, FULL)) <= 20 * 60
    assert sum(map(about_s, [*FULL, *second_run(FULL)])) < 38 * 60
    assert sum(map(about_s, QUICK)) < 5 * 60


def test_a_plan_can_be_listed_and_cut(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quick", "--list", "--only", "udp"]) == 0
    line, total = capsys.readouterr().out.splitlines()
    assert total.endswith("minutes")
    assert line.startswith("python -m bench udp --quick")
    assert main(["quick", "--list", "--only", "nothing"]) == 1


MICRO = (
    "micro --quick --rounds 1 --seconds 0.05 --no-check --topology loopback --subjects ref-polling "
    "--cases 'len(payload)=1'"
)


def test_a_step_that_fails_does_not_lose_the_others_and_is_measured_again(tmp_path: Path) -> None:
    steps = (MICRO, "micro --subjects nothing")
    said = io.StringIO()
    page = tmp_path / "page.html"
    settings = Settings(tmp_path, resume=True)
    assert run_plan(steps, settings, page, Console(file=said, width=200)) == 1
    assert "What one exchange costs" in page.read_text()
    (kept,) = tmp_path.glob("*.json")
    assert Result.load(kept).experiment == "micro"
    assert "micro --subjects nothing" in said.getvalue()
    assert "no complete result of: micro" in said.getvalue()
    assert unfinished(steps, tmp_path) == [steps[1]]
    said.truncate(0)
    assert run_plan(steps[:1], settings, page, Console(file=said, width=200)) == 0
    assert "done before" in said.getvalue()
    assert len(list(tmp_path.glob("*.json"))) == 1


def test_a_step_that_comes_to_a_halt_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.plans.about_s", lambda step: 0.0)
    monkeypatch.setattr("bench.plans._LEAST_PATIENCE_S", 0.2)
    said = io.StringIO()
    assert run_plan((MICRO,), Settings(tmp_path), tmp_path / "page.html", Console(file=said, width=200)) == 1
    assert "came to a halt" in said.getvalue()


def run_of(costs: float, invalid: str = "") -> Result:
    machine = {**describe(()), "kernel": "x"}
    result = Result("throughput", {"rounds": 6, "seconds": 1.0}, machine, {"name": "netns"})
    result.subjects = [SubjectInfo("native-auto", "oinetd", "native-auto")]
    for number in range(6):
        sample = Sample("native-auto", "P1", number, {"cpu_s_per_gb": costs + number, "gbit_s": 40.0 + number})
        sample.invalid = [invalid] if invalid and number == 3 else []
        result.samples.append(sample)
    return result


@pytest.mark.parametrize(
    ("second", "invalid", "more", "status", "said"),
    [
        (2.0, "", [], 0, "2 agree: 100.0 %"),
        (99.0, "", [], 1, "1 agree: 50.0 %"),
        (2.0, "lost", [], 1, "100.0 %"),
        (2.0, "", ["lab"], 1, "100.0 %"),
    ],
)
def test_two_runs_are_published_with_how_far_they_agree(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    second: float,
    invalid: str,
    more: list[str],
    status: int,
    said: str,
) -> None:
    """The pages of a repository are made from both runs; old results of the same experiment go."""
    step = "throughput --seconds 1 --softirq"
    steps = [step, *more]
    runs = iter([run_of(1.0, invalid), run_of(second)])
    asked: list[Sequence[str]] = []

    def run(steps: Sequence[str], settings: Settings, page: Path, console: Console) -> int:
        asked.append(steps)
        next(runs).save(settings.out)
        return 1

    monkeypatch.setattr("bench.publish.run_plan", run)
    monkeypatch.setattr("bench.publish.INTERVALS", (step,))
    root, stored = tmp_path / "tree", tmp_path / "tree" / "bench" / "results"
    for page in ("README.md", "docs/performance.md", "docs/several-machines.md"):
        (root / page).parent.mkdir(parents=True, exist_ok=True)
        (root / page).write_text(f"head\n{BEGIN}\n{END}\ntail\n")
    old = run_of(7.0)
    old.started = 0.0
    old.save(stored)
    out = io.StringIO()
    done = publish(steps, Settings(tmp_path / "out"), root, tmp_path / "page.html", Console(file=out, width=200))
    assert done == status, out.getvalue()
    assert asked == [steps, ["throughput --seconds 1"]]
    assert ("run 1 lacks lab" in out.getvalue()) == (len(steps) > 1)
    assert [len(list(folder.glob("*.json"))) for folder in (stored, stored / AGAIN)] == [1, 1]
    assert said in (root / "docs" / "performance.md").read_text()
    assert ("lost" in out.getvalue()) == bool(invalid)


def test_nothing_is_published_of_runs_that_are_not_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.publish.run_plan", lambda *_: 0)
    monkeypatch.setattr("bench.publish.INTERVALS", (MICRO,))
    out = io.StringIO()
    assert publish([MICRO], Settings(tmp_path), tmp_path, tmp_path / "page.html", Console(file=out, width=200)) == 1
    assert "run 1 lacks micro" in out.getvalue()
    assert "nothing is published" in out.getvalue()


def test_cases_are_chosen_by_name_or_pattern() -> None:
    known = Udp(Options()).cases()
    chosen = Udp(Options(cases=["64B × 1, *", "1400B × 1, 32 under way"])).chosen_cases()
    assert [case.name for case in chosen] == [
        *(case.name for case in known if case.name.startswith("64B × 1, ")), "1400B × 1, 32 under way",
    ]  # fmt: skip
    assert Udp(Options()).chosen_cases() == known
    with pytest.raises(BenchError, match=r"no case is called 65B.*64B × 1"):
        Udp(Options(cases=["65B*"])).chosen_cases()
