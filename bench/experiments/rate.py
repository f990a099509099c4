"""`rate`: how many connections a second, and what ten thousand idle ones hold."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator

from rich.console import Console

from bench.errors import BenchError
from bench.experiment import Case, Options
from bench.experiments.latency import load_figures
from bench.experiments.ways import InWays
from bench.extension import native
from bench.loads import short_load
from bench.meter import client_command
from bench.profiling import SOFTIRQ_S, softirq_of
from bench.programs import descriptor_limit
from bench.results import Result, Sample
from bench.stand import WARM_UP_S, Running, Stand
from bench.subjects import Destination, Subject
from bench.tables import print_profiles

__all__ = ["Rate"]

_OVERHEAD_S = 0.3
_IDLE_S = 0.5
"""How long the idle connections are watched."""
_OWN_DESCRIPTORS = 1200
"""What a forwarder may need for itself: listeners, epolls, logs, pipes."""
_OPENING_PER_S = 2000
"""About how fast idle connections are opened; for the reckoning of the run's length."""


class Rate(InWays):
    name = "rate"
    way_cases = ("connect/close × 16",)
    subjects = ("floor", "oinetd", "native-group16", "peer", "reference")
    quick_subjects = ("direct", "native-auto", "python", "haproxy", "nginx")
    rounds, quick_rounds = 6, 2
    seconds, quick_seconds = 3.0, 1.0
    warm_up_s = 0.0
    buffers = (65536,)

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._cannot_hold: dict[str, str] = {}

    def prepare(self) -> None:
        native()

    def plain_cases(self) -> list[Case]:
        wanted = self.options.extra.get("idle") or (1000 if self.options.quick else 10000)
        idle = min(wanted, (descriptor_limit() - _OWN_DESCRIPTORS) // 2)  # a forwarder needs two for each
        length = self.seconds_each + WARM_UP_S + _OVERHEAD_S
        return [
            *(Case(f"connect/close × {count}", length, {"connections": count}) for count in (1, 16, 64)),
            Case(f"{idle} idle", _IDLE_S + _OVERHEAD_S + idle / _OPENING_PER_S, {"idle": idle}),
        ]

    @contextlib.contextmanager
    def server(self, stand: Stand) -> Iterator[tuple[int | Destination, ...]]:
        if self.way_names:
            with self.ways_server(stand) as destinations:
                yield destinations
            return
        with stand.far_end() as self._far:
            yield (self._far.port,)

    def measure(self, stand: Stand, running: Running, case: Case) -> Sample:
        if "idle" in case.parameters:
            return self._idle(stand, running, case)
        running, far = self.reach(running, case.parameters.get("way"))
        load = short_load(stand, running, far, seconds=self.seconds_each, connections=case.parameters["connections"])
        values = {**load_figures(load), "failures": load.figures["failures"]}
        return load.sample(case.name, values, histogram=load.figures["histogram"])

    def apart_s(self) -> float:
        return bool(self.options.extra.get("softirq")) * (SOFTIRQ_S + 1)

    def apart(self, stand: Stand, subject: Subject, ports: tuple[int, ...], result: Result) -> None:
        result.profiles.setdefault("softirq", {})[subject.name] = softirq_of(
            stand, subject, ports, "connect/close × 16", "short", connections=16
        )

    def show(self, result: Result, console: Console) -> int:
        status = super().show(result, console)
        print_profiles(result, console)
        return status

    def _idle(self, stand: Stand, running: Running, case: Case) -> Sample:
        """Memory before and with the connections open, and processor time while nothing is sent.

        Of the process, pages that it shares with no other: what others map and let go does not move them. A process
        that was just started has no room left over from earlier connections.
        """
        wanted = case.parameters["idle"]
        if reason := self._cannot_hold.get(running.subject.name):
            raise BenchError(reason)
        with stand.subject(running.subject, self._far.port) as fresh:
            before = fresh.account.memory()
            with stand.client(client_command(fresh, "idle", connections=wanted)) as program:
                program.begun()
                program.read_line()
                figures = json.loads(program.read_line())
                held = figures["connections"]
                if held < wanted:
                    reasons = f" ({figures['faults'][0]})" if figures["faults"] else ""
                    # In another round it would be the same, and take as long.
                    self._cannot_hold[running.subject.name] = f"only {held} connections could be held open{reasons}"
                    raise BenchError(self._cannot_hold[running.subject.name])
                cpu_s = fresh.account.cpu_times().total_s
                time.sleep(_IDLE_S)
                cpu_s = fresh.account.cpu_times().total_s - cpu_s
                after = fresh.account.memory()
                invalid = fresh.work_elsewhere()
        kernel = None if before.kernel is None or after.kernel is None else after.kernel - before.kernel
        values: dict[str, float | None] = {"connections": held}
        if fresh.pids:  # a floor holds its connections elsewhere
            values |= {
                "private_bytes_each": (after.private - before.private) / held,
                "kernel_bytes_each": None if kernel is None else kernel / held,
                "idle_cpu_percent": cpu_s / _IDLE_S * 100,
            }
        return Sample("", case.name, 0, values, invalid=invalid)
