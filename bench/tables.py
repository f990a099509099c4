"""Results as tables on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.columns import BRACKETS, Column, cell, columns_of
from bench.machine import summary_line
from bench.profiles import profiles_of
from bench.results import Result, SubjectInfo
from bench.ways import NAMES

__all__ = ["print_profiles", "print_result", "print_ways"]

_SPARE = ("p50_us", "p99_us", "pss_peak_bytes")
"""Left out of a table of ways that would be too wide."""

MARKS = "! does not deliver what it is given   ½ does not pass a half-close on   ✗ not what it says, see below"


def print_result(result: Result, console: Console) -> None:
    """A table for each case, and beneath them what has to be known to read them."""
    for case in result.cases():
        columns = columns_of(result, case)
        if columns:
            console.print(_table(result, case, console))
    _print_notes(result, console)


def print_ways(result: Result, console: Console) -> None:
    """One table for each load: a row for each subject and way."""
    loads: dict[str, list[str]] = {}
    for case in result.cases():
        loads.setdefault(case.rpartition(", ")[0], []).append(case)
    for load, cases in loads.items():
        columns = columns_of(result, main=True)
        table = _of_ways(result, load, cases, columns)
        if console.measure(table).maximum > console.width:
            table = _of_ways(result, load, cases, [column for column in columns if column.key not in _SPARE])
        console.print(table)
    console.print(Text("lost and more CPU: in per cent of plain, by pairs of the same round", style="dim"))
    _print_notes(result, console)


def _of_ways(result: Result, load: str, cases: list[str], columns: list[Column]) -> Table:
    table = Table(title=f"{result.experiment}: {load}", title_justify="left", header_style="bold")
    table.add_column("subject", no_wrap=True)
    table.add_column("with", no_wrap=True)
    for column in columns:
        table.add_column(f"{column.title}\n{column.unit}", justify="right", no_wrap=True)
    for subject in result.measured():
        for case in sorted(cases, key=lambda case: NAMES.index(case.rpartition(", ")[2])):
            cells = [cell(result.figure(subject.name, case, column.key), column) for column in columns]
            name = _named(subject, bool(result.invalid(subject.name, case)))
            table.add_row(name, case.rpartition(", ")[2], *cells)
        table.add_section()
    return table


def _print_notes(result: Result, console: Console) -> None:
    notes = [
        f"{summary_line(result.machine)}; {result.topology['name']}, {_congestion(result)}",
        f"{result.precision}, commit {result.machine['commit']}. {BRACKETS}",
    ]
    if any(subject.mark for subject in result.subjects):
        notes.append(MARKS)
    for subject in result.subjects:
        if subject.integrity:
            notes.append(f"{subject.name}: {subject.integrity}")
        if subject.half_close:
            notes.append(f"{subject.name}, half-close: {subject.half_close}")
        if subject.unavailable:
            notes.append(f"{subject.name} was skipped: {subject.unavailable}")
    errors = dict.fromkeys(
        f"{sample.subject}, {sample.case}: {sample.error}" for sample in result.samples if sample.error
    )
    notes += errors
    for note in notes:
        console.print(Text(note, style="dim"))
    for text in faults(result):
        console.print(Text(text, style="bold red"))
    for text in ambience(result):
        console.print(Text(text, style="yellow"))


def faults(result: Result) -> list[str]:
    """Why samples are not what they say, a line for each cell and reason."""
    return [
        f"INVALID {subject.name}, {case}: {text}"
        for subject in result.subjects
        for case in result.cases()
        for text in result.invalid(subject.name, case)
    ]


def ambience(result: Result) -> list[str]:
    """What the machine did that spoils figures: each kind once, with the number of samples."""
    kinds: dict[str, list[str]] = {}
    for sample in result.samples:
        for text in sample.ambient:
            kinds.setdefault(" ".join(text.split()[:2]), []).append(text)
    measured = sum(not sample.warm_up for sample in result.samples)
    return [f"{len(texts)} of {measured} samples: {max(texts)}" for texts in kinds.values()]


def _congestion(result: Result) -> str:
    return f"congestion control {result.topology.get('congestion control', 'n/a')}"


def _table(result: Result, case: str, console: Console) -> Table:
    """All columns where they fit, else the main ones. Names are never cut."""
    wide = _filled(result, case, columns_of(result, case))
    if console.measure(wide).maximum <= console.width:
        return wide
    return _filled(result, case, columns_of(result, case, main=True))


def _filled(result: Result, case: str, columns: list[Column]) -> Table:
    table = Table(title=f"{result.experiment}: {case}", title_justify="left", header_style="bold")
    rows = []
    for subject in result.measured():
        cells = [cell(result.figure(subject.name, case, column.key), column) for column in columns]
        if set(cells) != {"n/a"}:
            rows.append((_named(subject, bool(result.invalid(subject.name, case))), cells))
    table.add_column("subject", no_wrap=True, min_width=max((len(name) for name, _ in rows), default=0))
    for column in columns:
        table.add_column(f"{column.title}\n{column.unit}", justify="right", no_wrap=True)
    for name, cells in rows:
        table.add_row(name, *cells)
    return table


def _named(subject: SubjectInfo, invalid: bool) -> Text:
    """With its marks; `✗` where the sample is not what it says."""
    return Text(f"{subject.name}{subject.mark}{' ✗' if invalid else ''}", style="red" if invalid else "")


def print_profiles(result: Result, console: Console) -> None:
    """What the runs apart have shown."""
    for profile in profiles_of(result):
        table = Table(title=profile.title, title_justify="left", header_style="bold")
        for number, title in enumerate(profile.head):
            table.add_column(title, justify="left" if number < profile.texts else "right", no_wrap=number == 0)
        for row in profile.rows:
            table.add_row(*row)
        console.print(table)
        if profile.note:
            console.print(Text(profile.note, style="dim"))
