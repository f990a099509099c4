"""Results kept and shown again: the JSON, the HTML page, the figures in README.md and docs/performance.md."""

from __future__ import annotations

import io
import json
import random
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from bench.columns import Column, cell
from bench.errors import BenchError
from bench.report import newest_kept, write_page, write_pages
from bench.report.markdown import BEGIN, END, readme_figures
from bench.report.markup import parts_of
from bench.report.page import render_page
from bench.report.plots import plots_of
from bench.results import AGAIN, RESULTS_DIR, Result, Sample, SubjectInfo, load_results, newest
from bench.statistics import summarise
from bench.tables import print_result

MACHINE = {
    "kernel": "6.1", "cpu": "Some <CPU>", "cores usable": "2", "python": "3.12.1", "commit": "abcdef123456",
}  # fmt: skip
SUBJECTS = [
    SubjectInfo("direct", "floor", "direct"),
    SubjectInfo("native-copy", "oinetd", "native-copy", 65536),
    SubjectInfo("native-copy@16K", "oinetd", "native-copy", 16384),
    SubjectInfo("haproxy", "peer", "haproxy", 65536, integrity="", half_close="no answer"),
    SubjectInfo("socat", "peer", "socat", unavailable="socat is not installed: apt install socat"),
]
CASES: dict[str, dict[str, tuple[str, ...]]] = {
    "throughput": {"P1": ("gbit_s", "cpu_s_per_gb"), "P8": ("gbit_s", "cpu_s_per_gb")},
    "latency": {
        f"64B × {count}": ("per_second", "cpu_us", "p50_us", "p90_us", "p99_us", "p99.9_us") for count in (1, 64)
    },
    "rate": {
        "connect/close × 16": ("per_second", "cpu_us", "p50_us", "p99_us"),
        "1000 idle": ("private_bytes_each", "kernel_bytes_each"),
    },
    "mixed": {
        "64B × 16 at 2000/s, alone": ("p50_us", "p99_us", "cpu_us"),
        "64B × 16 at 2000/s, beside 4 streams": ("p50_us", "p99_us", "beside_gbit_s"),
    },
    "failover": {
        f"{fault}, connect/close": ("during_errors", "during_p99_us", "during_p99.9_us")
        for fault in ("killed", "frozen")
    },
    "bandwidth": {
        f"100 × 1 MiB/s, {bound}": ("reached_percent", "cpu_percent", "cpu_s_per_gb")
        for bound in ("bandwidth", "no bound")
    },
    "connections": {
        "100 × 200 MiB": (
            "socket_us", "setup_us", "download_s", "download_mib_s", "run_s", "pss_mean_bytes", "pss_peak_bytes",
            "cpu_s_per_gb",
        ),
    },
    "udp": {
        "64B × 1, one under way each": ("datagrams_per_s", "cpu_s_per_million", "p50_us", "p99_us"),
        "64B × 1, 32 under way": ("datagrams_per_s", "cpu_s_per_million", "p50_us", "p99_us"),
        "64B × 100, 50000 offered a second": ("offered_per_s", "loss_percent", "cpu_s_per_million"),
    },
    "micro": {f"len(payload)={size}": ("ns_op", "cpu_ns_op", "allocs_op") for size in (1, 4096, 65536)},
}  # fmt: skip


def make(experiment: str, started: float = 1_790_000_000.0, *, quick: bool = False) -> Result:
    chance = random.Random(experiment)
    result = Result(experiment, {"rounds": 3}, MACHINE, {"name": "netns"}, SUBJECTS, started=started, quick=quick)
    for number in range(3):
        for subject in SUBJECTS[:-1]:
            result.samples.append(Sample(subject.name, "warm-up", number, {"gbit_s": 999.0}, warm_up=True))
            for case, keys in CASES[experiment].items():
                values: dict[str, float | None] = {key: chance.uniform(1, 50) for key in keys}
                if subject.family == "floor":
                    values |= dict.fromkeys(key for key in keys if "cpu" in key)
                detail = {"size": int(case.partition("=")[2])} if experiment == "micro" else {}
                result.samples.append(Sample(subject.name, case, number, values, detail=detail))
    return result


@pytest.fixture
def results() -> dict[str, Result]:
    return {experiment: make(experiment) for experiment in CASES}


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    result = make("throughput")
    path = result.save(tmp_path)
    assert path.name == "throughput-20260921-141320.json"
    assert Result.load(path) == result
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_warm_up_and_errors_are_kept_apart() -> None:
    result = make("throughput")
    result.samples.append(Sample("direct", "P1", 3, {"gbit_s": 1e9}, error="lost"))
    assert len(result.values("direct", "P1", "gbit_s")) == 3
    assert max(result.values("direct", "P1", "gbit_s")) <= 50
    assert result.cases() == ["P1", "P8"]


def test_the_newest_complete_run_goes_before_all(tmp_path: Path) -> None:
    make("rate", 1_790_000_000.0).save(tmp_path)
    make("rate", 1_790_000_999.0, quick=True).save(tmp_path)
    interrupted = make("rate", 1_790_001_999.0)
    interrupted.settings["interrupted"] = True
    interrupted.save(tmp_path)
    chosen = newest(load_results([tmp_path]))["rate"]
    assert (chosen.quick, chosen.interrupted) == (True, False)
    assert chosen.precision == "3 rounds, a quick run"
    assert interrupted.precision == "2 rounds, a full run, INTERRUPTED"
    assert (chosen.status(), interrupted.status()) == (0, 1)


def test_a_sample_that_is_not_what_it_says_shows_in_status_and_table() -> None:
    result = make("rate")
    result.samples[-1].invalid = ["3 bytes were lost"]
    result.samples[-2].ambient = ["busy: others used 1.50 of 2 cores"]
    assert result.status() == 1
    said = io.StringIO()
    print_result(result, Console(file=said, width=200))
    assert "INVALID haproxy, 1000 idle: 3 bytes were lost" in said.getvalue()
    assert "haproxy½ ✗" in said.getvalue()
    assert "busy: others used 1.50 of 2 cores" in said.getvalue()


@pytest.mark.parametrize("width", [40, 80, 160])
def test_names_are_never_cut(width: int) -> None:
    result = make("connections")
    said = io.StringIO()
    print_result(result, Console(file=said, width=width))
    for name in ("native-copy@16K", "haproxy½"):
        assert name in said.getvalue()


def test_an_interval_is_shown_only_where_there_is_one() -> None:
    column = Column("x", "x", "s", 1)
    shown = [cell(summarise([float(value) for value in range(1, count + 1)]), column) for count in (1, 3, 6)]
    assert shown == ["1.0 ~", "2.0 (1.0–3.0)", "3.5 [1.0–6.0]"]
    assert cell(summarise([-5.0] * 6), Column("x", "x", "B", 1, noise=100.0)) == "below 100.0"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 99}', '{"format": 1, "experiment": "x"}'])
def test_what_is_not_a_result_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(BenchError, match=r"result\.json"):
        load_results([path])


class Links(HTMLParser):
    """Everything that a page loads, and the places within it that it points to."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.targets: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag in ("script", "img", "link", "iframe"):
            self.loaded.append(tag)
        if tag == "a":
            self.targets.append(found.get("href") or "")
        if "id" in found and tag == "section":
            self.ids.add(f"#{found['id']}")


def test_the_page_is_complete_in_itself(results: dict[str, Result], tmp_path: Path) -> None:
    path = tmp_path / "out" / "report.html"
    write_page(results, path)
    page = path.read_text()
    links = Links()
    links.feed(page)
    assert links.loaded == []
    assert set(links.targets) == links.ids
    assert "prefers-color-scheme: dark" in page
    assert "Some &lt;CPU&gt;" in page
    assert "native-copy@16K" in page
    assert "socat was skipped: socat is not installed" in page
    assert "haproxy does not pass a half-close on" in page
    assert ">n/a<" in page


def test_a_page_of_one_experiment(results: dict[str, Result]) -> None:
    page = render_page({"micro": results["micro"]})
    assert "What one exchange costs" in page
    assert "ns of CPU an exchange" in page


def test_plots_take_the_colour_of_the_text_around_them(results: dict[str, Result]) -> None:
    names = [plot.name for result in results.values() for plot in plots_of(result)]
    assert {"throughput-p1", "buffers", "latency", "rate", "memory", "connections", "micro"} <= set(names)
    assert len(names) == len(set(names))
    for result in results.values():
        for plot in plots_of(result):
            assert plot.svg.startswith("<svg")
            assert "currentColor" in plot.svg
            assert "#000000" not in plot.svg


def pages_in(root: Path) -> tuple[Path, Path]:
    """README.md and docs/performance.md with old figures between their markers."""
    pages = root / "README.md", root / "docs" / "performance.md"
    pages[1].parent.mkdir()
    for page in pages:
        page.write_text(f"# Title\n\n{BEGIN}\nstale\n{END}\n\nThe rest.\n")
    return pages


def test_the_pages_are_rewritten_between_their_markers(results: dict[str, Result], tmp_path: Path) -> None:
    pages = pages_in(tmp_path)
    assert set(write_pages(results, tmp_path, check=True)) >= set(pages)
    assert all("stale" in page.read_text() for page in pages)
    changed = write_pages(results, tmp_path)
    names = ("headline", "throughput-p1", "buffers", "latency", "rate", "memory", "micro")
    assert set(changed) == {*pages, *(tmp_path / "docs" / "bench" / f"{name}.svg" for name in names)}
    for page in pages:
        text = page.read_text()
        assert text.startswith(f"# Title\n\n{BEGIN}\n")
        assert text.endswith(f"{END}\n\nThe rest.\n")
        assert "stale" not in text
    text = pages[1].read_text()
    assert "| **native-copy** |" in text
    assert "16K" in text
    for name in names:
        assert f"](bench/{name}.svg)" in text
    assert write_pages(results, tmp_path) == []
    plot = tmp_path / "docs" / "bench" / "rate.svg"
    plot.unlink()
    assert write_pages(results, tmp_path, check=True) == [plot]


@pytest.mark.parametrize("name", ["README.md", "docs/performance.md"])
def test_a_page_without_markers_is_left_alone(results: dict[str, Result], tmp_path: Path, name: str) -> None:
    pages = pages_in(tmp_path)
    (tmp_path / name).write_text("# Title\n")
    before = [page.read_text() for page in pages]
    with pytest.raises(BenchError, match="bench:begin"):
        write_pages(results, tmp_path)
    assert [page.read_text() for page in pages] == before
    (tmp_path / name).unlink()
    with pytest.raises(BenchError, match="does not exist"):
        write_pages(results, tmp_path)


def test_the_figures_of_the_readme() -> None:
    throughput, udp = make("throughput"), make("udp")
    throughput.subjects = [
        SubjectInfo("native-auto×1", "oinetd", "native-auto", 65536),
        SubjectInfo("native-auto×2", "oinetd", "native-auto", 65536),
        SubjectInfo("native-auto@16K×2", "oinetd", "native-auto", 16384),
        SubjectInfo("haproxy", "peer", "haproxy"),
    ]
    costs = {"native-auto×1": 0.1, "native-auto×2": 0.2, "native-auto@16K×2": 0.3, "haproxy": 0.4}
    throughput.samples = [Sample(name, "P1", 0, {"cpu_s_per_gb": cost}) for name, cost in costs.items()]
    udp.subjects = [SubjectInfo("oinetd-native", "oinetd", "oinetd-native"), SubjectInfo("nginx", "peer", "nginx")]
    udp.samples = [Sample("oinetd-native", "64B × 1, 32 under way", 0, {"cpu_s_per_million": 3.0})]
    udp.samples += [Sample("nginx", "64B × 1, 32 under way", 0, {"cpu_s_per_million": 6.0})]
    assert readme_figures({"throughput": throughput, "udp": udp}).splitlines()[2:] == [
        "|  | **oinetd** | HAProxy | nginx |",
        "|---|---:|---:|---:|",
        "| 1 GB in one stream: CPU s | 0.200 | 0.400 | n/a |",
        "| a million datagrams: CPU s | 3.00 | n/a | 6.00 |",
    ]


def test_the_pages_have_the_figures_of_the_stored_results() -> None:
    root = Path(__file__).parents[2]
    again = RESULTS_DIR / AGAIN
    second = newest(load_results([again])) if again.is_dir() else None
    assert write_pages(newest(load_results([RESULTS_DIR])), root, again=second, check=True) == []


def test_the_guide_tells_buffers_and_threads(tmp_path: Path) -> None:
    result = make("throughput")
    result.subjects = [
        SubjectInfo(f"{name}×{threads}", "oinetd", "native-copy", size)
        for name, size in (("native-copy", 65536), ("native-copy@16K", 16384))
        for threads in (1, 2)
    ]
    costs = {"native-copy×1": 0.2, "native-copy×2": 0.3, "native-copy@16K×1": 0.4, "native-copy@16K×2": 0.5}
    result.samples = [Sample(name, "P1", 0, {"gbit_s": 1.0, "cpu_s_per_gb": cost}) for name, cost in costs.items()]
    pages = pages_in(tmp_path)
    write_pages({"throughput": result}, tmp_path)
    assert [line for line in pages[1].read_text().splitlines() if line.startswith("- ")] == [
        "- Of oinetd's own modes `native-copy×1` costs least for bulk: 0.200 CPU s/GB.",
        "- `native-copy` with 2 threads, CPU s/GB by `buffersize`: 16K 0.500, 64K 0.300.",
        "- `native-copy`, CPU s/GB by `threads`: 1 0.200, 2 0.300.",
    ]


def kept_runs(root: Path) -> None:
    """A run of the lab and one of the capture, as they are kept, and one of either that is older."""
    for stamp, started in (("lab-1", 1.0), ("lab-2", 2.0)):
        directory = root / stamp
        directory.mkdir()
        meta = {
            "target": f"relay of {stamp}", "machine": MACHINE, "machine_line": "a machine", "seconds": 1.0,
            "topology": {"name": "netns"}, "started": started, "windows": {"S1": "a small file"}, "missing": ["None"],
        }  # fmt: skip
        (directory / "figures.json").write_text(json.dumps({"meta": meta, "windows": {"S1": {}}}))
    directory = root / "capture-1"
    directory.mkdir()
    facts = {
        "started": 3.0, "machine": MACHINE, "subject": "native-auto", "topology": {"name": "netns"},
        "settings": {"seconds": 1.0, "rounds": 1}, "verdicts": ["the ring missed 0.0000 %"],
    }  # fmt: skip
    (directory / "capture.json").write_text(json.dumps(facts))
    (directory / "capture.svg").write_text('<?xml version="1.0"?><svg class="kept"></svg>')
    (root / "lab-3").mkdir()
    (root / "lab-3" / "figures.json").write_text("{")


def test_the_page_has_the_newest_runs_of_lab_and_capture(tmp_path: Path) -> None:
    kept_runs(tmp_path)
    page = render_page({}, newest_kept([tmp_path]))
    assert "relay of lab-2" in page
    assert "relay of lab-1" not in page
    assert "the ring missed 0.0000 %" in page
    assert '<svg class="kept">' in page
    assert "<?xml" not in page
    assert page.count("The machine of this section") == 2


def test_the_labs_markdown_becomes_html() -> None:
    text = (
        "# Title\n\n## Summary\n\n- `a<b` is **great**\n- two\n\n"
        "## S1: x\n\n### Counters\n\n| a | b |\n|---|--:|\n| c | 1 |\n\nEnd.\n"
    )
    (summary, first), (title, second) = parts_of(text)
    assert (summary, title) == ("Summary", "S1: x")
    assert first == '<ul class="notes"><li><code>a&lt;b</code> is <b>great</b></li><li>two</li></ul>'
    assert "<h4>Counters</h4>" in second
    assert "<th>a</th><th>b</th>" in second
    assert "<tr><td>c</td><td>1</td></tr>" in second
    assert second.count("<tr>") == 2


def test_flame_graphs_and_counters_are_in_the_page() -> None:
    result = make("throughput")
    result.profiles = {
        "flamegraph": {
            "haproxy": {"file": "x.svg", "samples": 3, "softirq": 0.4, "stacks": ["main;recv 2", "main 1"]},
        },
        "perf": {"haproxy": {"gigabytes": 2.0, "counts": {"cycles": None, "context-switches": 10.0}}},
        "strace": {
            "haproxy": {"gigabytes": 2.0, "calls": [{"name": "splice", "calls": 8, "errors": 1, "seconds": 1.0}]},
        },
        "netperf": {"haproxy": {"TCP_RR": {"per_second": 1e4, "p50_us": 90.0, "p90_us": 95.0, "p99_us": 99.0}}},
    }  # fmt: skip
    page = render_page({"throughput": result})
    assert "Flame graph of haproxy" in page
    assert "recv: 2 samples, 66.7 %" in page
    for text in ("perf stat", "context-switches", "System calls of haproxy", "splice", "netperf", "TCP_RR"):
        assert text in page
