"""`micro`: what one exchange costs and what one byte adds, by engine and relay mode.

One exchange at a time on one connection: eight bytes up, which name the size of the answer, and a payload down. The
time is the client's; the processor time is the forwarder's alone, and a straight line through it says what an exchange
costs and what a byte adds: a copy has a slope, splice is nearly flat. Allocations are counted in runs apart.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import gobench
from bench.allocations import AllocationCounter
from bench.columns import Column, cell
from bench.errors import BenchError
from bench.experiment import Case, Experiment, Options
from bench.extension import native
from bench.loads import exchange_load
from bench.meter import client_command
from bench.pprof import encode
from bench.profiling import sample_stacks
from bench.results import Result, Sample
from bench.stacks import SAMPLES_PER_S, Stacks
from bench.stand import Running, Stand
from bench.statistics import Summary, fit_line, summarise
from bench.subjects import Subject
from bench.tables import faults
from bench.tools import need

__all__ = ["INTERCEPT", "SLOPE", "Cost", "Micro", "benchmark_name", "lines_of_cost"]

SMALL = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
LARGE = (4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20)
QUICK = (1, 64, 2048, 16 << 10, 64 << 10, 256 << 10)
_ASKED_BYTES = 8
"""Of a request."""
_WARM_UP_S = 0.1
_OVERHEAD_S = 0.35
_PROFILED_S = 3.0
_PROFILED_SIZE = 16 << 10
"""Large enough for the relay to show beside the event loop, small enough for it not to be all."""
_COUNTED_S = 0.1
"""How long allocations are counted for."""


class Micro(Experiment):
    name = "micro"
    subjects = ("native-auto", "native-copy", "native-splice", "python")
    quick_subjects = ("native-copy", "native-splice", "python")
    rounds, quick_rounds = 6, 2
    seconds, quick_seconds = 0.5, 0.2
    warm_up_s = 0.0
    buffers = (65536,)

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._stacks: dict[str, Stacks] = {}

    def prepare(self) -> None:
        native()
        if self.options.extra.get("profile"):
            need("perf")

    def settings(self) -> dict[str, Any]:
        return {key: str(value) if isinstance(value, Path) else value for key, value in super().settings().items()}

    def cases(self) -> list[Case]:
        length = self.seconds_each + _WARM_UP_S + _OVERHEAD_S + _COUNTED_S + _OVERHEAD_S
        sizes = QUICK if self.options.quick else SMALL + LARGE
        return [Case(f"len(payload)={size}", length, {"size": size}) for size in sizes]

    @contextlib.contextmanager
    def server(self, stand: Stand) -> Iterator[tuple[int, ...]]:
        with stand.far_end() as self._far:
            self._counter = AllocationCounter(stand.directory) if AllocationCounter.possible() else None
            yield (self._far.port,)

    def measure(self, stand: Stand, running: Running, case: Case) -> Sample:
        size = case.parameters["size"]
        load = exchange_load(
            stand, running, self._far, connections=1, up=_ASKED_BYTES, down=size, seconds=self.seconds_each,
            warm_up=_WARM_UP_S,
        )  # fmt: skip
        operations = load.figures["operations"]
        if not operations:
            raise BenchError("; ".join(load.invalid) or "no exchange came to its end")
        values: dict[str, float | None] = {
            "ns_op": load.figures["elapsed_s"] * 1e9 / operations,
            "cpu_ns_op": load.spent.cpu_per(operations, 1e9),
        }
        if running.pids and self._counter is not None:
            values |= self._allocations(stand, running, self._counter, size)
        return load.sample(case.name, values, operations=operations, size=size)

    def apart_s(self) -> float:
        return _PROFILED_S + 1.0 if self.options.extra.get("profile") else 0.0

    def apart(self, stand: Stand, subject: Subject, ports: tuple[int, ...], result: Result) -> None:
        """Sample the stacks of the subject while it relays."""
        if subject.family == "floor":
            return
        with stand.subject(subject, *ports) as running:
            command = client_command(running, "exchange", up=_ASKED_BYTES, down=_PROFILED_SIZE, seconds=_PROFILED_S + 1)
            with stand.client(command) as program:
                program.begun()
                self._stacks[subject.name] = sample_stacks(running, _PROFILED_S, stand.directory)
        period_ns = round(1e9 / SAMPLES_PER_S)
        self.options.extra["profile"].write_bytes(encode(self._stacks, period_ns, time.time_ns()))

    def _allocations(
        self, stand: Stand, running: Running, counter: AllocationCounter, size: int
    ) -> dict[str, float | None]:
        """Of a second instance of the subject, with the counting library in it."""
        with stand.subject(running.subject, self._far.port, environment=counter.environment) as counted:
            command = client_command(
                counted, "exchange", up=_ASKED_BYTES, down=size, seconds=_COUNTED_S, warm_up=_WARM_UP_S
            )
            with stand.client(command) as program:
                program.begun()
                calls, allocated = counter.read()
                program.read_line()
                calls_after, allocated_after = counter.read()
                operations = json.loads(program.read_rest())["operations"]
        return {
            "allocs_op": (calls_after - calls) / operations,
            "bytes_op": (allocated_after - allocated) / operations,
        }

    def show(self, result: Result, console: Console) -> int:
        """The rows go to standard output as they are, for benchstat."""
        rows = [
            gobench.line(
                benchmark_name(sample.subject, sample.detail["size"]), sample.detail["operations"], sample.values
            )
            for sample in result.samples
            if not sample.error and not sample.warm_up
        ]
        if not rows:
            raise BenchError("no row: nothing was measured")
        for row in [*gobench.header(result.machine["cpu"]), *rows]:
            print(row)
        for subject, line in lines_of_cost(result).items():
            exchange, each = cell(line.intercept, INTERCEPT), cell(line.slope, SLOPE)
            print(f"# {subject}: {exchange} ns of CPU an exchange, {each} ns a byte")
        for subject_info in result.subjects:
            if subject_info.unavailable:
                print(f"# {subject_info.name} was skipped: {subject_info.unavailable}")
        for text in faults(result):
            print(f"# {text}")
        return result.status()


def benchmark_name(subject: str, size: int) -> str:
    """`Relay/engine=native/relay=copy/len(payload)=64`, and `Relay/subject=NAME/…` for one that is not oinetd's."""
    mode, _, threads = subject.partition("×")
    base, _, buffer = mode.partition("@")
    engine, _, relay = base.partition("-")
    if engine in ("native", "python"):
        # The Python engine copies; what follows its name is the loop it runs on.
        parts = f"engine={engine}/relay={relay}" if engine == "native" else f"engine={base}/relay=copy"
    else:
        parts = f"subject={base}"
    if buffer:
        parts += f"/buffer={buffer}"
    if threads:
        parts += f"/threads={threads}"
    return f"Relay/{parts}/len(payload)={size}"


INTERCEPT = Column("intercept", "CPU", "ns an exchange", 0)
SLOPE = Column("slope", "CPU", "ns a byte", 4)


@dataclass(frozen=True, slots=True)
class Cost:
    """The line through processor time over size, fitted for each round by itself: so both have an interval."""

    intercept: Summary
    slope: Summary


def lines_of_cost(result: Result) -> dict[str, Cost]:
    """By subject, what an exchange costs and what a byte adds."""
    lines = {}
    for subject in result.measured():
        rounds: dict[int, list[tuple[float, float]]] = {}
        for sample in result.samples:
            value = sample.values.get("cpu_ns_op")
            if sample.subject == subject.name and not sample.error and value is not None:
                rounds.setdefault(sample.round, []).append((float(sample.detail["size"]), value))
        fitted = [line for points in rounds.values() if (line := fit_line(points)) is not None]
        intercept, slope = (summarise([getattr(line, name) for line in fitted]) for name in ("intercept", "slope"))
        if intercept is not None and slope is not None:
            lines[subject.name] = Cost(intercept, slope)
    return lines
