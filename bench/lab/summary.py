"""The figures of a lab run in sentences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench.lab.layer import Figures

__all__ = ["summary"]

LONG_DELAY_US = 1000.0
"""A thread that waits longer than this for a processor is late by more than a small exchange takes."""


def summary(figures: Figures) -> list[str]:
    """What stands out, window by window, and then from one window to the other."""
    meta, windows = figures["meta"], figures["windows"]
    sentences: list[str] = []
    for name, report in windows.items():
        if name != "idle":
            found = _window(report, windows.get("idle", {}), meta["target"])
            sentences += [f"**{name}** {sentence}" for sentence in found]
    sentences += _comparison(windows)
    return sentences


def _window(report: Figures, idle: Figures, target: str) -> Iterator[str]:
    if "timed" in report:
        yield _speed(report["timed"], target)
    if "stacks" in report and report["stacks"]["service"]["samples"]:
        yield _time(report["stacks"], idle.get("stacks"), target)
    if "counters" in report:
        yield from _calls(report["counters"], idle.get("counters"), target)
    if "stages" in report:
        yield from _stages(report["stages"])
    if "scheduling" in report:
        yield _scheduling(report["scheduling"], target)


def _speed(run: Figures, target: str) -> str:
    text = (
        f"{run['requests_per_s']:,.0f} requests/s, {run['gbit_s']:.2f} Gbit/s; half of the answers took no more than "
        f"{run['p50_us'] / 1e3:,.2f} ms, 99.9 % no more than {run['p99_9_us'] / 1e3:,.2f} ms."
    )
    if run["cpu_s_per_gb"] is not None:
        text += f" {target} used {run['cpu_s_per_gb']:.3f} s/GB of processor time"
        text += f", {run['cpu_us_per_request']:,.1f} µs a request."
    return text + (f" {run['errors']} errors." if run["errors"] else "")


def _time(report: Figures, idle: Figures | None, target: str) -> str:
    service = report["service"]
    purposes = list(report["purposes"].items())
    most = ", ".join(f"{name} ({100 * value:.0f} %)" for name, value in purposes[:3])
    text = f"{target} spent {100 * service['kernel']:.0f} % of its time in the kernel; most went to: {most}."
    text += f" The machine was idle for {100 * report['system']['idle']:.0f} % of the time"
    if idle and idle["system"]["idle"] is not None:
        text += f" (without load {100 * idle['system']['idle']:.0f} %)"
    if service["of_busy"] is not None:
        text += f"; {target} had {100 * service['of_busy']:.0f} % of what was used"
    return text + "."


def _calls(report: Figures, idle: Figures | None, target: str) -> Iterator[str]:
    service = report["service"]
    total = service["raw_syscalls:sys_enter"]
    calls = {name: each for name, each in service.items() if name.startswith("syscalls:") and each["count"]}
    ordered = sorted(calls.items(), key=lambda item: -item[1]["count"])[:3]
    if total["count"]:
        most = ", ".join(
            f"{name.removeprefix('syscalls:sys_enter_')} {100 * each['count'] / total['count']:.0f} %"
            for name, each in ordered
        )
        yield f"{target} made {_rate(total)}{f': {most}' if most else ''}."
    if idle:
        loaded, rest = report["system"]["context-switches"]["per_s"], idle["system"]["context-switches"]["per_s"]
        if loaded is not None and rest:
            yield f"Context switches of the machine: {loaded:,.0f}/s, without load {rest:,.0f}/s."
    if report["system"]["cycles"]["count"] is None:
        yield "This machine has no hardware counters: cycles and instructions are n/a."


def _rate(calls: Figures) -> str:
    if calls["per_request"] is not None:
        return f"{calls['per_request']:.1f} system calls a request"
    return f"{calls['per_s']:,.0f} system calls a second"


def _stages(report: Figures) -> Iterator[str]:
    again = report["counts"]["tcp:tcp_retransmit_skb"]
    if again["count"] is not None:
        yield "Nothing was sent again." if not again["count"] else f"{again['count']:,.0f} segments were sent again."
    queued, received = report["length"]["net:net_dev_queue"], report["packets_per_poll"]
    if queued["mean"] is not None:
        text = f"A packet queued for a device held {queued['mean']:,.0f} bytes on average"
        if received["mean"] is not None:
            text += f", and a poll took {received['mean']:.1f} of them"
        yield text + "."


def _scheduling(report: Figures, target: str) -> str:
    voluntary, involuntary = report["voluntary"]["count"], report["involuntary"]["count"]
    text = f"{target} left the processor {voluntary + involuntary:,} times"
    if voluntary + involuntary:
        text += f", {100 * involuntary / (voluntary + involuntary):.0f} % of them because another was put in its place"
    delay = report["delay_us"]
    if delay["p50"] is not None:
        text += f"; once ready, it waited {delay['p50']:,.0f} µs (median; p99 {delay['p99']:,.0f} µs) for a processor"
        if delay["p99"] > LONG_DELAY_US:
            text += ", which is long: processors are short"
    return text + "."


def _comparison(windows: dict[str, Any]) -> list[str]:
    runs = [(name, report["timed"]) for name, report in windows.items() if "timed" in report]
    if len(runs) < 2:
        return []
    (first, small), (last, large) = runs[0], runs[-1]
    if not small["cpu_s_per_gb"] or not large["cpu_s_per_gb"]:
        return []
    return [
        f"A GB costs {small['cpu_s_per_gb']:.3f} s in {first} and {large['cpu_s_per_gb']:.3f} s in {last}: "
        f"{small['cpu_s_per_gb'] / large['cpu_s_per_gb']:,.1f} times as much in small pieces."
    ]
