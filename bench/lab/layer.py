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
"""What is read out of the raw files: numbers by name, None where the machine has no such counter."""


@dataclass(frozen=True, slots=True)
class Target:
    """The service looked at: its name for readers, its processes now, and whom to ask for the number of requests."""

    name: str
    pids: Callable[[], Sequence[int]]
    status_socket: Path | None = None

    def where(self) -> list[str]:
        """perf's options for this service alone."""
        return ["-p", ",".join(map(str, self.pids()))]


EVERYWHERE = ["-a"]


@dataclass(frozen=True, slots=True)
class Window:
    """What a window holds besides its raw files."""

    pids: list[int]
    tids: list[int]
    passed: Difference


@dataclass(frozen=True, slots=True)
class Layer:
    """`collect` writes raw files into a directory for some seconds; `derive` reads the figures out of it again."""

    number: int
    name: str
    collect: Callable[[Target, Path, float], None]
    derive: Callable[[Path], Figures]

    @property
    def directory(self) -> str:
        return f"{self.number}-{self.name}"


@contextlib.contextmanager
def window(target: Target, directory: Path, seconds: float, perfs: Sequence[Perf]) -> Iterator[None]:
    """Count for `seconds`; the block runs when perf has ended, and before what it recorded is gone."""
    try:
        pids = list(target.pids())
        for perf in perfs:
            perf.tell("enable")
        take_snapshot(directory / "before", pids, target.status_socket)
        time.sleep(seconds)
        take_snapshot(directory / "after", pids, target.status_socket)
        for perf in perfs:
            perf.tell("disable")
        (directory / "pids.json").write_text(json.dumps(pids) + "\n")
        for perf in perfs:
            perf.finish()
        yield
    finally:
        for perf in perfs:
            perf.stop()


def read_window(directory: Path) -> Window:
    pids = json.loads((directory / "pids.json").read_text())
    passed = difference(directory / "before", directory / "after")
    return Window(pids, sorted(map(int, passed.threads)), passed)


def each(value: float | None, passed: Difference) -> Figures:
    """A count with its rates: for each second, each GB that the interfaces sent, each request."""
    if value is None:
        return {"count": None, "per_s": None, "per_gb": None, "per_request": None}
    return {
        "count": value,
        "per_s": value / passed.seconds,
        "per_gb": value / passed.gigabytes if passed.sent_bytes else None,
        "per_request": value / passed.requests if passed.requests else None,
    }


def percentiles(values: Sequence[float]) -> Figures:
    """Of all values: median, p99 and the largest; None where there are none."""
    if not values:
        return {"count": 0, "p50": None, "p99": None, "max": None}
    ordered = sorted(values)
    return {
        "count": len(ordered),
        "p50": ordered[len(ordered) // 2],
        "p99": ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)],
        "max": ordered[-1],
    }
