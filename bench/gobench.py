"""Go's benchmark text, which benchstat and its kin read."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable, Mapping

__all__ = ["UNITS", "header", "line", "parse"]

UNITS = {"ns_op": "ns/op", "cpu_ns_op": "cpu-ns/op", "bytes_op": "B/op", "allocs_op": "allocs/op"}
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
_LINE = re.compile(r"^(Benchmark\S+)\s+(\d+)\s+(.*)$")


def header(cpu: str) -> list[str]:
    machine = platform.machine()
    return ["goos: linux", f"goarch: {_MACHINES.get(machine, machine)}", "pkg: oinetd/bench", f"cpu: {cpu}"]


def line(name: str, operations: int, values: Mapping[str, float | None]) -> str:
    """One measurement. A value that could not be had is left out: the format has no word for it, and 0 would be one."""
    cells = [f"Benchmark{name}-{os.cpu_count()}".ljust(64), f"{operations:>9}"]
    for key, unit in UNITS.items():
        value = values.get(key)
        if value is not None:
            digits = 0 if value >= 100 or value == int(value) else 2
            cells.append(f"{value:>14.{digits}f} {unit}")
    return " ".join(cells).rstrip()


def parse(text: Iterable[str]) -> list[tuple[str, int, dict[str, float]]]:
    """Name, operations and values by unit of each line that is a measurement."""
    found = []
    for row in text:
        if match := _LINE.match(row.strip()):
            words = match.group(3).split()
            values = {unit: float(value) for value, unit in zip(words[::2], words[1::2], strict=True)}
            found.append((match.group(1), int(match.group(2)), values))
    return found
