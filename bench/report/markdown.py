"""The figures in the pages: README's few, the capacity model, and all of docs/performance.md; from stored results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from bench.agreement import agreeing
from bench.columns import BRACKETS, cell
from bench.errors import BenchError
from bench.machine import summary_line
from bench.profiles import softirq_profile
from bench.report.capacity import capacity_section
from bench.report.charts import all_plots, headline
from bench.report.drawing import Plot
from bench.report.page import when
from bench.report.sections import column_named, default_subjects, rows_of, section
from bench.report.words import ORDER, TITLES
from bench.results import Result

__all__ = ["BEGIN", "END", "performance_section", "readme_figures", "write_pages"]

BEGIN = "<!-- bench:begin -->"
END = "<!-- bench:end -->"
MADE_BY = "<!-- Made by `python -m bench report --pages` from bench/results: change nothing here by hand. -->"
PLOTS = ("headline", "throughput-p1", "buffers", "latency", "rate", "memory", "micro")
"""Those that docs/performance.md shows; the HTML report shows all."""

_FIGURES = (
    ("1 GB in one stream: CPU s", "throughput", "P1", "cpu_s_per_gb"),
    ("one short connection: CPU µs", "rate", "connect/close × 64", "cpu_us"),
    ("a million datagrams: CPU s", "udp", "64B × 1, 32 under way", "cpu_s_per_million"),
)
"""README's figures: what is measured, and the experiment, case and column that it is read from."""

_FORWARDERS = {
    "oinetd": ("native-auto", "oinetd-native"),
    "oinetd, Python lane": ("python", "oinetd-python"),
    "HAProxy": ("haproxy-splice", "haproxy"),
    "nginx": ("nginx",),
    "rinetd": ("rinetd",),
}
"""README's columns: the subjects of the results that each name stands for."""


def write_pages(
    results: Mapping[str, Result], root: Path, *, again: Mapping[str, Result] | None = None, check: bool = False
) -> list[Path]:
    """Rewrite what stands between the markers of README.md and pages in docs, and the plots in docs/bench.

    `again` are results of a second run: the page says how far both agree.
    Returns the files of `root` that changed, or with `check`, which writes nothing, those that would. A plot counts as
    changed only if it is missing: another version of matplotlib draws the same plot with other bytes.
    Raises `BenchError` if a page or a marker is missing.
    """
    docs = root / "docs"
    shown = {plot.name: plot for result in results.values() for plot in all_plots(result) if plot.name in PLOTS}
    if first := headline(results):
        shown[first.name] = first
    pages = {
        root / "README.md": readme_figures(results),
        docs / "performance.md": performance_section(results, shown, again),
    }
    # Without its experiments the model keeps the figures that it has.
    if capacity := capacity_section(results):
        pages[docs / "several-machines.md"] = f"{MADE_BY}\n\n{capacity}"
    texts = {page: _between_markers(page, text) for page, text in pages.items()}
    plots = {docs / "bench" / f"{name}.svg": plot for name, plot in shown.items()}
    changed = [page for page, text in texts.items() if page.read_text() != text]
    changed += [path for path in plots if not path.exists()]
    if not check:
        (docs / "bench").mkdir(parents=True, exist_ok=True)
        for path, text in (texts | {path: plot.svg for path, plot in plots.items()}).items():
            path.write_text(text)
    return changed


def _between_markers(page: Path, text: str) -> str:
    """The text of `page` with `text` between its markers."""
    try:
        head, begin, rest = page.read_text().partition(BEGIN)
    except FileNotFoundError:
        raise BenchError(f"{page} does not exist") from None
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise BenchError(f"{page} has no {BEGIN} and {END}")
    return f"{head}{BEGIN}\n{text}{END}{tail}"


def readme_figures(results: Mapping[str, Result]) -> str:
    """A small table: each of the figures for each of the forwarders that was measured."""
    figures = [each for each in _FIGURES if each[1] in results]
    cells = {name: [_headline(results[each[1]], subjects, each[2], each[3]) for each in figures]
             for name, subjects in _FORWARDERS.items()}  # fmt: skip
    measured = {name: row for name, row in cells.items() if set(row) != {"n/a"}}
    header = ["", *(f"**{name}**" if name == "oinetd" else name for name in measured)]
    rows = [[each[0], *(row[number] for row in measured.values())] for number, each in enumerate(figures)]
    return "\n".join([MADE_BY, "", *rows_of(header, rows)])


def _headline(result: Result, subjects: tuple[str, ...], case: str, key: str) -> str:
    """The median of the first of `subjects` that was measured; of several numbers of threads the greatest."""
    for base in subjects:
        found = [subject for subject in default_subjects(result) if subject.base == base]
        if found:
            name = max(found, key=lambda subject: subject.threads).name
            return cell(result.figure(name, case, key), column_named(result, key), interval=False)
    return "n/a"


def performance_section(
    results: Mapping[str, Result], plots: Mapping[str, Plot], again: Mapping[str, Result] | None = None
) -> str:
    """The generated part of docs/performance.md: Markdown, ending in a newline. Plots are in `bench/` beside it."""
    return "\n".join(_performance(results, plots, again or {})).rstrip("\n") + "\n"


def _performance(
    results: Mapping[str, Result], plots: Mapping[str, Plot], again: Mapping[str, Result]
) -> Iterator[str]:
    yield from (MADE_BY, "")
    yield from (f"{BRACKETS} `n/a` is what cannot be had on the machine.", "")
    yield from _both_runs(results, again)
    if first := plots.get("headline"):
        yield from (f"![{first.title}](bench/headline.svg)", "")
    for name in ORDER:
        if name not in results:
            continue
        result = results[name]
        facts = f"{when(result.started)}, {result.precision}, commit {result.machine['commit']}"
        yield from (f"## {TITLES[name]}", "", f"{facts}, on {summary_line(result.machine)}.", "")
        if name in again and (count := agreeing(result, again[name]))[1]:
            second = f"A second run, of {when(again[name].started)}, commit {again[name].machine['commit']}"
            yield from (f"{second}, agrees in {count[0]} of {count[1]} figures.", "")
        yield from section(result)
        if profile := softirq_profile(result):
            yield from (f"{profile.title}:", "", *rows_of(profile.head, profile.rows), profile.note, "")
        for plot in plots.values():
            if plot.name.startswith(name) or plot.name in _BELONGS.get(name, ()):
                yield from (f"![{plot.title}](bench/{plot.name}.svg)", "")


def _both_runs(results: Mapping[str, Result], again: Mapping[str, Result]) -> Iterator[str]:
    counts = [agreeing(result, again[name]) for name, result in results.items() if name in again]
    alike, stated = (sum(numbers) for numbers in zip(*counts, strict=True)) if counts else (0, 0)
    if stated:
        yield (
            "What states intervals was measured twice (`bench/results` and `bench/results/again`). Of "
            f"{stated} figures with an interval in both runs, {alike} agree: {100 * alike / stated:.1f} %. Two runs "
            "agree in a figure if their intervals overlap."
        )
        yield ""


_BELONGS = {"throughput": ("buffers",), "rate": ("memory",)}
