"""`agree A B`: whether two runs, of other days or machines, say the same within the intervals that they state.

A cell is one figure of one subject in one case. Two runs agree on it if their intervals overlap. Only a cell with an
interval in both runs counts for the verdict; the range of fewer than six rounds states nothing, and is told apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from bench.columns import COLUMNS, Column, cell
from bench.machine import summary_line
from bench.results import Result
from bench.statistics import Summary

__all__ = ["LEAST_SHARE", "Cell", "agree", "agreeing", "cells_of"]

LEAST_SHARE = 0.9
"""Of the cells: from here on two runs agree."""
SHOWN_MAX = 25
_OWN = ("oinetd", "group")


@dataclass(frozen=True, slots=True)
class Cell:
    """The same figure in two runs."""

    experiment: str
    subject: str
    family: str
    case: str
    column: Column
    first: Summary
    second: Summary

    @property
    def stated(self) -> bool:
        """Whether both runs have an interval, and not just a range."""
        return self.first.confidence > 0 and self.second.confidence > 0

    @property
    def agrees(self) -> bool:
        """Whether the intervals overlap. What is below the noise in both is the same."""
        noise = self.column.noise
        if noise is not None and max(self.first.median, self.second.median) < noise:
            return True
        return self.first.low <= self.second.high and self.second.low <= self.first.high

    @property
    def ratio(self) -> float:
        return self.second.median / self.first.median if self.first.median else float("inf")


def cells_of(first: Result, second: Result) -> list[Cell]:
    """Every cell that both results have."""
    others = {subject.name for subject in second.measured()}
    cases = [case for case in first.cases() if case in second.cases()]
    return [
        Cell(first.experiment, subject.name, subject.family, case, column, one, other)
        for subject in first.measured()
        if subject.name in others
        for case in cases
        for column in COLUMNS.get(first.experiment, ())
        if (one := first.figure(subject.name, case, column.key)) is not None
        and (other := second.figure(subject.name, case, column.key)) is not None
    ]


def agreeing(first: Result, second: Result) -> tuple[int, int]:
    """In how many cells with an interval two runs agree, and how many there are."""
    stated = [each for each in cells_of(first, second) if each.stated]
    return sum(each.agrees for each in stated), len(stated)


def agree(first: Mapping[str, Result], second: Mapping[str, Result], console: Console, *, every: bool = False) -> int:
    """Print how many cells of the experiments of both agree; 0 if nine of ten do, 1 if not or if none can be told.

    `every`: all cells that do not agree are listed, however many there are.
    """
    cells = [
        each for name, result in first.items() if name in second for each in cells_of(result, second[name])
    ]  # fmt: skip
    table = Table(title="cells of both runs, and in how many the intervals overlap", title_justify="left")
    for title in ("experiment", "with an interval", "agree", "not oinetd's", "agree", "ranges only", "overlap"):
        table.add_column(title, justify="left" if title == "experiment" else "right")
    for name in dict.fromkeys(each.experiment for each in cells):
        table.add_row(name, *_counts([each for each in cells if each.experiment == name]))
    table.add_row("all", *_counts(cells), style="bold")
    console.print(table)
    for line in _differences(first, second):
        console.print(line, highlight=False)
    stated = [each for each in cells if each.stated]
    apart = [each for each in stated or cells if not each.agrees]
    _print_apart(apart, len(apart) if every else SHOWN_MAX, console)
    if not stated:
        console.print("no cell has an interval in both runs: six rounds are needed in either", highlight=False)
        return 1
    share = sum(each.agrees for each in stated) / len(stated)
    console.print(
        f"{100 * share:.1f} % of {len(stated)} cells agree; wanted: {100 * LEAST_SHARE:.0f} %", highlight=False
    )
    return int(share < LEAST_SHARE)


def _counts(cells: Sequence[Cell]) -> list[str]:
    stated = [each for each in cells if each.stated]
    others = [each for each in stated if each.family not in _OWN]
    ranges = [each for each in cells if not each.stated]
    return [word for group in (stated, others, ranges) for word in (str(len(group)), _share(group))]


def _share(cells: Sequence[Cell]) -> str:
    return f"{100 * sum(each.agrees for each in cells) / len(cells):.1f} %" if cells else "–"


def _differences(first: Mapping[str, Result], second: Mapping[str, Result]) -> Iterable[str]:
    """What was not the same: then a difference is none of the bench's."""
    both = [(first[name], second[name]) for name in first if name in second]
    for word, fact in (("machine", _machine), ("commit", _commit), ("length", _precision)):
        for name, (one, other) in zip((pair[0].experiment for pair in both), both, strict=True):
            if fact(one) != fact(other):
                yield f"{name}, {word}: {fact(one)}, then {fact(other)}"


def _machine(result: Result) -> str:
    return summary_line(result.machine)


def _commit(result: Result) -> str:
    return result.machine["commit"]


def _precision(result: Result) -> str:
    return result.precision


def _print_apart(cells: Sequence[Cell], shown: int, console: Console) -> None:
    """The cells that do not agree, the largest differences first."""
    if not cells:
        return
    table = Table(title="cells that do not agree", title_justify="left")
    for title in ("experiment", "case", "subject", "figure", "first", "second", "ratio"):
        table.add_column(title, justify="right" if title in ("first", "second", "ratio") else "left", no_wrap=True)
    for each in sorted(cells, key=lambda each: -max(each.ratio, 1 / max(each.ratio, 1e-9)))[:shown]:
        unit = f"{each.column.title}, {each.column.unit}" if each.column.unit else each.column.title
        table.add_row(each.experiment, each.case, each.subject, unit, cell(each.first, each.column),
                      cell(each.second, each.column), f"{each.ratio:.2f}")  # fmt: skip
    console.print(table)
    if len(cells) > shown:
        console.print(f"and {len(cells) - shown} more", highlight=False)
