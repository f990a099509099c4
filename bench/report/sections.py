"""A section of docs/performance.md for each experiment: its tables in Markdown."""

from __future__ import annotations

from bench.columns import COLUMNS, Column, cell, columns_of, plain
from bench.experiments.micro import INTERCEPT, SLOPE, lines_of_cost
from bench.results import Result, SubjectInfo

__all__ = ["column_named", "default_subjects", "rows_of", "section"]


def section(result: Result) -> list[str]:
    """The lines of the section of one experiment, without its title."""
    makers = {
        "throughput": _throughput, "latency": _latency, "rate": _rate, "udp": _udp, "connections": _engines,
        "micro": _micro, "mixed": _mixed, "failover": _failover, "bandwidth": _bandwidth,
    }  # fmt: skip
    return makers.get(result.experiment, _by_case)(result)


def column_named(result: Result, key: str) -> Column:
    return next(column for column in COLUMNS[result.experiment] if column.key == key)


def rows_of(header: list[str], rows: list[list[str]]) -> list[str]:
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
    for subject in default_subjects(result):
        cells = [cell(result.figure(subject.name, case, key), column_named(result, key)) for case, key, _ in wanted]
        if set(cells) != {"n/a"}:
            rows.append([_name(subject), *cells])
    return [*rows_of(header, rows), *_marks(result)]


def default_subjects(result: Result) -> list[SubjectInfo]:
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
    column = column_named(result, "cpu_s_per_gb")
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
            for subject in default_subjects(result)
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
        for subject in default_subjects(result)
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


def _bandwidth(result: Result) -> list[str]:
    """A table for each number of connections: what each bound lets pass, and what it costs."""
    lines = []
    for shape in dict.fromkeys(case.rpartition(", ")[0] for case in result.cases()):
        wanted = []
        for case in result.cases():
            its_shape, _, bound = case.rpartition(", ")
            if its_shape == shape:
                wanted += [(case, "reached_percent", f"{bound}: reached %"), (case, "cpu_percent", "CPU % of a core")]
        lines += [f"{shape}:", "", *_figures(result, wanted)]
    return lines


def _engines(result: Result) -> list[str]:
    (case,) = result.cases()
    rows = []
    for subject in default_subjects(result):

        def shown(key: str, unit: str, name: str = subject.name) -> str:
            text = cell(result.figure(name, case, key), column_named(result, key))
            return text if text == "n/a" or not unit else f"{text} {unit}"

        rows.append([
            _name(subject), shown("socket_us", "µs"), shown("setup_us", "µs"),
            f"{shown('download_s', 's')} @ {shown('download_mib_s', 'MiB/s')}", shown("run_s", "s"),
            shown("pss_mean_bytes", "MiB"), shown("pss_peak_bytes", "MiB"), shown("cpu_s_per_gb", ""),
        ])  # fmt: skip
    header = [
        case, "Socket creation", "Job setup", "Download", "Run time", "Average memory", "Peak memory", "CPU s/GB",
    ]  # fmt: skip
    return [*rows_of(header, rows), *_marks(result)]


def _micro(result: Result) -> list[str]:
    rows = [
        [f"**{name}**", cell(line.intercept, INTERCEPT), cell(line.slope, SLOPE)]
        for name, line in lines_of_cost(result).items()
    ]
    return rows_of(["", "CPU ns an exchange", "CPU ns a byte"], rows)
