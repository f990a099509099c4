"""Figures from a run's raw files: a real run, its recordings cut short, counted again here by plainer means."""

from __future__ import annotations

import copy
import gzip
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.lab.collection import derive
from bench.lab.report import number, render
from bench.lab.snapshot import read_threads

RUN = Path(__file__).parent / "samples" / "run"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(RUN, tmp_path / "run"))


def text(path: str) -> str:
    return gzip.decompress((RUN / path).read_bytes()).decode()


def figures() -> dict[str, Any]:
    return derive(RUN)


def test_counters_are_those_that_perf_wrote() -> None:
    told = figures()["windows"]["S2"]["counters"]
    lines = [line.split(",") for line in (RUN / "S2/1-counters/service.csv").read_text().splitlines()]
    counts = {fields[2]: fields[0] for fields in lines if len(fields) > 2}
    assert told["service"]["cycles"]["count"] is None
    assert counts["cycles"] == "<not supported>"
    for event in ("syscalls:sys_enter_splice", "raw_syscalls:sys_enter", "context-switches", "task-clock"):
        assert told["service"][event]["count"] == float(counts[event]) > 0
    # It never called these, and that is 0 and not unknown.
    assert told["service"]["syscalls:sys_enter_pipe2"]["count"] == 0


def test_rates_are_against_what_went_by() -> None:
    told = figures()["windows"]["S2"]["counters"]
    begin, end = json.loads((RUN / "S2/1-counters/times.json").read_text())["service.csv"]
    seconds = (end - begin) / 1e9
    each = told["service"]["syscalls:sys_enter_splice"]
    assert each["per_s"] == pytest.approx(each["count"] / seconds)
    numbers = [
        (RUN / f"S2/1-counters/{side}/status").read_text().split("\n")[2].split() for side in ("before", "after")
    ]
    requests = int(numbers[1][2]) - int(numbers[0][2]) - 1
    assert told["window"]["requests"] == requests
    assert each["per_request"] == pytest.approx(each["per_s"] * told["window"]["seconds"] / requests)

    def sent(side: str) -> int:
        table = (RUN / f"S2/1-counters/{side}/netdev").read_text()
        return sum(int(line.split()[9]) for line in table.splitlines() if "to-" in line)

    assert told["window"]["gigabytes"] == pytest.approx((sent("after") - sent("before")) / 1e9)


def test_without_load_there_is_nothing_to_divide_by() -> None:
    idle = figures()["windows"]["idle"]["counters"]["service"]["raw_syscalls:sys_enter"]
    assert idle["per_request"] is None


def test_samples_are_counted_once_each() -> None:
    told = figures()["windows"]["S2"]["stacks"]
    pids = json.loads((RUN / "S2/2-stacks/pids.json").read_text())
    stacks = [part.splitlines() for part in text("S2/2-stacks/stacks.txt.gz").split("\n\n") if part.strip()]
    own = [stack for stack in stacks if any(f" {pid}/" in stack[0] for pid in pids)]
    assert told["samples"] == len(stacks) > 40
    assert told["service"]["samples"] == len(own) > 10
    assert told["service"]["of_all"] == len(own) / len(stacks)
    in_kernel = [stack for stack in own if "[kernel.kallsyms]" in stack[1]]
    assert told["service"]["kernel"] == pytest.approx(len(in_kernel) / len(own))
    innermost = Counter(re.sub(r"^\s*[0-9a-f]+ | \(.*$", "", stack[1]) for stack in own)
    for name, share in told["functions"].items():
        assert share == innermost[name] / len(own)
    assert sum(told["purposes"].values()) == pytest.approx(1)
    assert sum(told["system"].values()) == pytest.approx(1)


def test_calls_are_pairs() -> None:
    told = figures()["windows"]["S2"]["stages"]["syscalls"]["calls"]
    entered: dict[str, tuple[str, float]] = {}
    durations: dict[str, list[float]] = {}
    for line in text("S2/3-stages/events/calls.txt.gz").splitlines():
        found = re.search(r"/(\d+)\s+\[\d+\]\s+([\d.]+):\s+syscalls:sys_(enter|exit)_(\w+):", line)
        assert found is not None
        tid, moment, side, call = found.groups()
        if side == "enter":
            entered[tid] = (call, float(moment))
        elif tid in entered:
            durations.setdefault(call, []).append((float(moment) - entered.pop(tid)[1]) * 1e6)
    assert told.keys() == durations.keys()
    assert len(told) >= 3
    for call, values in durations.items():
        assert told[call]["count"] == len(values)
        assert told[call]["max"] == pytest.approx(max(values), rel=1e-2, abs=0.01)
        assert told[call]["total_us"] == pytest.approx(sum(values), rel=1e-2)
    assert told["epoll_wait"]["waits"]
    assert not told["splice"]["waits"]


def test_packets() -> None:
    told = figures()["windows"]["S2"]["stages"]
    content = text("S2/3-stages/events/packets.txt.gz")
    queued = [int(length) for length in re.findall(r"net:net_dev_queue: .* len=(\d+)", content)]
    assert told["length"]["net:net_dev_queue"]["count"] == len(queued) > 10
    assert told["length"]["net:net_dev_queue"]["mean"] == pytest.approx(sum(queued) / len(queued))
    assert told["packets_per_poll"]["count"] == len(re.findall(r"napi:napi_poll: .* work \d+", content))
    assert 0 < told["queue_to_device_us"]["p50"] < 1000


def test_switches() -> None:
    told = figures()["windows"]["S2"]["scheduling"]
    tids = read_threads((RUN / "S2/4-scheduling/after/threads").read_text()).keys()
    left = re.findall(r"prev_pid=(\d+) prev_prio=\d+ prev_state=(\S+)", text("S2/4-scheduling/switches.txt.gz"))
    states = [state for tid, state in left if tid in tids]
    assert told["voluntary"]["count"] == sum(state == "S" for state in states) > 10
    assert told["involuntary"]["count"] == sum(state.startswith("R") for state in states)
    assert told["delay_us"]["count"] > 10
    assert 0 < told["delay_us"]["p50"] <= told["delay_us"]["p99"] <= told["delay_us"]["max"]


def test_the_timed_load() -> None:
    told = figures()["windows"]["S2"]["timed"]
    said = (RUN / "S2/0-timed/wrk.txt").read_text()
    assert f"{told['requests_per_s']:.2f}" in said
    assert f"{told['requests']} requests in" in said
    used = [
        sum(thread.run_ns for thread in read_threads((RUN / f"S2/0-timed/{side}/threads").read_text()).values())
        for side in ("before", "after")
    ]
    assert told["cpu_s"] == pytest.approx((used[1] - used[0]) / 1e9)


def leaves(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner)
    elif isinstance(value, (int, float)):
        yield value


NUMBER = re.compile(r"(?<![\w.])\d[\d ]*(?:\.\d+)?(?![\w.])")


def test_every_number_of_the_tables_is_a_figure() -> None:
    told = figures()
    stacks = told["windows"]["S2"]["stacks"]
    values = list(leaves(told["windows"]))
    values += [share * stacks["cpu_s"] * 1e3 / stacks["gigabytes"] for share in stacks["purposes"].values()]
    values += [share * stacks["cpu_s"] * 1e6 / stacks["requests"] for share in stacks["purposes"].values()]
    known = {number(value, digits, scale) for value in values for digits in (0, 1, 2, 3) for scale in (1, 100, 1e-3)}
    cells = [
        cell.strip() for line in render(told).splitlines() if line.startswith("| ") for cell in line.split("|")[2:-1]
    ]
    numbers = [cell.removesuffix(" %") for cell in cells if NUMBER.fullmatch(cell.removesuffix(" %"))]
    assert len(numbers) > 200
    assert [each for each in numbers if each not in known] == []


def test_the_report_is_made_from_the_figures_alone(run: Path) -> None:
    told = derive(run)
    kept = copy.deepcopy(told)
    report = render(told)
    assert told == kept
    assert render(json.loads(json.dumps(told))) == report


def test_no_figure_is_there_without_its_file(run: Path) -> None:
    # Whether anybody counts requests is told by the file being there; when stacks were sampled enters no figure.
    beside = {"status", "wrk-observed.txt"}
    for path in sorted((run / "S2").rglob("*")):
        if path.is_dir() or path.name in beside or path.match("2-stacks/times.json"):
            continue
        hidden = path.rename(path.with_suffix(".hidden"))
        with pytest.raises((OSError, KeyError)):
            derive(run)
        hidden.rename(path)


def test_another_count_in_a_file_is_another_figure(run: Path) -> None:
    path = run / "S2/1-counters/service.csv"
    lines = path.read_text().splitlines()
    changed = [f"123456789,{line.partition(',')[2]}" if "sys_enter_splice" in line else line for line in lines]
    path.write_text("\n".join(changed) + "\n")
    assert derive(run)["windows"]["S2"]["counters"]["service"]["syscalls:sys_enter_splice"]["count"] == 123456789
    assert render(derive(run)) != render(figures())


def test_what_the_machine_cannot_count_is_not_zero() -> None:
    report = render(figures())
    assert re.search(r"\| cycles +\| +n/a \| +n/a \| +n/a \|", report)
    assert "hardware counters" in report
