"""`rate`: how many connections a second, and what ten thousand idle ones hold."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator

from bench.errors import BenchError
from bench.experiment import Case, Experiment
from bench.experiments.latency import load_figures, run_client
from bench.extension import native
from bench.programs import descriptor_limit, python_command
from bench.results import Sample
from bench.stand import Running, Stand

__all__ = ["Rate"]

_BYTES = 64
"""Exchanged by a short connection each way."""
_WARM_UP_S = 0.3
_OVERHEAD_S = 0.4
_IDLE_S = 1.0
"""How long the idle connections are watched."""
_OWN_DESCRIPTORS = 1200
"""What a forwarder may need for itself: listeners, epolls, logs, pipes."""
_OPENING_PER_S = 2000
"""About how fast idle connections are opened; for the reckoning of the run's length."""


class Rate(Experiment):
    name = "rate"
    subjects = ("floor", "oinetd", "peer", "reference")
    quick_subjects = ("direct", "native-auto", "python", "haproxy", "rinetd")
    rounds, quick_rounds = 5, 2
    seconds, quick_seconds = 3.0, 1.0
    warm_up_s = 0.0
    buffers = (65536,)

    def prepare(self) -> None:
        native()

    def cases(self) -> list[Case]:
        wanted = self.options.extra.get("idle") or (1000 if self.options.quick else 10000)
        idle = min(wanted, (descriptor_limit() - _OWN_DESCRIPTORS) // 2)  # a forwarder needs two for each
        length = self.seconds_each + _WARM_UP_S + _OVERHEAD_S
        return [
            *(
                Case(f"connect/close × {count}", length, {"connections": count, "size": _BYTES})
                for count in (1, 16, 64)
            ),
            Case(f"{idle} idle", _IDLE_S + _OVERHEAD_S + idle / _OPENING_PER_S, {"idle": idle}),
        ]

    @contextlib.contextmanager
    def server(self, stand: Stand) -> Iterator[tuple[int, ...]]:
        with stand.native_server("echo") as port:
            yield (port,)

    def measure(self, stand: Stand, running: Running, case: Case) -> Sample:
        if "idle" in case.parameters:
            return self._idle(stand, running, case)
        figures, spent = run_client(
            stand, running, "connections", seconds=self.seconds_each, warm_up=_WARM_UP_S, **case.parameters
        )
        if not figures["operations"]:
            raise BenchError(f"no connection succeeded (errno {figures['errno']})")
        values = {**load_figures(figures, spent), "failures": figures["failures"]}
        return Sample("", case.name, 0, values, detail={"histogram": figures["histogram"]})

    def _idle(self, stand: Stand, running: Running, case: Case) -> Sample:
        """Memory before and with the connections open, and processor time while nothing is sent."""
        before = running.account.memory()
        command = python_command(
            "bench.client", "idle", running.host, str(running.port), "--connections", str(case.parameters["idle"])
        )
        with stand.client(command) as program:
            held = json.loads(program.read_line())["connections"]
            if held < case.parameters["idle"]:
                raise BenchError(f"only {held} connections could be held open")
            cpu_s = running.account.cpu_times().total_s
            time.sleep(_IDLE_S)
            cpu_s = running.account.cpu_times().total_s - cpu_s
            after = running.account.memory()
        kernel = None if before.kernel is None or after.kernel is None else after.kernel - before.kernel
        values: dict[str, float | None] = {"connections": held}
        if running.pids:  # a floor holds its connections elsewhere
            values |= {
                "pss_bytes_each": (after.pss - before.pss) / held,
                "kernel_bytes_each": None if kernel is None else kernel / held,
                "idle_cpu_percent": cpu_s / _IDLE_S * 100,
            }
        return Sample("", case.name, 0, values)
