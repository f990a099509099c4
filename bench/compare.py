"""`compare A B`: two commits, two configurations, or a subject and a peer, in turn on one machine in one run.

What the machine does falls on both alike, because each round measures one directly after the other. So what is judged
is the ratio within each round, and its median over the rounds. Several figures are looked at; the interval of each is
made wide enough that all of them together hold with 95 %.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.errors import BenchError, Interrupted
from bench.experiment import Options, check, info, must_be_writable
from bench.histogram import percentiles_us
from bench.loads import Load, bulk_load, exchange_load, short_load
from bench.machine import describe
from bench.plan import Plan
from bench.results import Result, Sample
from bench.stand import FarEnd, Running, Stand
from bench.statistics import Summary, summarise
from bench.subjects import Subject, all_subjects, groups
from bench.subjects.peers import Custom
from bench.subjects.revision import Configured, Revision, build, commit_of
from bench.tables import ambience, faults

__all__ = ["METRICS", "Verdict", "compare", "judge", "subject_of"]

LEAST_EFFECT = 0.02
"""A difference below this share is not called one, however sure it is."""
ROUNDS, QUICK_ROUNDS = 16, 12
SECONDS, QUICK_SECONDS = 1.0, 0.4
_OVERHEAD_S = 0.9
"""Of each load: the client's start, warm-up and end."""
_START_S = 0.8
_GIGA = 1e9


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure of one load. `better` is `lower` or `higher`."""

    case: str
    key: str
    title: str
    better: str


METRICS = (
    Metric("8 streams up", "cpu_s_per_gb", "CPU s/GB", "lower"),
    Metric("8 streams up", "gbit_s", "Gbit/s", "higher"),
    Metric("1 stream down", "cpu_s_per_gb", "CPU s/GB", "lower"),
    Metric("64B × 1", "p50_us", "p50 µs", "lower"),
    Metric("64B × 64", "cpu_us", "CPU µs each", "lower"),
    Metric("64B × 64", "p99_us", "p99 µs", "lower"),
    Metric("connect/close × 16", "cpu_us", "CPU µs each", "lower"),
    Metric("connect/close × 16", "per_second", "/s", "higher"),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The ratio of B to A, and what follows from it: `better`, `worse` or `cannot tell`, said of B."""

    metric: Metric
    ratio: Summary | None
    word: str


def judge(metric: Metric, pairs: list[tuple[float, float]], metrics: int) -> Verdict:
    """`pairs` are A's and B's values of each round; `metrics` is how many figures are judged together."""
    ratio = summarise([b / a for a, b in pairs if a > 0], 1 - 0.05 / metrics)
    if ratio is None or not ratio.confidence:
        return Verdict(metric, ratio, "cannot tell")
    grown = ratio.low > 1 and ratio.median >= 1 + LEAST_EFFECT
    shrunk = ratio.high < 1 and ratio.median <= 1 - LEAST_EFFECT
    if not grown and not shrunk:
        return Verdict(metric, ratio, "cannot tell")
    return Verdict(metric, ratio, "better" if grown == (metric.better == "higher") else "worse")


def subject_of(word: str) -> Subject:
    """What a word on the command line stands for. Raises `BenchError` if it stands for nothing."""
    known = {subject.name: subject for subject in all_subjects([])}
    if word == ".":
        tree = known["native-auto"]
        tree.name = "this tree"
        return tree
    if word in known:
        return known[word]
    if word.partition("=")[2]:
        return Custom.parse(word)
    if Path(word).is_file():
        return Configured(Path(word))
    commit = commit_of(word)
    if commit is None:
        raise BenchError(
            f"{word} is no subject, no NAME=COMMAND, no file with settings and no commit; subjects: "
            f"{', '.join([*known, *groups(list(known.values()))])}"
        )
    return Revision(f"commit {commit[:12]}", build(commit))


def compare(first: str, second: str, options: Options, console: Console) -> int:
    """Measure, print the verdicts, keep the result. 1 if B is worse in something, or a sample is not what it says."""
    must_be_writable(options.out)
    subjects = [subject_of(first), subject_of(second)]
    if subjects[0].name == subjects[1].name:
        subjects[1].name += " again"
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    seconds = options.seconds or (QUICK_SECONDS if options.quick else SECONDS)
    result = _measure(subjects, options, rounds, seconds, console)
    if not result.samples:
        return 1
    console.print(f"kept in {result.save(options.out)}", highlight=False, soft_wrap=True)
    verdicts = [_verdict(result, metric) for metric in METRICS]
    _print(result, verdicts, console)
    worse = any(verdict.word == "worse" for verdict in verdicts)
    return int(worse or result.status())


def _measure(subjects: list[Subject], options: Options, rounds: int, seconds: float, console: Console) -> Result:
    cases = list(dict.fromkeys(metric.case for metric in METRICS))
    planned_s = rounds * 2 * (_START_S + len(cases) * (seconds + _OVERHEAD_S))
    threads = options.threads[0] if len(options.threads) == 1 else 0
    stand = Stand(options.topology, threads, options.path, options.cores)
    with contextlib.ExitStack() as stack:
        stack.callback(stand.sweep)
        stack.enter_context(stand)
        result = Result(
            "compare", {"rounds": rounds, "seconds": seconds}, describe(()),
            {"name": stand.topology.name, **stand.topology.facts, **stand.cores.facts()}, quick=options.quick,
        )  # fmt: skip
        result.subjects = [info(subject, stand) for subject in subjects]
        for each in result.subjects:
            if each.unavailable:
                raise BenchError(f"{each.name}: {each.unavailable}")
        far = stack.enter_context(stand.far_end())
        plan = stack.enter_context(Plan(console, planned_s))
        try:
            for subject, each in zip(subjects, result.subjects, strict=True):
                plan.now(f"checking {subject.name}")
                check(subject, stand, each)
                if each.unavailable:
                    raise BenchError(f"{each.name}: {each.unavailable}")
            for number in range(rounds):
                for subject in subjects if number % 2 == 0 else reversed(subjects):
                    plan.now(f"round {number + 1} of {rounds}: {subject.name}")
                    _turn(stand, far, subject, number, seconds, result)
                    plan.did(planned_s / rounds / 2)
        except Interrupted:
            result.settings["interrupted"] = True
            plan.say("interrupted: what was measured so far is kept")
    result.finished = time.time()
    return result


def _turn(stand: Stand, far: FarEnd, subject: Subject, number: int, seconds: float, result: Result) -> None:
    """All loads through one subject; those of a round that did not finish are left out."""
    (faulty,) = (each.faults() for each in result.subjects if each.name == subject.name)
    samples = []
    with stand.subject(subject, far.port) as running:
        for case, perform in _LOADS.items():
            load, values = perform(stand, running, far, seconds)
            sample = load.sample(case, values)
            sample.subject, sample.round = subject.name, number
            sample.invalid += faulty
            samples.append(sample)
    result.samples += samples


_Figures = tuple[Load, dict[str, float | None]]


def _bulk(connections: int, *, up: bool) -> Callable[[Stand, Running, FarEnd, float], _Figures]:
    def perform(stand: Stand, running: Running, far: FarEnd, seconds: float) -> _Figures:
        load = bulk_load(stand, running, far, connections=connections, up=up, seconds=seconds)
        moved = sum(load.figures["streams"])
        return load, {
            "gbit_s": moved * 8 / load.figures["elapsed_s"] / _GIGA,
            "cpu_s_per_gb": load.spent.cpu_per(moved / _GIGA),
        }

    return perform


def _operations(load: Load) -> dict[str, float | None]:
    operations = load.figures["operations"]
    return {
        "per_second": operations / load.figures["elapsed_s"],
        "cpu_us": load.spent.cpu_per(operations, 1e6),
        **percentiles_us(load.figures["histogram"]),
    }


def _exchange(connections: int) -> Callable[[Stand, Running, FarEnd, float], _Figures]:
    def perform(stand: Stand, running: Running, far: FarEnd, seconds: float) -> _Figures:
        load = exchange_load(stand, running, far, connections=connections, up=64, down=64, seconds=seconds)
        return load, _operations(load)

    return perform


def _short(stand: Stand, running: Running, far: FarEnd, seconds: float) -> _Figures:
    load = short_load(stand, running, far, connections=16, seconds=seconds)
    return load, _operations(load)


_LOADS = {
    "8 streams up": _bulk(8, up=True),
    "1 stream down": _bulk(1, up=False),
    "64B × 1": _exchange(1),
    "64B × 64": _exchange(64),
    "connect/close × 16": _short,
}


def _verdict(result: Result, metric: Metric) -> Verdict:
    first, second = (subject.name for subject in result.subjects)
    found: dict[str, dict[int, Sample]] = {first: {}, second: {}}
    for sample in result.samples:
        if sample.case == metric.case and sample.values.get(metric.key) is not None:
            found[sample.subject][sample.round] = sample
    pairs = [
        (float(found[first][number].values[metric.key] or 0), float(found[second][number].values[metric.key] or 0))
        for number in sorted(found[first].keys() & found[second].keys())
    ]
    return judge(metric, pairs, len(METRICS))


def _print(result: Result, verdicts: list[Verdict], console: Console) -> None:
    first, second = (subject.name for subject in result.subjects)
    table = Table(title=f"{second}, compared with {first}", title_justify="left", header_style="bold")
    for title in ("load", "figure", first, second, "difference", "verdict"):
        table.add_column(title, justify="left" if title in ("load", "figure", "verdict") else "right", no_wrap=True)
    for verdict in verdicts:
        metric, ratio = verdict.metric, verdict.ratio
        medians = (result.figure(name, metric.case, metric.key) for name in (first, second))
        shown = ["n/a" if figure is None else f"{figure.median:,.4g}" for figure in medians]
        colour = {"better": "green", "worse": "red"}.get(verdict.word, "")
        table.add_row(metric.case, metric.title, *shown, _difference(ratio), verdict.word, style=colour)
    console.print(table)
    console.print(
        f"{result.precision}. Difference: median of the ratios within each round; the intervals hold all together with "
        f"95 %. Below {100 * LEAST_EFFECT:.0f} % nothing is called a difference.",
        highlight=False,
    )
    for text in [*faults(result), *ambience(result)]:
        console.print(text, highlight=False, markup=False)


def _difference(ratio: Summary | None) -> str:
    if ratio is None:
        return "n/a"
    middle, low, high = (f"{100 * (value - 1):+.1f}" for value in (ratio.median, ratio.low, ratio.high))
    begin, end = "[]" if ratio.confidence else "()"
    return f"{middle} % {begin}{low} – {high}{end}"
