"""Results as tables on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.columns import cell, columns_of
from bench.machine import summary_line
from bench.results import Result, SubjectInfo

__all__ = ["print_result"]

MARKS = "! does not deliver what it is given   ½ does not pass a half-close on"


def print_result(result: Result, console: Console) -> None:
    """A table for each case, and beneath them what has to be known to read them."""
    for case in result.cases():
        columns = columns_of(result, case)
        if columns:
            console.print(_table(result, case, columns_wide=console.width >= 130))
    notes = [f"{summary_line(result.machine)}; {result.topology['name']}, {_congestion(result)}"]
    count = result.settings["rounds"]
    rounds = "one round" if count == 1 else f"{count} rounds"
    notes.append(
        f"Medians of {rounds}, in brackets the interval that holds the true median with 95 %, "
        "or the range where there are fewer than six."
    )
    if any(subject.mark for subject in result.subjects):
        notes.append(MARKS)
    for subject in result.subjects:
        if subject.integrity:
            notes.append(f"{subject.name}: {subject.integrity}")
        if subject.half_close:
            notes.append(f"{subject.name}, half-close: {subject.half_close}")
        if subject.unavailable:
            notes.append(f"{subject.name} was left out: {subject.unavailable}")
    errors = dict.fromkeys(f"{sample.subject}, {sample.case}: {sample.error}" for sample in result.samples if sample.error)
    notes += errors
    for note in notes:
        console.print(Text(note, style="dim"))


def _congestion(result: Result) -> str:
    return f"congestion control {result.topology.get('congestion control', 'n/a')}"


def _table(result: Result, case: str, columns_wide: bool) -> Table:
    columns = columns_of(result, case, main=not columns_wide)
    table = Table(title=f"{result.experiment}: {case}", title_justify="left", header_style="bold")
    table.add_column("subject", no_wrap=True)
    for column in columns:
        table.add_column(f"{column.title}\n{column.unit}", justify="right", no_wrap=True)
    for subject in result.measured():
        cells = [cell(result.figure(subject.name, case, column.key), column) for column in columns]
        if set(cells) != {"n/a"}:
            table.add_row(_named(subject), *cells)
    return table


def _named(subject: SubjectInfo) -> Text:
    return Text(f"{subject.name}{subject.mark}", style="red" if subject.integrity else "")
