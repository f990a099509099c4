"""The figures in the pages: README's few, and all of docs/performance.md. Made from stored results, never typed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from bench.columns import BRACKETS, COLUMNS, Column, cell, columns_of, plain
from bench.errors import BenchError
from bench.experiments.micro import INTERCEPT, SLOPE, lines_of_cost
from bench.machine import summary_line
from bench.profiles import softirq_profile
from bench.report.charts import all_plots, headline
from bench.report.drawing import Plot
from bench.report.page import when
from bench.report.words import ORDER, TITLES
from bench.results import Result, SubjectInfo

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


def write_pages(results: Mapping[str, Result], root: Path, *, check: bool = False) -> list[Path]:
    """Rewrite what stands between the markers of README.md and docs/performance.md, and the plots in docs/bench.

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
        docs / "performance.md": performance_section(results, shown),
    }
    texts = {page: _between_markers(page, section) for page, section in pages.items()}
    plots = {docs / "bench" / f"{name}.svg": plot for name, plot in shown.items()}
    changed = [page for page, text in texts.items() if page.read_text() != text]
    changed += [path for path in plots if not path.exists()]
    if not check:
        (docs / "bench").mkdir(parents=True, exist_ok=True)
        for path, text in (texts | {path: plot.svg for path, plot in plots.items()}).items():
            path.write_text(text)
    return changed


def _between_markers(page: Path, section: str) -> str:
    """The text of `page` with `section` between its markers."""
    try:
        head, begin, rest = page.read_text().partition(BEGIN)
    except FileNotFoundError:
        raise BenchError(f"{page} does not exist") from None
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise BenchError(f"{page} has no {BEGIN} and {END}")
    return f"{head}{BEGIN}\n{section}{END}{tail}"


def readme_figures(results: Mapping[str, Result]) -> str:
    """A small table: each of the figures for each of the forwarders that was measured."""
    figures = [each for each in _FIGURES if each[1] in results]
    cells = {name: [_headline(results[each[1]], subjects, each[2], each[3]) for each in figures]
             for name, subjects in _FORWARDERS.items()}  # fmt: skip
    measured = {name: row for name, row in cells.items() if set(row) != {"n/a"}}
    header = ["", *(f"**{name}**" if name == "oinetd" else name for name in measured)]
    rows = [[each[0], *(row[number] for row in measured.values())] for number, each in enumerate(figures)]
    return "\n".join([MADE_BY, "", *_rows(header, rows)])


def _headline(result: Result, subjects: tuple[str, ...], case: str, key: str) -> str:
    """The median of the first of `subjects` that was measured; of several numbers of threads the greatest."""
    for base in subjects:
        found = [subject for subject in _plain(result) if subject.base == base]
        if found:
            name = max(found, key=lambda subject: subject.threads).name
            return cell(result.figure(name, case, key), _column(result, key), interval=False)
    return "n/a"


def performance_section(results: Mapping[str, Result], plots: Mapping[str, Plot]) -> str:
    """The generated part of docs/performance.md: Markdown, ending in a newline. Plots are in `bench/` beside it."""
    return "\n".join(_performance(results, plots)).rstrip("\n") + "\n"


def _performance(results: Mapping[str, Result], plots: Mapping[str, Plot]) -> Iterator[str]:
    yield from (MADE_BY, "")
    yield from (f"{BRACKETS} `n/a` is what cannot be had on the machine.", "")
    if first := plots.get("headline"):
        yield from (f"![{first.title}](bench/headline.svg)", "")
    makers = {
        "throughput": _throughput, "latency": _latency, "rate": _rate, "udp": _udp, "connections": _engines,
        "micro": _micro, "mixed": _mixed, "failover": _failover,
    }  # fmt: skip
    for name in ORDER:
        if name not in results:
            continue
        result = results[name]
        facts = f"{when(result.started)}, {result.precision}, commit {result.machine['commit']}"
        yield from (f"## {TITLES[name]}", "", f"{facts}, on {summary_line(result.machine)}.", "")
        yield from makers.get(name, _by_case)(result)
        if profile := softirq_profile(result):
            yield from (f"{profile.title}:", "", *_rows(profile.head, profile.rows), profile.note, "")
        for plot in plots.values():
            if plot.name.startswith(name) or plot.name in _BELONGS.get(name, ()):
                yield from (f"![{plot.title}](bench/{plot.name}.svg)", "")


_BELONGS = {"throughput": ("buffers",), "rate": ("memory",)}


def _column(result: Result, key: str) -> Column:
    return next(column for column in COLUMNS[result.experiment] if column.key == key)


def _rows(header: list[str], rows: list[list[str]]) -> list[str]:
    return [
        f"| {' | '.join(header)} |",
        f"|---|{'---:|' * (len(header) - 1)}",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]


def _figures(result: Result, wanted: list[tuple[str, str, str]]) -> list[str]:
    """A row for each subject of the default buffer; `wanted` holds case, key and the head of each column."""
    header = ["subject", *(head for _, _, head in wanted)]
    rows = []
    for subject in _plain(result):
        cells = [cell(result.figure(subject.name, case, key), _column(result, key)) for case, key, _ in wanted]
        if set(cells) != {"n/a"}:
            rows.append([_name(subject), *cells])
    return [*_rows(header, rows), *_marks(result)]


def _plain(result: Result) -> list[SubjectInfo]:
    return [subject for subject in result.measured() if "@" not in subject.name]


def _name(subject: SubjectInfo) -> str:
    name = f"**{subject.name}**" if subject.family in ("oinetd", "group") else subject.name
    return f"{name} {subject.mark}" if subject.mark else name


def _marks(result: Result) -> list[str]:
    words = {"!": "does not deliver what it is given", "½": "does not pass a half-close on"}
    notes = [f"{mark} {text}" for mark, text in words.items() if any(mark in each.mark for each in result.measured())]
    return [f"{'; '.join(notes)}.", ""] if notes else []


def _throughput(result: Result) -> list[str]:
    words = {"P1": "1 stream", "P8": "8 streams", "P1 reverse": "1 stream back"}
    wanted: list[tuple[str, str, str]] = [
        (case, key, f"{words[case]}, {unit}")
        for case in words
        if case in result.cases()
        for key, unit in (("gbit_s", "Gbit/s"), ("cpu_s_per_gb", "CPU s/GB"))
    ]
    return [*_figures(result, wanted), *_guide(result)]


def _guide(result: Result) -> list[str]:
    """Which relay mode, which buffer and how many threads, as far as this result tells."""
    case = result.cases()[0]
    costs = {
        subject.name: figure.median
        for subject in result.measured()
        if subject.family == "oinetd" and (figure := result.figure(subject.name, case, "cpu_s_per_gb")) is not None
    }
    column = _column(result, "cpu_s_per_gb")
    lines = []
    if costs:
        best = min(costs, key=costs.__getitem__)
        lines.append(f"- Of oinetd's own modes `{best}` costs least for bulk: {plain(costs[best], column)} CPU s/GB.")
        others = {
            subject.name: figure.median
            for subject in result.measured()
            if subject.family == "peer" and (figure := result.figure(subject.name, case, column.key)) is not None
        }
        if others:
            peer = min(others, key=others.__getitem__)
            lines.append(f"- The best peer, `{peer}`, costs {plain(others[peer], column)}.")
    for base, subjects in result.by_buffer().items():
        listed = ", ".join(
            f"{each.buffer_bytes >> 10}K {plain(costs[each.name], column)}"
            for each in subjects
            if each.buffer_bytes and each.name in costs
        )
        of = f" with {subjects[0].threads} threads" if subjects[0].threads else ""
        lines.append(f"- `{base}`{of}, CPU s/GB by `buffersize`: {listed}.")
    for base in ("native-auto", "native-splice", "native-copy"):
        listed = ", ".join(
            f"{subject.threads} {plain(costs[subject.name], column)}"
            for subject in _plain(result)
            if subject.base == base and subject.threads and subject.name in costs
        )
        if listed:
            lines.append(f"- `{base}`, CPU s/GB by `threads`: {listed}.")
    return [*lines, ""] if lines else []


def _latency(result: Result) -> list[str]:
    cases = [case for case in result.cases() if case.startswith("64B")]
    wanted = [
        (case, key, f"{case}, {head}")
        for case in cases
        for key, head in (("p50_us", "p50 µs"), ("p99_us", "p99 µs"), ("cpu_us", "CPU µs each"))
    ]
    return [*_figures(result, wanted), *_below_direct(result)]


def _below_direct(result: Result) -> list[str]:
    """Why a forwarder can be faster than none."""
    case = next((case for case in result.cases() if case.startswith("64B × 1")), "")
    direct = result.figure("direct", case, "p50_us")
    faster = [
        subject.name
        for subject in _plain(result)
        if direct is not None
        and (figure := result.figure(subject.name, case, "p50_us")) is not None
        and figure.median < direct.median
    ]
    if not faster:
        return []
    return [
        f"`{'`, `'.join(faster)}` answered in less time than `direct`: a reactor that polls is awake when a message "
        "comes, while the server behind `direct` sleeps and has to be woken by it.",
        "",
    ]


def _rate(result: Result) -> list[str]:
    wanted = []
    for case in result.cases():
        if "idle" in case:
            wanted += [
                (case, "private_bytes_each", f"{case}: process, KiB each"),
                (case, "kernel_bytes_each", "kernel, KiB each"),
            ]
        else:
            wanted += [(case, "per_second", f"{case}, /s"), (case, "cpu_us", "CPU µs each")]
    return _figures(result, wanted)


def _udp(result: Result) -> list[str]:
    """A table for each size and number of clients: so many columns do not fit beside each other."""
    lines = []
    for shape in dict.fromkeys(case.partition(",")[0] for case in result.cases()):
        wanted: list[tuple[str, str, str]] = []
        for case in result.cases():
            if case.partition(",")[0] != shape:
                continue
            load = case.partition(", ")[2]
            if "one under way" in load:
                wanted += [(case, "p50_us", "p50 µs"), (case, "p99_us", "p99 µs")]
            elif "offered" in load:
                wanted.append((case, "loss_percent", f"{load}: lost %"))
            else:
                wanted.append((case, "datagrams_per_s", f"{load}: datagrams/s"))
            wanted.append((case, "cpu_s_per_million", "CPU s/million"))
        lines += [f"{shape}:", "", *_figures(result, wanted)]
    return lines


def _by_case(result: Result) -> list[str]:
    """A table of the main columns for each case."""
    lines = []
    for case in result.cases():
        wanted = [(case, column.key, _headed(column)) for column in columns_of(result, case, main=True)]
        lines += [f"{case}:", "", *_figures(result, wanted)]
    return lines


def _headed(column: Column) -> str:
    return f"{column.title}, {column.unit}" if column.unit else column.title


def _mixed(result: Result) -> list[str]:
    wanted = []
    for case in result.cases():
        beside = case.partition(", ")[2]
        wanted += [(case, "p50_us", f"{beside}: p50 µs"), (case, "p99_us", "p99 µs")]
        if result.values("direct", case, "beside_gbit_s"):
            wanted.append((case, "beside_gbit_s", "streams, Gbit/s"))
    small = result.cases()[0].partition(", ")[0] if result.cases() else ""
    return [f"{small}:", "", *_figures(result, wanted)]


def _failover(result: Result) -> list[str]:
    """A table for each load: what clients saw while one of four servers failed."""
    lines = []
    for load in dict.fromkeys(case.partition(", ")[2] for case in result.cases()):
        wanted = []
        for case in result.cases():
            fault, _, its_load = case.partition(", ")
            if its_load == load:
                wanted += [(case, "during_errors", f"{fault}: errors"), (case, "during_p99_us", "p99 µs")]
        lines += [f"{load}, 64 at a time:", "", *_figures(result, wanted)]
    return lines


def _engines(result: Result) -> list[str]:
    (case,) = result.cases()
    rows = []
    for subject in _plain(result):

        def shown(key: str, unit: str, name: str = subject.name) -> str:
            text = cell(result.figure(name, case, key), _column(result, key), interval=False)
            return text if text == "n/a" or not unit else f"{text} {unit}"

        rows.append([
            _name(subject), shown("socket_us", "µs"), shown("setup_us", "µs"),
            f"{shown('download_s', 's')} @ {shown('download_mib_s', 'MiB/s')}", shown("run_s", "s"),
            shown("pss_mean_bytes", "MiB"), shown("pss_peak_bytes", "MiB"), shown("cpu_s_per_gb", ""),
        ])  # fmt: skip
    header = [
        case, "Socket creation", "Job setup", "Download", "Run time", "Average memory", "Peak memory", "CPU s/GB",
    ]  # fmt: skip
    return [*_rows(header, rows), *_marks(result)]


def _micro(result: Result) -> list[str]:
    rows = [
        [f"**{name}**", cell(line.intercept, INTERCEPT), cell(line.slope, SLOPE)]
        for name, line in lines_of_cost(result).items()
    ]
    return _rows(["", "CPU ns an exchange", "CPU ns a byte"], rows)
