"""The headline of the page, and the plots of distributions, datagrams and failover."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from bench.histogram import lower_bound
from bench.report.drawing import FONT_SIZE, INK, Plot, bar_plot, colour_of, figure_of, legend, plain_sizes, slug
from bench.report.plots import plots_of
from bench.results import Result, SubjectInfo
from bench.statistics import Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["all_plots", "bandwidth_plots", "failover_plots", "headline", "latency_curves", "mixed_plots", "moves_plots",
           "scaling_plots", "udp_plots", "upgrade_plots"]  # fmt: skip

_HEADLINE_CASE = "P8"
_WIDTH, _HEIGHT, _LINE = 640.0, 260.0, 13.0
"""Of the headline's panel, about, and of a line of text in it, in points."""


def all_plots(result: Result) -> list[Plot]:
    """Every plot of one experiment."""
    makers = {"latency": latency_curves, "mixed": mixed_plots, "udp": udp_plots, "failover": failover_plots,
              "scaling": scaling_plots, "moves": moves_plots, "upgrade": upgrade_plots,
              "bandwidth": bandwidth_plots}  # fmt: skip
    maker = makers.get(result.experiment)
    return plots_of(result) + (maker(result) if maker and result.measured() else [])


def headline(results: Mapping[str, Result]) -> Plot | None:
    """Processor time of a GB against Gbit/s: down and to the right is better."""
    result = results.get("throughput")
    if result is None:
        return None
    case = _HEADLINE_CASE if _HEADLINE_CASE in result.cases() else next(iter(result.cases()), "")
    shown = [
        (subject, rate, cost)
        for subject in plain_sizes(result)
        if (rate := result.figure(subject.name, case, "gbit_s")) is not None
        and (cost := result.figure(subject.name, case, "cpu_s_per_gb")) is not None
    ]
    if not shown:
        return None
    return Plot("headline", "What a gigabyte costs, and how fast it goes", partial(_costs_and_rates, shown, case))


def _costs_and_rates(shown: Sequence[tuple[SubjectInfo, Summary, Summary]], case: str) -> Figure:
    figure, (axes,) = figure_of(10, 4.6)
    for subject, rate, cost in shown:
        colour = colour_of(subject)
        axes.plot([rate.low, rate.high], [cost.median] * 2, color=colour, alpha=0.45, linewidth=1.5)
        axes.plot([rate.median] * 2, [cost.low, cost.high], color=colour, alpha=0.45, linewidth=1.5)
        axes.plot([rate.median], [cost.median], "o", color=colour, markersize=9)
    axes.margins(x=0.06, y=0.12)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    scale = _WIDTH / axes.get_xlim()[1], _HEIGHT / axes.get_ylim()[1]
    points = [(rate.median * scale[0], cost.median * scale[1], each.name + each.mark) for each, rate, cost in shown]
    for x, y, name, left, level in _placed(points):
        axes.annotate(
            name, (x / scale[0], y / scale[1]), xytext=(-9 if left else 9, level - y), textcoords="offset points",
            ha="right" if left else "left", va="center", color=INK, fontsize=FONT_SIZE,
            arrowprops={"arrowstyle": "-", "color": INK, "alpha": 0.25, "linewidth": 0.8},
        )  # fmt: skip
    axes.set_xlabel("Gbit/s, eight streams (right is better)" if case == "P8" else f"Gbit/s, {case}", color=INK)
    axes.set_ylabel("CPU s of the forwarder for 10⁹ bytes (down is better)", color=INK)
    return figure


def _placed(points: Sequence[tuple[float, float, str]]) -> list[tuple[float, float, str, bool, float]]:
    """Where the names of points go, in points of the page: with what is left of it or right, and at which height.

    From the left half names go to the right, and from the right half to the left, each to the nearest free height.
    """
    taken: list[tuple[float, float, float]] = []
    placed = []
    for x, y, name in sorted(points, key=lambda point: -point[1]):
        left = x > _WIDTH / 2
        length = len(name) * 0.56 * FONT_SIZE + 12
        begin, end = (x - length, x) if left else (x, x + length)
        level = y
        for turn in range(1, 40):
            if all(end < b or e < begin or abs(level - height) >= _LINE for b, e, height in taken):
                break
            level = y + (turn + 1) // 2 * _LINE * (1 if turn % 2 else -1)
        taken.append((begin, end, level))
        placed.append((x, y, name, left, level))
    return placed


def latency_curves(result: Result) -> list[Plot]:
    """How many requests took longer than a time, of all rounds; and, of an open loop, p99 over the offered rate."""
    found = []
    offered = [case for case in result.cases() if "offered" in case]
    curves = [case for case in result.cases() if case.startswith("64B") and "offered" not in case]
    curves = curves or (offered if len(offered) == 1 else [])
    if any(_tail(result, subject.name, case) for subject in plain_sizes(result) for case in curves):
        found.append(Plot("latency-curves", "Percentiles of all round trips", partial(_tails, result, curves)))
    if len(offered) > 1:
        found.append(Plot("latency-load", "Latency against load", partial(_load_curve, result, offered)))
    return found


def _tails(result: Result, cases: Sequence[str]) -> Figure:
    figure, panels = figure_of(10, 3.8, len(cases))
    for panel, case in zip(panels, cases, strict=True):
        for subject in plain_sizes(result):
            points = _tail(result, subject.name, case)
            if points:
                xs, ys = zip(*points, strict=True)
                panel.plot(xs, ys, drawstyle="steps-post", color=colour_of(subject), label=subject.name, linewidth=1.4)
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_ylim(1e-4, 1)
        panel.set_yticks([0.5, 0.1, 0.01, 0.001, 0.0001], ["p50", "p90", "p99", "p99.9", "p99.99"])
        panel.minorticks_off()
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}".replace(",", "\u202f"))
        panel.set_title(f"{case}: µs (left is better)", color=INK, fontsize=FONT_SIZE + 1, loc="left")
    legend(panels[-1])
    return figure


def _tail(result: Result, subject: str, case: str) -> list[tuple[float, float]]:
    """`(µs, share of round trips that took longer)` from the histograms of all rounds."""
    counts: dict[int, int] = {}
    for sample in result.samples:
        if (sample.subject, sample.case) == (subject, case) and not sample.error:
            for bucket, count in sample.detail.get("histogram", []):
                counts[bucket] = counts.get(bucket, 0) + count
    left = total = sum(counts.values())
    points = []
    for bucket in sorted(counts):
        points.append((lower_bound(bucket) / 1000, left / total))
        left -= counts[bucket]
    return points


def _load_curve(result: Result, cases: Sequence[str]) -> Figure:
    figure, (axes,) = figure_of(10, 3.8)
    for subject in plain_sizes(result):
        rates, values = [], []
        for case in cases:
            rate, latency = (result.figure(subject.name, case, key) for key in ("offered_per_s", "p99_us"))
            if rate is not None and latency is not None:
                rates.append(rate.median)
                values.append(latency.median)
        axes.plot(rates, values, "o-", color=colour_of(subject), label=subject.name, markersize=4)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}".replace(",", "\u202f"))
    axes.set_xlabel("requests offered a second", color=INK)
    axes.set_title("p99 from the time that a request was due, µs (lower is better)", color=INK, loc="left", fontsize=11)
    legend(axes)
    return figure


def udp_plots(result: Result) -> list[Plot]:
    """How many datagrams a second, and what a million costs."""
    return [
        bar_plot(result, f"udp-{slug(case)}", f"Datagrams, {case}", case, ("datagrams_per_s", "cpu_s_per_million"))
        for case in result.cases()
        if "32 under way" in case
    ]


def mixed_plots(result: Result) -> list[Plot]:
    """What small messages wait for, and how much goes by beside them."""
    found = []
    for case in result.cases():
        keys = ("p99_us", "beside_gbit_s") if "streams" in case else ("p50_us", "p99_us")
        found.append(bar_plot(result, f"mixed-{slug(case)}", f"Small messages, {case}", case, keys))
    return found


def failover_plots(result: Result) -> list[Plot]:
    """Errors that clients saw while a server failed, and p99.9: each fault a row of bars."""
    found = []
    for case in result.cases():
        keys = ("during_errors", "during_p99.9_us")
        found.append(bar_plot(result, f"failover-{slug(case)}", f"One of four, {case}", case, keys))
    return found


def scaling_plots(result: Result) -> list[Plot]:
    """Rate and cost with each number of threads."""
    return [
        bar_plot(result, f"scaling-{slug(case)}", f"Threads, {case}", case, ("per_second", "cpu_us"))
        for case in result.cases()
    ]


def moves_plots(result: Result) -> list[Plot]:
    """How even the threads become."""
    return [
        bar_plot(result, f"moves-{slug(case)}", f"Threads, {case}", case, ("first_imbalance", "imbalance"))
        for case in result.cases()
        if "busy" in case
    ]


def bandwidth_plots(result: Result) -> list[Plot]:
    """What a bound lets pass, and what it costs."""
    keys = ("reached_percent", "cpu_percent")
    return [
        bar_plot(result, f"bandwidth-{slug(case)}", f"Bandwidth, {case}", case, keys)
        for case in result.cases()
        if result.values(result.measured()[0].name, case, "reached_percent")
    ]


def upgrade_plots(result: Result) -> list[Plot]:
    """What a replacement is noticed by."""
    return [
        bar_plot(result, f"upgrade-{slug(case)}", f"Replaced under load, {case}", case, ("pause_s", "left"))
        for case in result.cases()
    ]
