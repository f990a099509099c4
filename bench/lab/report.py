"""The lab's report: Markdown, made from the figures and from nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bench.lab.layer import Figures
from bench.lab.stages import STAGES
from bench.lab.summary import summary

__all__ = ["render"]

IDLE = "idle"
CALLS_MAX = 14


def number(value: float | None, digits: int = 1, scale: float = 1.0) -> str:
    """`n/a` where there is no value, which is not 0."""
    return "n/a" if value is None else f"{value * scale:,.{digits}f}".replace(",", " ")


def share(value: float | None) -> str:
    return "n/a" if value is None else f"{100 * value:.1f} %"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table with even columns; all but the first are flush right."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        numbers = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
        return "| " + " | ".join([cells[0].ljust(widths[0]), *numbers]) + " |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return [line(lines[0]), line(rule), *map(line, lines[1:]), ""]


def render(figures: Figures) -> str:
    """The report of a run."""
    meta, windows = figures["meta"], figures["windows"]
    lines = [f"# Where the time goes: {meta['target']}", "", meta["machine_line"], ""]
    for text in (*meta.get("missing", []), *meta.get("ambient", [])):
        lines += [f"**{text}**", ""]
    lines += ["## Summary", "", *(f"- {sentence}" for sentence in summary(figures)), ""]
    if any("timed" in report for report in windows.values()):
        lines += ["## The loads, unobserved", "", *_timed(windows)]
    idle = windows.get(IDLE, {})
    for name, report in windows.items():
        if name == IDLE:
            continue
        lines += [f"## {name}: {meta['windows'][name]}", ""]
        for layer, part in _PARTS.items():
            if layer in report:
                lines += part(report[layer], idle.get(layer))
    lines.append("Every figure is read out of the raw files beside this one: `python -m bench lab --again DIR`.")
    return "\n".join(lines) + "\n"


def _timed(windows: dict[str, Any]) -> list[str]:
    head = ["load", "requests/s", "Gbit/s", "p50 µs", "p90 µs", "p99 µs", "p99.9 µs", "errors", "CPU s/GB",
            "CPU µs/request", "CPU, cores"]  # fmt: skip
    rows = []
    for name, report in windows.items():
        if "timed" in report:
            run = report["timed"]
            rows.append([
                name, number(run["requests_per_s"], 0), number(run["gbit_s"], 2),
                *(number(run[key], 0) for key in ("p50_us", "p90_us", "p99_us", "p99_9_us", "errors")),
                number(run["cpu_s_per_gb"], 3), number(run["cpu_us_per_request"], 1), number(run["cpu_share"], 2),
            ])  # fmt: skip
    return table(head, rows)


def _counters(report: Figures, idle: Figures | None) -> list[str]:
    lines = ["### Counters", ""]
    head = ["event", "machine, idle /s", "machine, load /s", "service /s", "service /GB", "service /request"]
    rows = []
    for name, system in report["system"].items():
        service = report["service"][name]
        rest = idle["system"][name] if idle else {}
        if name == "instructions per cycle":
            ratios = (rest.get("count"), system["count"], service["count"])
            rows.append([name, *(number(ratio, 2) for ratio in ratios), "", ""])
        elif any(each.get("count") != 0 for each in (rest, system, service)):
            rows.append([
                name.removeprefix("syscalls:sys_enter_"), number(rest.get("per_s"), 0), number(system["per_s"], 0),
                number(service["per_s"], 0), number(service["per_gb"], 0), number(service["per_request"], 2),
            ])  # fmt: skip
    window = report["window"]
    note = f"Window: {number(window['seconds'], 2)} s, {number(window['gigabytes'], 3)} GB sent"
    requests = f", {number(window['requests'], 0)} requests" if window["requests"] is not None else ""
    return [*lines, *table(head, rows), f"{note}{requests}. Clocks are in ms.", ""]


def _stacks(report: Figures, idle: Figures | None) -> list[str]:
    rest = idle["system"] if idle else {}
    shares = report["system"]
    rows = [[f"machine: {name}", share(rest.get(name)), share(shares[name])] for name in ("idle", "kernel", "user")]
    own = idle["service"] if idle else {}
    rows.append(["service: of all time", share(own.get("of_all")), share(report["service"]["of_all"])])
    rows.append(["service: of time not idle", share(own.get("of_busy")), share(report["service"]["of_busy"])])
    rows.append(["service: in the kernel", share(own.get("kernel")), share(report["service"]["kernel"])])
    rows += [[f"others: {name}", "", share(value)] for name, value in report["others"].items()]
    lines = ["### Call stacks", "", f"{report['samples']} samples of {report['event']}.", ""]
    lines += table(["share of processor time", "idle window", "load window"], rows)
    cpu_s, gigabytes, requests = report["cpu_s"], report["gigabytes"], report["requests"]
    head = ["what the service's time went to", "share", "CPU ms/GB", "CPU µs/request"]
    lines += table(head, (
        [name, share(value), number(value * cpu_s * 1e3 / gigabytes if gigabytes else None, 2),
         number(value * cpu_s * 1e6 / requests if requests else None, 2)]
        for name, value in report["purposes"].items()
    ))  # fmt: skip
    lines += table(["function", "share"], ([f"`{name}`", share(value)] for name, value in report["functions"].items()))
    lines += ["The most frequent stacks, innermost first:", ""]
    lines += [f"- {share(value)}: `{name}`" for name, value in report["stacks"].items()]
    return [*lines, "", "Flame graphs: `service.svg`, `system.svg` in the layer's directory.", ""]


def _stages(report: Figures, idle: Figures | None) -> list[str]:
    rows = []
    for name, title in STAGES.items():
        count = report["counts"][name]
        rest = idle["counts"][name] if idle else {}
        rows.append([f"{title} (`{name.partition(':')[2]}`)", number(rest.get("per_s"), 0), number(count["per_s"], 0),
                     number(count["per_gb"], 0), number(count["per_request"], 2)])  # fmt: skip
    lines = ["### Stages", "", *table(["tracepoint, whole machine", "idle /s", "load /s", "/GB", "/request"], rows)]
    received, queued = (report["length"][f"net:{name}"] for name in ("netif_receive_skb", "net_dev_queue"))
    details = [
        ("received, bytes", received), ("queued, bytes", queued), ("packets in one poll", report["packets_per_poll"]),
        ("queue to device, µs", report["queue_to_device_us"]), ("one run of NET_RX, µs", report["net_rx_us"]),
    ]  # fmt: skip
    lines += table(["every event of a short window", "count", "p50", "p99", "max"], (
        [name, number(each["count"], 0), number(each["p50"]), number(each["p99"]), number(each["max"])]
        for name, each in details
    ))  # fmt: skip
    calls = report["syscalls"]["calls"]
    lines += table(["system call", "count", "/request", "/GB", "failed", "p50 µs", "p99 µs", "total ms"], (
        [f"{name}{' (waits)' if call['waits'] else ''}", number(call["count"], 0), number(call["per_request"], 2),
         number(call["per_gb"], 0), number(call["failed"], 0), number(call["p50"], 2), number(call["p99"], 2),
         number(call["total_us"], 1, 1e-3)]
        for name, call in list(calls.items())[:CALLS_MAX]
    ))  # fmt: skip
    for event, stacks in report.get("rare", {}).items():
        lines += [f"Where {STAGES.get(event, event)} (`{event.partition(':')[2]}`) came from:", ""]
        lines += [*(f"- {count}: `{stack}`" for stack, count in stacks.items()), ""]
    lost = report["lost"] + report["syscalls"]["lost"]
    lines += [f"Short window: {number(report['seconds'], 2)} s; {lost} events were lost to the recording.", ""]
    return lines


def _scheduling(report: Figures, idle: Figures | None) -> list[str]:
    rows = []
    titles = {
        "voluntary": "voluntary switches", "involuntary": "involuntary switches", "migrations": "moves between cores",
        "system_switches": "switches of the whole machine",
    }  # fmt: skip
    for key, title in titles.items():
        rest = idle[key] if idle else {}
        each = report[key]
        rows.append([title, number(rest.get("per_s"), 0), number(each["per_s"], 0), number(each["per_gb"], 0),
                     number(each["per_request"], 3)])  # fmt: skip
    lines = ["### Scheduling", "", *table(["", "idle /s", "load /s", "/GB", "/request"], rows)]
    lines += table(["µs", "count", "p50", "p99", "max", "total", "total by the kernel's account"], (
        [title, number(report[key]["count"], 0), *(number(report[key][name]) for name in ("p50", "p99", "max")),
         number(report[key]["total"], 0), number(report["kernel"][key], 0)]
        for key, title in (("run_us", "on a processor"), ("delay_us", "ready, and waiting for one"))
    ))  # fmt: skip
    by = ", ".join(f"{name} {count}" for name, count in report["put_out_by"].items())
    lines += [f"{report['threads']} threads, {number(report['seconds'], 2)} s, {report['lost']} events lost."
              + (f" Put out by: {by}." if by else ""), ""]  # fmt: skip
    return lines


_PARTS = {"counters": _counters, "stacks": _stacks, "stages": _stages, "scheduling": _scheduling}
