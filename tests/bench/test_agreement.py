"""Whether two runs say the same within the intervals that they state."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.console import Console

from bench.agreement import agree, cells_of
from bench.results import Result, Sample, SubjectInfo

MACHINE = {"kernel": "6.1", "cpu": "x", "cores usable": "2", "python": "3.12", "commit": "a"}


def run(figures: dict[str, Sequence[float]], commit: str = "a") -> Result:
    """A run in which each subject has these costs, one a round."""
    result = Result("throughput", {"rounds": 6, "seconds": 1.0}, {**MACHINE, "commit": commit}, {"name": "netns"})
    for name, costs in figures.items():
        result.subjects.append(SubjectInfo(name, "oinetd" if name == "native-auto" else "peer", name))
        for number, cost in enumerate(costs):
            result.samples.append(Sample(name, "P8", number, {"cpu_s_per_gb": cost}))
    return result


def said(first: Result, second: Result, *, every: bool = False) -> tuple[int, str]:
    out = io.StringIO()
    status = agree({"throughput": first}, {"throughput": second}, Console(file=out, width=200), every=every)
    return status, out.getvalue()


RISING = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5]


def test_intervals_that_overlap_agree() -> None:
    first = run({"native-auto": RISING, "haproxy": RISING})
    second = run(
        {"native-auto": [cost + 0.4 for cost in RISING], "haproxy": [cost + 0.6 for cost in RISING], "new": RISING}
    )
    cells = cells_of(first, second)
    assert [(each.subject, each.stated, each.agrees) for each in cells] == [
        ("native-auto", True, True), ("haproxy", True, False),
    ]  # fmt: skip
    status, text = said(first, second)
    assert status == 1
    assert "50.0 % of 2 cells agree" in text
    assert "1.48" in text  # the ratio of the one that does not


def test_the_same_run_agrees_with_itself() -> None:
    status, text = said(run({"haproxy": RISING}), run({"haproxy": RISING}, commit="b"))
    assert status == 0
    assert "100.0 % of 1 cells agree" in text
    assert "throughput, commit: a, then b" in text


def test_ranges_of_few_rounds_state_nothing() -> None:
    status, text = said(run({"haproxy": RISING[:3]}), run({"haproxy": RISING}))
    assert status == 1
    assert "six rounds are needed" in text
    assert "100.0 %" in text  # the range overlaps all the same


def test_the_list_of_differences_is_cut_unless_all_are_wanted() -> None:
    first = run({f"peer{number}": RISING for number in range(40)})
    second = run({f"peer{number}": [10.0] * 6 for number in range(40)})
    assert "and 15 more" in said(first, second)[1]
    assert "more" not in said(first, second, every=True)[1]
