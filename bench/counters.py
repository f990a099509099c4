"""`perf stat`: hardware and software counters of a running program."""

from __future__ import annotations

from collections.abc import Sequence

from bench.tools import need

__all__ = ["EVENTS", "parse_counters", "stat_command", "with_ratios"]

EVENTS = (
    "cycles",
    "instructions",
    "cache-misses",
    "branches",
    "branch-misses",
    "context-switches",
    "cpu-migrations",
    "page-faults",
)


def stat_command(pids: Sequence[int], seconds: float) -> list[str]:
    """Count for `seconds`; the counts go to standard error, separated by commas."""
    return [
        need("perf"), "stat", "-x,", "-e", ",".join(EVENTS), "-p", ",".join(map(str, pids)), "--",
        "sleep", f"{seconds:g}",
    ]  # fmt: skip


def parse_counters(text: str) -> dict[str, float | None]:
    """Counts by event; None if the machine has no such counter, which is not 0.

    A processor with two kinds of cores counts each event once for each kind; the kinds are added up.
    """
    counts: dict[str, float | None] = dict.fromkeys(EVENTS)
    for line in text.splitlines():
        fields = line.split(",")
        if len(fields) < 3:
            continue
        event = fields[2].split(":")[0]
        if event.startswith("cpu_") and event.endswith("/"):
            event = event.split("/")[1]
        if event not in counts:
            continue
        try:
            value = float(fields[0])
        except ValueError:  # <not supported>, <not counted>
            continue
        counts[event] = (counts[event] or 0.0) + value
    return counts


def with_ratios(counts: dict[str, float | None]) -> dict[str, float | None]:
    """The counts, with instructions per cycle and the share of branches that were predicted wrong."""

    def ratio(part: str, whole: str) -> float | None:
        over, under = counts.get(part), counts.get(whole)
        return over / under if over is not None and under else None

    return {**counts, "IPC": ratio("instructions", "cycles"), "branch-miss ratio": ratio("branch-misses", "branches")}
