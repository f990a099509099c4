"""The report: one HTML page with everything in it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.columns import BRACKETS, Column, cell, columns_of
from bench.experiments.micro import INTERCEPT, SLOPE, lines_of_cost
from bench.machine import summary_line
from bench.profiles import Profile, profiles_of
from bench.report.charts import all_plots, headline
from bench.report.plots import Plot
from bench.results import Result
from bench.tables import ambience, faults

__all__ = ["ORDER", "TITLES", "render_page", "write_page"]

ORDER = ("throughput", "latency", "rate", "scaling", "upgrade", "failover", "udp", "connections", "micro")
TITLES = {
    "throughput": "Throughput",
    "latency": "Round trips",
    "rate": "Connections a second, and idle ones",
    "scaling": "More threads, more connections",
    "upgrade": "Replaced under load",
    "failover": "One of four servers fails",
    "udp": "Datagrams",
    "connections": "The table of engines",
    "micro": "What one exchange costs",
}
_INTRODUCTIONS = {
    "throughput": "Streams between two namespaces, through each forwarder in a third one; the end that gets them "
    "checks every byte. CPU is the forwarder's own processor time for 10⁹ bytes: the figure to compare. On few cores, "
    "client and server take the processor from the forwarder, and the throughput shows what they leave. The kernel "
    "does much of the work of receiving in soft interrupts, and charges it to what ran on that core just then: so CPU "
    "holds some work of others, and others hold some of the forwarder's.",
    "latency": "Requests and answers of equal size, on one connection and on many, with every connection waiting for "
    "its answer before it asks again. Percentiles are of all round trips.",
    "rate": "Each connection is opened, carries 64 bytes each way and is closed. Idle connections have carried one "
    "byte and are then silent.",
    "scaling": "Round trips of 64 bytes on connections that stay, and connections that ask once, with one to as many "
    "threads as there are cores. Imbalance is the work of the busiest thread or process by the mean of all: 1 is even, "
    "the number of threads is all in one. oinetd lets one thread do what one can do, so its imbalance means something "
    "only if the busiest one is near a whole core.",
    "upgrade": "Each forwarder is replaced while clients come, wait, ask and stream: oinetd by `oinetd upgrade`, "
    "HAProxy by a new process that takes the listeners from the old one (`-x`, `-sf`), nginx by HUP. Connections left "
    "behind are those that processes of before the last replacement still have.",
    "failover": "Four servers behind each forwarder, with the same checks and timeouts if it has them. One is "
    "killed, frozen (it accepts, and says nothing), refused by a firewall, or slowed to a tenth, while 64 short "
    "connections at a time, or requests on 64 connections that stay, go through. Connections that stand on a killed "
    "server are lost with it whatever the forwarder does.",
    "udp": "UDP to UDP. With a number under way, a datagram is sent when the answer to an earlier one is here: "
    "percentiles are of all round trips, and each is two datagrams forwarded. With a number offered, the client sends "
    "at that rate whatever becomes of them, and the server counts. CPU is for a million datagrams that arrived.",
    "connections": "Each column is the client's and the same for all engines. Socket creation: socket() and connect(). "
    "Job setup: from connected until a first byte has come through. Download: from the request to the last byte, all "
    "connections at once. Run time: from the first socket() to the last close().",
    "micro": "One exchange at a time on one connection: eight bytes up, a payload down. A line through the forwarder's "
    "processor time says what an exchange costs and what each byte adds.",
}


@dataclass(frozen=True, slots=True)
class _Table:
    title: str
    columns: list[Column]
    rows: list[tuple[str, str, str, list[tuple[str, str]]]]
    """Name, family, mark, and cells with the ratio to the best peer."""


@dataclass(frozen=True, slots=True)
class _Section:
    name: str
    title: str
    introduction: str
    facts: str
    tables: list[_Table]
    plots: list[Plot]
    notes: list[str]
    faults: list[str]
    ambience: list[str]
    profiles: list[Profile]
    configurations: list[tuple[str, str]]
    result: Result


def render_page(results: Mapping[str, Result]) -> str:
    """The page of the newest result of each experiment."""
    from jinja2 import Environment, PackageLoader, select_autoescape

    environment = Environment(
        loader=PackageLoader("bench.report", "."), autoescape=select_autoescape(default=True), trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    sections = [_section(results[name]) for name in ORDER if name in results]
    machines = dict.fromkeys(summary_line(section.result.machine) for section in sections)
    return environment.get_template("page.html.j2").render(
        sections=sections, machines=list(machines), headline=headline(results), brackets=BRACKETS
    )


def write_page(results: Mapping[str, Result], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render_page(results))


def when(result: Result) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(result.started))


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
        name=result.experiment,
        title=TITLES[result.experiment],
        introduction=_INTRODUCTIONS[result.experiment],
        facts=f"{when(result)}; {result.precision}; commit {result.machine['commit']}; {summary_line(result.machine)}",
        tables=tables,
        plots=all_plots(result),
        notes=notes,
        faults=faults(result),
        ambience=ambience(result),
        profiles=profiles_of(result),
        configurations=[(each.name, each.configuration) for each in result.subjects if each.configuration],
        result=result,
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
