"""`quick` and `full`: each step is a command line of the bench."""

from __future__ import annotations

import io
import shlex
from pathlib import Path

import pytest
from rich.console import Console

from bench.cli import main, parser
from bench.commands.measurements import experiment, options
from bench.errors import BenchError
from bench.experiment import Options
from bench.experiments.udp import Udp
from bench.plans import FULL, QUICK, run_plan
from bench.results import Result

MEASURED = ("lab", "capture")
"""Steps that are no experiments."""


@pytest.mark.parametrize("step", [*QUICK, *FULL])
def test_a_step_is_a_command_with_subjects_and_cases_that_there_are(step: str) -> None:
    arguments = parser().parse_args([*shlex.split(step), "--out", "x"])
    if arguments.command not in MEASURED:
        chosen = experiment(arguments.command, options(arguments))
        assert chosen.chosen()
        assert chosen.chosen_cases()


def test_the_full_plan_states_intervals() -> None:
    for step in FULL:
        arguments = parser().parse_args(shlex.split(step))
        if arguments.command not in (*MEASURED, "failover"):
            assert experiment(arguments.command, options(arguments)).round_count >= 6, step


def test_a_plan_can_be_listed_and_cut(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quick", "--list", "--only", "udp"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("python -m bench udp --quick")
    assert main(["quick", "--list", "--only", "nothing"]) == 1


def test_steps_that_fail_are_told_and_the_page_is_of_the_others(tmp_path: Path) -> None:
    steps = (
        "micro --quick --rounds 1 --seconds 0.05 --no-check --topology loopback --subjects ref-polling "
        "--cases len(payload)=1",
        "micro --subjects nothing",
    )
    said = io.StringIO()
    page = tmp_path / "page.html"
    status = run_plan([step.replace("len(payload)=1", "'len(payload)=1'") for step in steps], tmp_path, page, [],
                      Console(file=said, width=200))  # fmt: skip
    assert status == 1
    assert "What one exchange costs" in page.read_text()
    (kept,) = tmp_path.glob("*.json")
    assert Result.load(kept).experiment == "micro"
    assert "micro --subjects nothing" in said.getvalue()


def test_cases_are_chosen_by_name_or_pattern() -> None:
    known = Udp(Options()).cases()
    chosen = Udp(Options(cases=["64B × 1, *", "1400B × 1, 32 under way"])).chosen_cases()
    assert [case.name for case in chosen] == [
        *(case.name for case in known if case.name.startswith("64B × 1, ")), "1400B × 1, 32 under way",
    ]  # fmt: skip
    assert Udp(Options()).chosen_cases() == known
    with pytest.raises(BenchError, match=r"no case is called 65B.*64B × 1"):
        Udp(Options(cases=["65B*"])).chosen_cases()
