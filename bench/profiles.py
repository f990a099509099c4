"""What runs apart have shown, as tables: for the terminal and for the pages alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bench.results import Result
from bench.syscalls import WAITING

__all__ = ["Profile", "profiles_of", "softirq_profile"]

SYSCALL_ROWS = 12
_RATIOS = ("IPC", "branch-miss ratio")


@dataclass(frozen=True, slots=True)
class Profile:
    """A table; the first column is text, as far as `texts` are."""

    title: str
    head: list[str]
    rows: list[list[str]]
    texts: int = 1
    note: str = ""


def softirq_profile(result: Result) -> Profile | None:
    figures = result.profiles.get("softirq")
    return _softirq(figures) if figures else None


def profiles_of(result: Result) -> list[Profile]:
    profiles = result.profiles
    softirq = softirq_profile(result)
    return [
        *([softirq] if softirq else []),
        *(_counters(figures) for figures in _filled(profiles, "perf")),
        *(_syscalls(subject, figures) for subject, figures in profiles.get("strace", {}).items()),
        *(_netperf(figures) for figures in _filled(profiles, "netperf")),
        *(_flamegraphs(figures) for figures in _filled(profiles, "flamegraph")),
    ]


def _filled(profiles: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    if figures := profiles.get(name):
        yield figures


def _softirq(figures: dict[str, Any]) -> Profile:
    """Both figures whatever the kernel charges: processor time with and without soft interrupts."""
    first = next(iter(figures.values()))
    scale, digits = (1.0, 3) if first["unit"] == "s/GB" else (1e6, 1)

    def each(found: dict[str, Any], seconds: float | None) -> str:
        return "n/a" if seconds is None or not found["units"] else f"{seconds * scale / found['units']:,.{digits}f}"

    rows = []
    for subject, found in figures.items():
        own, cpu = found["own_s"], found["cpu_s"]
        charged = None if cpu is None or (found["apart"] and own is None) else cpu + (own if found["apart"] else 0.0)
        plain = None if cpu is None or (not found["apart"] and own is None) else cpu - (0.0 if found["apart"] else own)
        share = "n/a" if not charged or own is None else f"{100 * own / charged:.0f} %"
        rows.append([
            subject, each(found, charged), each(found, plain), share, each(found, None if cpu is None else own),
            each(found, found["all_s"]),
        ])  # fmt: skip
    accounts = "keeps them out of the processor time of a task" if first["apart"] else (
        "charges them to the task that they interrupt"
    )  # fmt: skip
    note = f"This kernel {accounts}. Measured by the tracepoints of entry and exit, which lengthen them a little."
    if first["without"]:
        note = f"This kernel {accounts}. No tracepoints: {first['without']}; the sum of all cores is from /proc/stat."
    head = [
        "subject", f"CPU with them, {first['unit']}", "CPU without", "share", "on top of its tasks", "on all cores",
    ]  # fmt: skip
    return Profile(f"Soft interrupts, {first['case']} (a run apart)", head, rows, note=note)


def _counters(figures: dict[str, Any]) -> Profile:
    names = list(dict.fromkeys(name for each in figures.values() for name in each["counts"]))
    rows = [[subject, *(_count(each, name) for name in names)] for subject, each in figures.items()]
    note = "n/a: the processor, or the hypervisor, gives no such counter."
    return Profile("Counters for each GB (perf stat, a run apart)", ["subject", *names], rows, note=note)


def _count(figures: dict[str, Any], name: str) -> str:
    value = figures["counts"].get(name)
    if value is None:
        return "n/a"
    return f"{value:.3f}" if name in _RATIOS else f"{value / figures['gigabytes']:,.0f}"


def _syscalls(subject: str, figures: dict[str, Any]) -> Profile:
    """Time in waiting calls is sleep: their share is not shown."""
    working = sum(row["seconds"] for row in figures["calls"] if row["name"] not in WAITING) or 1.0
    rows = [
        [
            row["name"], f"{row['calls']:,}", f"{row['calls'] / figures['gigabytes']:,.0f}", f"{row['errors']:,}",
            "waits" if row["name"] in WAITING else f"{100 * row['seconds'] / working:.1f} %",
        ]
        for row in figures["calls"][:SYSCALL_ROWS]
    ]  # fmt: skip
    head = ["call", "calls", "for each GB", "errors", "share of working time"]
    return Profile(f"System calls of {subject} (strace, a run apart)", head, rows)


def _netperf(figures: dict[str, Any]) -> Profile:
    rows = [
        [subject, test, *(f"{values[key]:,.1f}" for key in ("per_second", "p50_us", "p90_us", "p99_us"))]
        for subject, tests in figures.items()
        for test, values in tests.items()
    ]
    return Profile("netperf (a run apart)", ["subject", "test", "/s", "p50 µs", "p90 µs", "p99 µs"], rows, texts=2)


def _flamegraphs(figures: dict[str, Any]) -> Profile:
    rows = [
        [subject, each["file"], f"{each['samples']:,}", _share(each.get("softirq"))]
        for subject, each in figures.items()
    ]
    head = ["subject", "flame graph, beside the result", "samples", "of them in soft interrupts"]
    return Profile("Where processor time goes (perf record, a run apart)", head, rows, texts=2)


def _share(value: float | None) -> str:
    return "n/a" if value is None else f"{100 * value:.0f} %"
