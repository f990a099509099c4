"""The plots of bulk, round trips, connections and exchanges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from bench.histogram import PERCENTILES
from bench.report.drawing import (
    FONT_SIZE,
    INK,
    Plot,
    annotate,
    bar_plot,
    by_cost,
    colour_of,
    column_of,
    figure_of,
    headed,
    legend,
    line,
    plain_sizes,
    rows_of,
    slug,
)
from bench.results import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plots_of"]

NOISE_BYTES = 0.1 * 1024
_MICRO_TICKS_NS = (2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6, 2e6, 5e6)


def plots_of(result: Result) -> list[Plot]:
    """The plots of one experiment; none if there is nothing to draw."""
    makers: dict[str, Callable[[Result], list[Plot]]] = {
        "throughput": _throughput,
        "latency": _latency,
        "rate": _rate,
        "connections": _connections,
        "micro": _micro,
    }
    maker = makers.get(result.experiment)
    return maker(result) if maker and result.measured() else []


def _throughput(result: Result) -> list[Plot]:
    plots = [
        bar_plot(result, f"throughput-{slug(case)}", f"Throughput, {case}", case, ("gbit_s", "cpu_s_per_gb"))
        for case in result.cases()
    ]
    if result.by_buffer():
        plots.append(Plot("buffers", "Buffer sizes", partial(_buffers, result)))
    return plots


def _buffers(result: Result) -> Figure:
    """CPU per GB and throughput over the size of the buffer, for the engines that have one."""
    modes = result.by_buffer()
    case = result.cases()[0]
    figure, axes = figure_of(10, 3.4, 2)
    for panel, key in zip(axes, ("cpu_s_per_gb", "gbit_s"), strict=True):
        column = column_of(result, key)
        for base, subjects in modes.items():
            points = [(each, result.figure(each.name, case, key)) for each in subjects]
            line(panel, [(each.buffer_bytes or 0, figure) for each, figure in points], column, base, subjects[0])
        panel.set_xscale("log", base=2)
        sizes = sorted({each.buffer_bytes for subjects in modes.values() for each in subjects if each.buffer_bytes})
        panel.set_xticks(sizes, [f"{size >> 10}K" for size in sizes])
        panel.set_ylim(bottom=0)
        panel.set_xlabel("buffer", color=INK)
        panel.set_title(f"{case}: {headed(column)}", color=INK, fontsize=FONT_SIZE + 1, loc="left")
    legend(axes[0])
    return figure


def _latency(result: Result) -> list[Plot]:
    cases = [case for case in result.cases() if case.startswith("64B")] or result.cases()[:2]
    return [
        Plot("latency", "Latency of round trips", partial(_ladders, result, cases)),
        *(
            bar_plot(result, f"latency-{slug(case)}", f"Round trips, {case}", case, ("per_second", "cpu_us"))
            for case in cases
        ),
    ]


def _ladders(result: Result, cases: Sequence[str]) -> Figure:
    """The percentiles of each subject as a ladder of dots, for the smallest message on one connection and on many."""
    from matplotlib.ticker import LogLocator

    subjects = by_cost(result, plain_sizes(result), cases[0], "p50_us")
    figure, axes = figure_of(10, 0.9 + 0.34 * len(subjects), len(cases))
    for index, case in enumerate(cases):
        panel = axes[index]
        for place, subject in enumerate(subjects):
            figures = [result.figure(subject.name, case, f"p{percent:g}_us") for percent in PERCENTILES]
            values = [each.median for each in figures if each is not None]
            colour = colour_of(subject)
            panel.plot(values, [place] * len(values), "-", color=colour, alpha=0.5, linewidth=2)
            for size, value in zip((8, 6, 4.5, 3), values, strict=False):
                panel.plot([value], [place], "o", color=colour, markersize=size)
        panel.set_yticks(range(len(subjects)), [each.name + each.mark for each in subjects] if index == 0 else [])
        panel.set_xscale("log")
        low, high = panel.get_xlim()
        if high < 30 * low:  # of powers of ten alone there would be one number, or none
            panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}".replace(",", "\u202f"))
        panel.xaxis.set_minor_formatter(lambda _value, _: "")
        rows_of(panel, len(subjects))
        panel.set_title(
            f"{case}: p50 ● p90 • p99 · p99.9, µs (left is better)", color=INK, fontsize=FONT_SIZE + 1, loc="left"
        )
        panel.tick_params(which="minor", colors=INK, labelsize=FONT_SIZE - 3)
    return figure


def _rate(result: Result) -> list[Plot]:
    plots = []
    for case in result.cases():
        if "idle" in case:
            plots.append(Plot("memory", "Memory of idle connections", partial(_memory, result, case)))
        elif case.endswith("16"):
            plots.append(bar_plot(result, "rate", f"New connections, {case}", case, ("per_second", "cpu_us")))
    return plots


def _memory(result: Result, case: str) -> Figure:
    """Bytes of an idle connection: the process and, on top of it, the kernel."""
    measured = [subject for subject in plain_sizes(result) if result.values(subject.name, case, "private_bytes_each")]
    subjects = by_cost(result, measured, case, "private_bytes_each")
    figure, (axes,) = figure_of(10, 0.9 + 0.34 * len(subjects))
    for place, subject in enumerate(subjects):
        start = 0.0
        for key, alpha in (("private_bytes_each", 1.0), ("kernel_bytes_each", 0.45)):
            summary = result.figure(subject.name, case, key)
            width = max(0.0, summary.median / 1024) if summary else 0.0
            axes.barh(place, width, left=start, height=0.68, color=colour_of(subject), alpha=alpha)
            start += width
        own = result.figure(subject.name, case, "private_bytes_each")
        below = own is not None and own.median < NOISE_BYTES
        annotate(axes, start, place, f"{start:.1f}{' (process below 0.1)' if below else ''}")
    axes.set_yticks(range(len(subjects)), [each.name + each.mark for each in subjects])
    rows_of(axes, len(subjects))
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    axes.set_title(
        f"{case} connections: KiB each, process (full) and kernel (pale); lower is better",
        color=INK,
        fontsize=FONT_SIZE + 1,
        loc="left",
    )
    return figure


def _connections(result: Result) -> list[Plot]:
    case = result.cases()[0]
    return [bar_plot(result, "connections", f"Engines, {case}", case, ("run_s", "cpu_s_per_gb", "pss_peak_bytes"))]


def _micro(result: Result) -> list[Plot]:
    return [Plot("micro", "What an exchange costs", partial(_exchanges, result))]


def _exchanges(result: Result) -> Figure:
    """Processor time of one exchange over the payload: a copy rises with it, splice is nearly flat."""
    figure, (axes,) = figure_of(10, 4)
    column = column_of(result, "cpu_ns_op")
    sizes = {sample.case: float(sample.detail["size"]) for sample in result.samples if "size" in sample.detail}
    for subject in plain_sizes(result):
        points = [(sizes[case], result.figure(subject.name, case, column.key)) for case in result.cases()]
        line(axes, points, column, subject.name, subject)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = [size for size in sorted(set(sizes.values())) if size in (1, 16, 256, 4096, 65536, 1 << 20)]
    names = {1.0: "1 B", 16.0: "16 B", 256.0: "256 B", 4096.0: "4 KiB", 65536.0: "64 KiB", float(1 << 20): "1 MiB"}
    axes.set_xticks(ticks, [names[tick] for tick in ticks])
    axes.minorticks_off()
    low, high = axes.get_ylim()
    axes.set_yticks([tick for tick in _MICRO_TICKS_NS if low <= tick <= high])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}")
    axes.set_xlabel("payload", color=INK)
    axes.set_title(
        "CPU, µs of the forwarder for one exchange (lower is better)", color=INK, fontsize=FONT_SIZE + 1, loc="left"
    )
    legend(axes)
    return figure
