"""Plots of results as SVG, in colours that hold on light and on dark ground.

Lines and letters take the colour of the text around them (`currentColor`); the ground is transparent.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from bench.columns import COLUMNS, Column
from bench.histogram import PERCENTILES
from bench.results import Result, SubjectInfo
from bench.statistics import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Plot", "by_cost", "colour_of", "headed", "plots_of"]

NOISE_BYTES = 0.1 * 1024

_INK = "#010203"
"""Stands for `currentColor` while matplotlib draws; no other part has it."""
_COLOURS = {
    "native-auto": "#2f81d6",
    "native-splice": "#1aa0a0",
    "native-copy": "#5b6ee1",
    "python": "#29a36a",
    "python-asyncio": "#7fb3e6",
    "native-group16": "#4aa3df",
    "oinetd-native": "#2f81d6",
    "oinetd-python": "#29a36a",
    "haproxy": "#d9822b",
    "haproxy-splice": "#c9a227",
    "haproxy-trixie": "#e39b4f",
    "haproxy-splice-trixie": "#d8b84a",
    "nginx": "#c75c3a",
    "nginx-trixie": "#d9785a",
    "rinetd": "#b5803c",
    "socat": "#dd9f6e",
    "redir": "#a98b2d",
    "ref-threads": "#a05bc0",
    "ref-polling": "#c06aa5",
    "ref-tasks": "#8473c9",
    "direct": "#8a8f98",
    "nftables": "#6f7681",
}
"""Cold ones are oinetd's, warm ones are peers', purple the references'; the same for a mode in every plot."""
_OTHER = "#cf5f8a"
_MICRO_TICKS_NS = (2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6, 2e6, 5e6)
_FONT_SIZE = 10.0


@dataclass(frozen=True)
class Plot:
    """`name` is also that of the file. It is drawn when it is first asked for: of many, a page shows a few."""

    name: str
    title: str
    draw: Callable[[], Figure]

    @cached_property
    def svg(self) -> str:
        """Complete in itself."""
        return _svg(self.draw(), self.name)


def colour_of(subject: SubjectInfo) -> str:
    return _COLOURS.get(subject.base, _OTHER)


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


def _column(result: Result, key: str) -> Column:
    return next(column for column in COLUMNS[result.experiment] if column.key == key)


def _figure(width: float, height: float, panels: int = 1) -> tuple[Figure, list[Axes]]:
    """Without pyplot, which keeps every figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for each in axes:
        each.set_facecolor("none")
        for side in ("top", "right"):
            each.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            each.spines[side].set_color(_INK)
            each.spines[side].set_alpha(0.4)
        each.tick_params(colors=_INK, labelsize=_FONT_SIZE, length=3)
        each.grid(True, color=_INK, alpha=0.12, linewidth=0.8)
        each.set_axisbelow(True)
    return figure, list(axes)


def _svg(figure: Figure, name: str) -> str:
    import matplotlib

    out = io.StringIO()
    # Text stays text; ids and dates that change from run to run would make every file differ.
    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}
    with matplotlib.rc_context(settings):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'font: ([\d.]+px) [^;"]*', r"font: \1 system-ui, sans-serif", svg)
    style = "svg{color:#24292f}@media(prefers-color-scheme:dark){svg{color:#e6edf3}}"
    return svg.replace("<defs>", f"<style>{style}</style>\n <defs>", 1)


def _bars(
    axes: Axes, result: Result, subjects: Sequence[SubjectInfo], case: str, column: Column, *, names: bool
) -> None:
    """Horizontal bars with the interval of the median, the figure beside each."""
    figures = [result.figure(subject.name, case, column.key) for subject in subjects]
    places = range(len(subjects))
    for place, subject, figure in zip(places, subjects, figures, strict=True):
        if figure is None:
            _label(axes, 0, place, "n/a")
            continue
        median, low, high = (value * column.scale for value in (figure.median, figure.low, figure.high))
        axes.barh(place, median, height=0.68, color=colour_of(subject))
        axes.plot([low, high], [place, place], color=_INK, alpha=0.55, linewidth=1.2)
        _label(axes, max(median, high), place, _spaced(median, column.digits))
    axes.set_yticks(list(places), [subject.name + subject.mark for subject in subjects] if names else [])
    _rows_of(axes, len(subjects))
    axes.margins(x=0.2)
    axes.set_xlim(left=0)
    axes.locator_params(axis="x", nbins=4)
    axes.xaxis.set_major_formatter(lambda value, _: _spaced(value, 0 if value >= 10 or value == int(value) else 2))
    axes.set_title(headed(column), color=_INK, fontsize=_FONT_SIZE + 1, loc="left")


def headed(column: Column) -> str:
    """What a panel shows, and which way is better."""
    title = f"{column.title}, {column.unit}" if column.unit else column.title
    return f"{title} ({column.better} is better)"


def by_cost(result: Result, subjects: Sequence[SubjectInfo], case: str, key: str) -> list[SubjectInfo]:
    """The best first; before them those without a figure, which are the floor."""
    column = _column(result, key)
    figures = {subject.name: result.figure(subject.name, case, key) for subject in subjects}

    def place(subject: SubjectInfo) -> float:
        figure = figures[subject.name]
        if figure is None:
            return float("-inf")
        return figure.median if column.better == "lower" else -figure.median

    return sorted(subjects, key=place)


def _rows_of(axes: Axes, count: int) -> None:
    """The first row on top, and the rows at the same height in every panel whether they hold a bar or not."""
    axes.set_ylim(count - 0.4, -0.6)
    axes.grid(False, axis="y")


def _label(axes: Axes, x: float, y: float, text: str) -> None:
    """`text` right of a point, at a distance that does not depend on the scale."""
    axes.annotate(text, (x, y), xytext=(5, 0), textcoords="offset points", va="center", color=_INK, fontsize=_FONT_SIZE)


def _spaced(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}".replace(",", "\u202f")


def _plain_sizes(result: Result) -> list[SubjectInfo]:
    """The measured subjects, without the buffer sizes other than the default."""
    return [subject for subject in result.measured() if "@" not in subject.name]


def _bar_plot(result: Result, name: str, title: str, case: str, keys: Sequence[str]) -> Plot:
    return Plot(name, title, partial(_bar_figure, result, case, keys))


def _bar_figure(result: Result, case: str, keys: Sequence[str]) -> Figure:
    subjects = by_cost(result, _plain_sizes(result), case, next((key for key in keys if "cpu" in key), keys[0]))
    figure, axes = _figure(10, 0.7 + 0.34 * len(subjects), len(keys))
    for index, key in enumerate(keys):
        _bars(axes[index], result, subjects, case, _column(result, key), names=index == 0)
    return figure


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _throughput(result: Result) -> list[Plot]:
    plots = [
        _bar_plot(result, f"throughput-{_slug(case)}", f"Throughput, {case}", case, ("gbit_s", "cpu_s_per_gb"))
        for case in result.cases()
    ]
    if result.by_buffer():
        plots.append(Plot("buffers", "Buffer sizes", partial(_buffers, result)))
    return plots


def _buffers(result: Result) -> Figure:
    """CPU per GB and throughput over the size of the buffer, for the engines that have one."""
    modes = result.by_buffer()
    case = result.cases()[0]
    figure, axes = _figure(10, 3.4, 2)
    for panel, key in zip(axes, ("cpu_s_per_gb", "gbit_s"), strict=True):
        column = _column(result, key)
        for base, subjects in modes.items():
            points = [(each, result.figure(each.name, case, key)) for each in subjects]
            _line(panel, [(each.buffer_bytes or 0, figure) for each, figure in points], column, base, subjects[0])
        panel.set_xscale("log", base=2)
        sizes = sorted({each.buffer_bytes for subjects in modes.values() for each in subjects if each.buffer_bytes})
        panel.set_xticks(sizes, [f"{size >> 10}K" for size in sizes])
        panel.set_ylim(bottom=0)
        panel.set_xlabel("buffer", color=_INK)
        panel.set_title(f"{column.title}, {column.unit}, {case}", color=_INK, fontsize=_FONT_SIZE + 1, loc="left")
    _legend(axes[0])
    return figure


def _line(
    axes: Axes,
    points: Sequence[tuple[float, Summary | None]],
    column: Column,
    label: str,
    subject: SubjectInfo,
) -> None:
    known = [(x, figure) for x, figure in points if figure is not None]
    if not known:
        return
    xs = [x for x, _ in known]
    colour = colour_of(subject)
    axes.plot(xs, [figure.median * column.scale for _, figure in known], "o-", color=colour, label=label, markersize=4)
    axes.fill_between(
        xs,
        [figure.low * column.scale for _, figure in known],
        [figure.high * column.scale for _, figure in known],
        color=colour,
        alpha=0.18,
        linewidth=0,
    )


def _legend(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(handles, labels, frameon=False, labelcolor=_INK, fontsize=_FONT_SIZE - 1)


def _latency(result: Result) -> list[Plot]:
    cases = [case for case in result.cases() if case.startswith("64B")] or result.cases()[:2]
    return [
        Plot("latency", "Latency of round trips", partial(_ladders, result, cases)),
        *(
            _bar_plot(result, f"latency-{_slug(case)}", f"Round trips, {case}", case, ("per_second", "cpu_us"))
            for case in cases
        ),
    ]


def _ladders(result: Result, cases: Sequence[str]) -> Figure:
    """The percentiles of each subject as a ladder of dots, for the smallest message on one connection and on many."""
    subjects = _plain_sizes(result)
    figure, axes = _figure(10, 0.9 + 0.34 * len(subjects), len(cases))
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
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}".replace(",", "\u202f"))
        panel.xaxis.set_minor_formatter(lambda _value, _: "")
        _rows_of(panel, len(subjects))
        panel.set_title(f"{case}: p50 ● p90 • p99 · p99.9, µs", color=_INK, fontsize=_FONT_SIZE + 1, loc="left")
        panel.tick_params(which="minor", colors=_INK, labelsize=_FONT_SIZE - 3)
    return figure


def _rate(result: Result) -> list[Plot]:
    plots = []
    for case in result.cases():
        if "idle" in case:
            plots.append(Plot("memory", "Memory of idle connections", partial(_memory, result, case)))
        elif case.endswith("16"):
            plots.append(_bar_plot(result, "rate", f"New connections, {case}", case, ("per_second", "cpu_us")))
    return plots


def _memory(result: Result, case: str) -> Figure:
    """Bytes of an idle connection: the process and, on top of it, the kernel."""
    measured = [subject for subject in _plain_sizes(result) if result.values(subject.name, case, "private_bytes_each")]
    subjects = by_cost(result, measured, case, "private_bytes_each")
    figure, (axes,) = _figure(10, 0.9 + 0.34 * len(subjects))
    for place, subject in enumerate(subjects):
        start = 0.0
        for key, alpha in (("private_bytes_each", 1.0), ("kernel_bytes_each", 0.45)):
            summary = result.figure(subject.name, case, key)
            width = max(0.0, summary.median / 1024) if summary else 0.0
            axes.barh(place, width, left=start, height=0.68, color=colour_of(subject), alpha=alpha)
            start += width
        own = result.figure(subject.name, case, "private_bytes_each")
        below = own is not None and own.median < NOISE_BYTES
        _label(axes, start, place, f"{start:.1f}{' (process below 0.1)' if below else ''}")
    axes.set_yticks(range(len(subjects)), [each.name + each.mark for each in subjects])
    _rows_of(axes, len(subjects))
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    axes.set_title(
        f"{case} connections: KiB each, process (full) and kernel (pale); lower is better",
        color=_INK,
        fontsize=_FONT_SIZE + 1,
        loc="left",
    )
    return figure


def _connections(result: Result) -> list[Plot]:
    case = result.cases()[0]
    return [_bar_plot(result, "connections", f"Engines, {case}", case, ("run_s", "cpu_s_per_gb", "pss_peak_bytes"))]


def _micro(result: Result) -> list[Plot]:
    return [Plot("micro", "What an exchange costs", partial(_exchanges, result))]


def _exchanges(result: Result) -> Figure:
    """Processor time of one exchange over the payload: a copy rises with it, splice is nearly flat."""
    figure, (axes,) = _figure(10, 4)
    column = _column(result, "cpu_ns_op")
    sizes = {sample.case: float(sample.detail["size"]) for sample in result.samples if "size" in sample.detail}
    for subject in _plain_sizes(result):
        points = [(sizes[case], result.figure(subject.name, case, column.key)) for case in result.cases()]
        _line(axes, points, column, subject.name, subject)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = [size for size in sorted(set(sizes.values())) if size in (1, 16, 256, 4096, 65536, 1 << 20)]
    names = {1.0: "1 B", 16.0: "16 B", 256.0: "256 B", 4096.0: "4 KiB", 65536.0: "64 KiB", float(1 << 20): "1 MiB"}
    axes.set_xticks(ticks, [names[tick] for tick in ticks])
    axes.minorticks_off()
    low, high = axes.get_ylim()
    axes.set_yticks([tick for tick in _MICRO_TICKS_NS if low <= tick <= high])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}")
    axes.set_xlabel("payload", color=_INK)
    axes.set_title(
        "CPU, µs of the forwarder for one exchange (lower is better)", color=_INK, fontsize=_FONT_SIZE + 1, loc="left"
    )
    _legend(axes)
    return figure
