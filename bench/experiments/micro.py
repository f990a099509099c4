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
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import gobench
from bench.allocations import AllocationCounter
from bench.errors import BenchError
from bench.experiment import Case, Experiment, Options
from bench.experiments.latency import own_client, run_client
from bench.extension import native
from bench.pprof import encode
from bench.profiling import sample_stacks
from bench.results import Result, Sample
from bench.stacks import SAMPLES_PER_S, Stacks
from bench.stand import Running, Stand
from bench.statistics import Line, fit_line
from bench.subjects import Subject
from bench.tools import need

__all__ = ["Micro", "benchmark_name", "lines_of_cost"]

SMALL = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
LARGE = (4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20)
QUICK = (1, 64, 2048, 16 << 10, 64 << 10, 256 << 10)
_WARM_UP_S = 0.05
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
    rounds, quick_rounds = 5, 1
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
        with stand.native_server("source") as port:
            self._port = port
            self._counter = AllocationCounter(stand.directory) if AllocationCounter.possible() else None
            yield (port,)

    def measure(self, stand: Stand, running: Running, case: Case) -> Sample:
        size = case.parameters["size"]
        figures, spent = run_client(
            stand, running, "round-trips", size=size, source=True, seconds=self.seconds_each, warm_up=_WARM_UP_S
        )
        operations = figures["operations"]
        values: dict[str, float | None] = {
            "ns_op": figures["elapsed_s"] * 1e9 / operations,
            "cpu_ns_op": spent.cpu_per(operations, 1e9),
        }
        if running.pids and self._counter is not None:
            values |= self._allocations(stand, running, self._counter, size)
        return Sample("", case.name, 0, values, detail={"operations": operations, "size": size})

    def apart_s(self) -> float:
        return _PROFILED_S + 1.0 if self.options.extra.get("profile") else 0.0

    def apart(self, stand: Stand, subject: Subject, ports: tuple[int, ...], result: Result) -> None:
        """Sample the stacks of the subject while it relays."""
        if subject.family == "floor":
            return
        with stand.subject(subject, *ports) as running:
            command = own_client(running, "round-trips", size=_PROFILED_SIZE, source=True, seconds=_PROFILED_S + 1)
            with stand.client(command) as program:
                program.read_line()
                self._stacks[subject.name] = sample_stacks(running, _PROFILED_S, stand.directory)
        period_ns = round(1e9 / SAMPLES_PER_S)
        self.options.extra["profile"].write_bytes(encode(self._stacks, period_ns, time.time_ns()))

    def _allocations(
        self, stand: Stand, running: Running, counter: AllocationCounter, size: int
    ) -> dict[str, float | None]:
        """Of a second instance of the subject, with the counting library in it."""
        with stand.subject(running.subject, self._port, environment=counter.environment) as counted:
            command = own_client(counted, "round-trips", size=size, source=True, seconds=_COUNTED_S, warm_up=_WARM_UP_S)
            with stand.client(command) as program:
                program.read_line()
                calls, allocated = counter.read()
                operations = json.loads(program.read_rest())["operations"]
                calls_after, allocated_after = counter.read()
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
            text = f"{subject}: {line.intercept:,.0f} ns of CPU an exchange, {line.slope:.4f} ns a byte"
            print(f"# {text.replace(',', ' ')}")
        for subject_info in result.subjects:
            if subject_info.unavailable:
                print(f"# {subject_info.name} was skipped: {subject_info.unavailable}")
        return 0


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


def lines_of_cost(result: Result) -> dict[str, Line]:
    """By subject, the line through the forwarder's processor time over the payload's size."""
    lines = {}
    for subject in result.measured():
        points = [
            (float(sample.detail["size"]), value)
            for sample in result.samples
            if sample.subject == subject.name and not sample.error
            for value in [sample.values.get("cpu_ns_op")]
            if value is not None
        ]
        if (line := fit_line(points)) is not None:
            lines[subject.name] = line
    return lines
