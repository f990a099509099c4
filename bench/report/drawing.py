"""How plots of results are drawn: SVG in colours that hold on light and on dark ground.

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
from bench.results import Result, SubjectInfo
from bench.statistics import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "FONT_SIZE",
    "INK",
    "Plot",
    "annotate",
    "bar_plot",
    "bars",
    "by_cost",
    "colour_of",
    "column_of",
    "figure_of",
    "headed",
    "legend",
    "line",
    "plain_sizes",
    "rows_of",
    "slug",
    "spaced",
]

INK = "#010203"
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
FONT_SIZE = 10.0


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


def column_of(result: Result, key: str) -> Column:
    return next(column for column in COLUMNS[result.experiment] if column.key == key)


def figure_of(width: float, height: float, panels: int = 1) -> tuple[Figure, list[Axes]]:
    """Without pyplot, which keeps every figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    if panels > 1 and (engine := figure.get_layout_engine()) is not None:
        engine.set(wspace=0.05)  # type: ignore[call-arg]
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for each in axes:
        each.set_facecolor("none")
        for side in ("top", "right"):
            each.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            each.spines[side].set_color(INK)
            each.spines[side].set_alpha(0.4)
        each.tick_params(colors=INK, labelsize=FONT_SIZE, length=3)
        each.grid(True, color=INK, alpha=0.12, linewidth=0.8)
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
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'font: ([\d.]+px) [^;"]*', r"font: \1 system-ui, sans-serif", svg)
    style = "svg{color:#24292f}@media(prefers-color-scheme:dark){svg{color:#e6edf3}}"
    return svg.replace("<defs>", f"<style>{style}</style>\n <defs>", 1)


def bars(
    axes: Axes, result: Result, subjects: Sequence[SubjectInfo], case: str, column: Column, *, names: bool
) -> None:
    """Horizontal bars with the interval of the median, the figure beside each."""
    figures = [result.figure(subject.name, case, column.key) for subject in subjects]
    places = range(len(subjects))
    for place, subject, figure in zip(places, subjects, figures, strict=True):
        if figure is None:
            annotate(axes, 0, place, "n/a")
            continue
        median, low, high = (value * column.scale for value in (figure.median, figure.low, figure.high))
        axes.barh(place, median, height=0.68, color=colour_of(subject))
        axes.plot([low, high], [place, place], color=INK, alpha=0.55, linewidth=1.2)
        annotate(axes, max(median, high), place, spaced(median, column.digits))
    axes.set_yticks(list(places), [subject.name + subject.mark for subject in subjects] if names else [])
    rows_of(axes, len(subjects))
    axes.margins(x=0.2)
    axes.set_xlim(left=0)
    axes.locator_params(axis="x", nbins=4)
    axes.xaxis.set_major_formatter(lambda value, _: spaced(value, 0 if value >= 10 or value == int(value) else 2))
    axes.set_title(headed(column), color=INK, fontsize=FONT_SIZE + 1, loc="left")


def headed(column: Column) -> str:
    """What a panel shows, and which way is better."""
    title = f"{column.title}, {column.unit}" if column.unit else column.title
    return f"{title} ({column.better} is better)"


def by_cost(result: Result, subjects: Sequence[SubjectInfo], case: str, key: str) -> list[SubjectInfo]:
    """The best first; before them those without a figure, which are the floor."""
    column = column_of(result, key)
    figures = {subject.name: result.figure(subject.name, case, key) for subject in subjects}

    def place(subject: SubjectInfo) -> float:
        figure = figures[subject.name]
        if figure is None:
            return float("-inf")
        return figure.median if column.better == "lower" else -figure.median

    return sorted(subjects, key=place)


def rows_of(axes: Axes, count: int) -> None:
    """The first row on top, and the rows at the same height in every panel whether they hold a bar or not."""
    axes.set_ylim(count - 0.4, -0.6)
    axes.grid(False, axis="y")


def annotate(axes: Axes, x: float, y: float, text: str) -> None:
    """`text` right of a point, at a distance that does not depend on the scale."""
    axes.annotate(text, (x, y), xytext=(5, 0), textcoords="offset points", va="center", color=INK, fontsize=FONT_SIZE)


def spaced(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}".replace(",", "\u202f")


def plain_sizes(result: Result) -> list[SubjectInfo]:
    """The measured subjects, without the buffer sizes other than the default."""
    return [subject for subject in result.measured() if "@" not in subject.name]


def bar_plot(result: Result, name: str, title: str, case: str, keys: Sequence[str]) -> Plot:
    return Plot(name, title, partial(_bar_figure, result, case, keys))


def _bar_figure(result: Result, case: str, keys: Sequence[str]) -> Figure:
    subjects = by_cost(result, plain_sizes(result), case, next((key for key in keys if "cpu" in key), keys[0]))
    figure, axes = figure_of(10, 0.7 + 0.34 * len(subjects), len(keys))
    for index, key in enumerate(keys):
        bars(axes[index], result, subjects, case, column_of(result, key), names=index == 0)
    return figure


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def line(
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


def legend(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(handles, labels, frameon=False, labelcolor=INK, fontsize=FONT_SIZE - 1)
