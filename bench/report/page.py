"""The report: one HTML page with everything in it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.columns import BRACKETS, Column, cell, columns_of
from bench.experiments.micro import INTERCEPT, SLOPE, lines_of_cost
from bench.flamegraph import flamegraph
from bench.lab.report import render
from bench.machine import summary_line
from bench.profiles import Profile, profiles_of
from bench.report.charts import all_plots, headline
from bench.report.drawing import Plot
from bench.report.kept import Kept
from bench.report.markup import parts_of
from bench.report.words import INTRODUCTIONS, ORDER, TITLES
from bench.results import Result
from bench.stacks import unfold
from bench.tables import ambience, faults

__all__ = ["render_page", "when", "write_page"]


@dataclass(frozen=True, slots=True)
class _Table:
    title: str
    columns: list[Column]
    rows: list[tuple[str, str, str, list[tuple[str, str]]]]
    """Name, family, mark, and cells with the ratio to the best peer."""


@dataclass(frozen=True, slots=True)
class _Section:
    name: str
    facts: str
    machine: dict[str, str]
    topology: dict[str, str]
    tables: list[_Table] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    ambience: list[str] = field(default_factory=list)
    profiles: list[Profile] = field(default_factory=list)
    configurations: list[tuple[str, str]] = field(default_factory=list)
    pictures: list[tuple[str, str]] = field(default_factory=list)
    """Title and SVG, complete in itself; folded away."""
    parts: list[tuple[str, str]] = field(default_factory=list)
    """Title and HTML; the first one is open."""

    @property
    def title(self) -> str:
        return TITLES[self.name]

    @property
    def introduction(self) -> str:
        return INTRODUCTIONS[self.name]


def render_page(results: Mapping[str, Result], kept: Mapping[str, Kept] | None = None) -> str:
    """The page of the newest result of each experiment, and of the newest runs of lab and capture."""
    from jinja2 import Environment, PackageLoader, select_autoescape

    environment = Environment(
        loader=PackageLoader("bench.report", "."), autoescape=select_autoescape(default=True), trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    sections = [_section(results[name]) for name in ORDER if name in results]
    makers = {"lab": _lab, "capture": _capture}
    sections += [make(kept[name]) for name, make in makers.items() if kept and name in kept]
    machines = dict.fromkeys(summary_line(section.machine) for section in sections)
    return environment.get_template("page.html.j2").render(
        sections=sections, machines=list(machines), headline=headline(results), brackets=BRACKETS
    )


def write_page(results: Mapping[str, Result], path: Path, kept: Mapping[str, Kept] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render_page(results, kept))


def when(started: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(started))


def _facts(started: float, precision: str, machine: dict[str, str]) -> str:
    return f"{when(started)}; {precision}; commit {machine['commit']}; {summary_line(machine)}"


def _lab(kept: Kept) -> _Section:
    meta = kept.facts["meta"]
    return _Section(
        "lab", _facts(kept.started, f"windows of {meta['seconds']:g} s, of {meta['target']}", meta["machine"]),
        meta["machine"], meta["topology"], parts=parts_of(render(kept.facts)),
    )  # fmt: skip


def _capture(kept: Kept) -> _Section:
    facts = kept.facts
    settings = facts["settings"]
    precision = f"{settings['rounds']} rounds of {settings['seconds']:g} s, through {facts['subject']}"
    drawn = (kept.directory / "capture.svg").read_text()
    return _Section(
        "capture", _facts(kept.started, precision, facts["machine"]), facts["machine"], facts["topology"],
        notes=facts["verdicts"],
        pictures=[("Captured, cost, and the ranges of the tiny ring", drawn[drawn.index("<svg") :])],
    )  # fmt: skip


def _flames(result: Result) -> list[tuple[str, str]]:
    """The flame graphs of a run apart."""
    return [
        (f"Flame graph of {name}", flamegraph(unfold(each["stacks"]), f"{name}: eight streams up"))
        for name, each in result.profiles.get("flamegraph", {}).items()
        if "stacks" in each
    ]


def _section(result: Result) -> _Section:
    tables = [table for case in result.cases() if (table := _table(result, case)).rows]
    notes = []
    for subject in result.subjects:
        if subject.integrity:
            notes.append(f"! {subject.name} does not deliver what it is given: {subject.integrity}")
        if subject.half_close:
            notes.append(f"½ {subject.name} does not pass a half-close on: {subject.half_close}")
        if subject.unavailable:
            notes.append(f"{subject.name} was skipped: {subject.unavailable}")
    notes += dict.fromkeys(f"{each.subject}, {each.case}: {each.error}" for each in result.samples if each.error)
    if result.experiment == "micro":
        notes += [
            f"{name}: {cell(line.intercept, INTERCEPT)} ns of CPU an exchange, {cell(line.slope, SLOPE)} ns a byte"
            for name, line in lines_of_cost(result).items()
        ]
    return _Section(
        result.experiment,
        _facts(result.started, result.precision, result.machine),
        result.machine,
        result.topology,
        tables=tables,
        plots=all_plots(result),
        notes=notes,
        faults=faults(result),
        ambience=ambience(result),
        profiles=profiles_of(result),
        configurations=[(each.name, each.configuration) for each in result.subjects if each.configuration],
        pictures=_flames(result),
    )


def _ratio(result: Result, name: str, case: str, column: Column) -> str:
    """How a figure stands to that of the best peer in its column; empty if there is none."""
    figure = result.figure(name, case, column.key)
    peers = [
        other.median
        for subject in result.measured()
        if subject.family == "peer" and (other := result.figure(subject.name, case, column.key)) is not None
    ]
    if figure is None or not peers:
        return ""
    best = min(peers) if column.better == "lower" else max(peers)
    return f"×{figure.median / best:.2f}" if best > 0 and figure.median > 0 else ""


def _table(result: Result, case: str) -> _Table:
    columns = columns_of(result, case)
    rows = []
    for subject in result.measured():
        cells = [cell(result.figure(subject.name, case, column.key), column) for column in columns]
        if set(cells) != {"n/a"}:
            ratios = [_ratio(result, subject.name, case, column) for column in columns]
            mark = subject.mark + ("✗" if result.invalid(subject.name, case) else "")
            rows.append((subject.name, subject.family, mark, list(zip(cells, ratios, strict=True))))
    return _Table(case, columns, rows)
