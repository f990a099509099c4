"""Comparing two subjects: what is judged, and what a word on the command line stands for."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.compare import METRICS, Metric, judge, subject_of
from bench.errors import BenchError
from bench.histogram import bucket_of
from bench.identity import RunName
from bench.report.charts import all_plots, headline
from bench.report.drawing import Plot
from bench.results import Result, Sample, SubjectInfo
from bench.subjects import Route, Setup
from bench.subjects.failover import failover_subjects
from bench.subjects.revision import Configured, commit_of
from bench.topology import Loopback

COST, RATE = Metric("c", "k", "t", "lower"), Metric("c", "k", "t", "higher")


@pytest.mark.parametrize(
    ("metric", "ratio", "word"),
    [
        (COST, 1.2, "worse"),
        (COST, 0.8, "better"),
        (RATE, 1.2, "better"),
        (RATE, 0.8, "worse"),
        (COST, 1.01, "cannot tell"),
    ],
)
def test_a_ratio_that_holds_in_every_round_is_judged(metric: Metric, ratio: float, word: str) -> None:
    pairs = [(value, value * ratio) for value in (1.0, 2.0, 1.5, 1.1, 3.0, 0.9, 1.0, 1.2, 1.4, 2.2, 1.3, 1.6)]
    verdict = judge(metric, pairs, len(METRICS))
    assert verdict.word == word
    assert verdict.ratio is not None
    assert verdict.ratio.confidence > 0.99


def test_few_rounds_and_mixed_ones_tell_nothing() -> None:
    assert judge(COST, [(1.0, 2.0)] * 6, len(METRICS)).word == "cannot tell"
    assert judge(COST, [(1.0, 2.0), (2.0, 1.0)] * 8, len(METRICS)).word == "cannot tell"
    assert judge(COST, [], len(METRICS)).ratio is None


def test_words_stand_for_subjects(tmp_path: Path) -> None:
    settings = tmp_path / "mine.conf"
    settings.write_text("engine python\nbuffersize 8K\n")
    assert subject_of("haproxy").name == "haproxy"
    assert subject_of("x=relay {listen} {connect}").name == "x"
    assert subject_of(".").name == "this tree"
    configured = subject_of(str(settings))
    assert isinstance(configured, Configured)
    setup = Setup(Loopback(RunName.new()), (Route("127.0.0.1", 1, "127.0.0.1", 2),), tmp_path)
    assert configured.configuration(setup) == "engine python\nbuffersize 8K\n127.0.0.1 1 127.0.0.1 2\n"
    with pytest.raises(BenchError, match="is no subject"):
        subject_of("no such thing")
    assert commit_of("no such thing") is None


def test_groups_of_servers_are_configured_alike(tmp_path: Path) -> None:
    routes = tuple(Route("127.0.0.1", 10 + port, "127.0.0.1", port) for port in range(1, 5))
    setup = Setup(Loopback(RunName.new()), routes, tmp_path)
    for subject in failover_subjects():
        assert subject.grouped
        subject.commands(setup)
    for name in ("oinetd.conf", "haproxy.cfg", "nginx.conf"):
        text = (tmp_path / name).read_text()
        assert text.count("127.0.0.1:2") + text.count("127.0.0.1 2\n") == 1
        assert "127.0.0.1:12" not in text


def drawn() -> list[Plot]:
    machine = {"kernel": "6", "cpu": "x", "cores usable": "2", "python": "3", "commit": "a"}
    subjects = [SubjectInfo("native-auto", "oinetd", "native-auto"), SubjectInfo("haproxy", "peer", "haproxy")]
    latency = Result("latency", {"rounds": 1}, machine, {"name": "netns"}, subjects)
    bulk = Result("throughput", {"rounds": 1}, machine, {"name": "netns"}, subjects)
    for each in subjects:
        for rate in (1000, 5000):
            values: dict[str, float | None] = {"offered_per_s": rate, "p99_us": rate / 10.0}
            latency.samples.append(Sample(each.name, f"64B × 64, offered {rate}/s", 0, values))
        histogram = [[bucket_of(value), 10] for value in (1000, 20_000, 300_000)]
        latency.samples.append(Sample(each.name, "64B × 1", 0, {"p50_us": 1.0}, detail={"histogram": histogram}))
        bulk.samples.append(Sample(each.name, "P8", 0, {"gbit_s": 10.0, "cpu_s_per_gb": 0.1}))
    plot = headline({"throughput": bulk})
    assert plot is not None
    return [*all_plots(latency), plot]


def test_curves_and_the_headline_are_drawn() -> None:
    plots = {plot.name: plot for plot in drawn()}
    assert {"latency-curves", "latency-load", "headline"} <= plots.keys()
    for name in ("haproxy", "native-auto"):  # two points on one spot, and a name for each
        assert f">{name}</text>" in plots["headline"].svg
    assert headline({}) is None
