"""What the four layers share: a place to write to, a window of time, and the way back from files to figures."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.lab.perf import Perf
from bench.lab.snapshot import Difference, difference, take_snapshot

__all__ = ["Figures", "Layer", "Target", "Window", "each", "percentiles", "read_window"]

Figures = dict[str, Any]
"""What is read out of the raw files: numbers by name, None if the machine has no such counter."""


@dataclass(frozen=True, slots=True)
class Target:
    """The service looked at: its name for readers, its processes now, and whom to ask for the number of requests."""

    name: str
    pids: Callable[[], Sequence[int]]
    status_socket: Path | None = None
    dwarf: bool = False
    """Whether call stacks are unwound by debugging information."""

    def where(self) -> list[str]:
        """perf's options for this service alone."""
        return ["-p", ",".join(map(str, self.pids()))]


EVERYWHERE = ["-a"]


@dataclass(frozen=True, slots=True)
class Window:
    """What a window holds besides its raw files. `counted_s` is how long each perf counted, by its file."""

    pids: list[int]
    tids: list[int]
    passed: Difference
    counted_s: dict[str, float]

    def each(self, value: float | None, name: str) -> Figures:
        """A count of the perf that wrote the file `name`, with its rates."""
        return each(value, self.passed, self.counted_s[name])


@dataclass(frozen=True, slots=True)
class Layer:
    """`collect` writes raw files into a directory for some seconds; `derive` reads the figures out of it again."""

    number: int
    name: str
    collect: Callable[[Target, Path, float], None]
    derive: Callable[[Path], Figures]
    tracepoints: bool = False
    """Whether it is made of tracepoints alone, and cannot be without them."""

    @property
    def directory(self) -> str:
        return f"{self.number}-{self.name}"


@contextlib.contextmanager
def window(target: Target, directory: Path, seconds: float, perfs: Sequence[Perf]) -> Iterator[None]:
    """Count for `seconds`; the block runs when perf has ended, and before what it recorded is gone."""
    try:
        pids = list(target.pids())
        for perf in perfs:
            perf.control("enable")
        take_snapshot(directory / "before", pids, target.status_socket)
        time.sleep(seconds)
        take_snapshot(directory / "after", pids, target.status_socket)
        for perf in perfs:
            perf.control("disable")
        (directory / "pids.json").write_text(json.dumps(pids) + "\n")
        times = {perf.output.name: perf.times_ns for perf in perfs}
        (directory / "times.json").write_text(json.dumps(times) + "\n")
        for perf in perfs:
            perf.finish()
        yield
    finally:
        for perf in perfs:
            perf.stop()


def read_window(directory: Path) -> Window:
    pids = json.loads((directory / "pids.json").read_text())
    passed = difference(directory / "before", directory / "after")
    times = json.loads((directory / "times.json").read_text()) if (directory / "times.json").exists() else {}
    counted = {name: (end - begin) / 1e9 for name, (begin, end) in times.items()}
    return Window(pids, sorted(map(int, passed.threads)), passed, counted)


def each(value: float | None, passed: Difference, seconds: float) -> Figures:
    """A count of `seconds` with its rates: for each second, each GB that the interfaces sent, each request.

    perf begins and ends a few milliseconds beside the snapshots, more on a busy machine: so a count is set against
    what went by as one rate against another.
    """
    if value is None or not seconds:
        return {"count": value, "per_s": None, "per_gb": None, "per_request": None}
    rate = value / seconds
    return {
        "count": value,
        "per_s": rate,
        "per_gb": rate * passed.seconds / passed.gigabytes if passed.sent_bytes else None,
        "per_request": rate * passed.seconds / passed.requests if passed.requests else None,
    }


def percentiles(values: Sequence[float]) -> Figures:
    """Of all values: median, p99 and the largest; None if there are none."""
    if not values:
        return {"count": 0, "p50": None, "p99": None, "max": None}
    ordered = sorted(values)
    return {
        "count": len(ordered),
        "p50": ordered[len(ordered) // 2],
        "p99": ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)],
        "max": ordered[-1],
    }
