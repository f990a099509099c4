"""`mixed`: what small messages feel of what goes on beside them: bulk streams, and idle connections.

Small requests at a fixed rate, an open loop, through one route; through a second route of the same forwarder streams as
fast as they go, or connections that are held and silent. A latency is from the time that a request was due.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace

from bench.errors import BenchError
from bench.experiment import Case, Experiment
from bench.experiments.latency import load_figures
from bench.extension import native
from bench.loads import exchange_load, settled
from bench.meter import client_command
from bench.programs import Program, descriptor_limit
from bench.results import Sample
from bench.stand import WARM_UP_S, Counts, FarEnd, Running, Stand
from bench.validity import bulk_faults

__all__ = ["Mixed"]

BYTES, CONNECTIONS, PER_SECOND = 64, 16, 2000
STREAMS = 4
_IDLE, _QUICK_IDLE = 5000, 1000
_OWN_DESCRIPTORS = 1200
_AROUND_S = 1.2
"""How much longer the streams last than the requests beside them: until the client of those has begun, and ended."""
_OVERHEAD_S = 0.5
_OPENING_PER_S = 3000
"""About how fast idle connections are opened; for the reckoning of the run's length."""

Judged = Callable[[], tuple[dict[str, float | None], list[str]]]
"""What went on beside, when it is over: its figures, and what is wrong with it."""


class Mixed(Experiment):
    name = "mixed"
    subjects = ("floor", "oinetd", "peer")
    quick_subjects = ("direct", "native-auto", "python", "haproxy")
    rounds, quick_rounds = 6, 2
    seconds, quick_seconds = 2.0, 0.8
    warm_up_s = 0.0
    buffers = (65536,)

    def prepare(self) -> None:
        native()

    def cases(self) -> list[Case]:
        wanted = self.options.extra.get("idle") or (_QUICK_IDLE if self.options.quick else _IDLE)
        idle = min(wanted, (descriptor_limit() - _OWN_DESCRIPTORS) // 2)
        small = f"{BYTES}B × {CONNECTIONS} at {PER_SECOND}/s"
        length = self.seconds_each + WARM_UP_S + _OVERHEAD_S
        return [
            Case(f"{small}, alone", length),
            Case(f"{small}, beside {STREAMS} streams", length + _AROUND_S, {"streams": STREAMS}),
            Case(f"{small}, beside {idle} idle", length + _OVERHEAD_S + idle / _OPENING_PER_S, {"idle": idle}),
        ]

    @contextlib.contextmanager
    def server(self, stand: Stand) -> Iterator[tuple[int, ...]]:
        with stand.far_end() as self._far, stand.far_end() as self._beside:
            yield self._far.port, self._beside.port

    def measure(self, stand: Stand, running: Running, case: Case) -> Sample:
        with contextlib.ExitStack() as stack:
            judged: Judged | None = None
            if streams := case.parameters.get("streams"):
                judged = stack.enter_context(self._bulk(stand, running, streams))
            elif idle := case.parameters.get("idle"):
                stack.enter_context(_idle(stand, running, idle))
            load = exchange_load(
                stand, running, self._far, connections=CONNECTIONS, up=BYTES, down=BYTES, seconds=self.seconds_each,
                rate=PER_SECOND,
            )  # fmt: skip
            values = load_figures(load)
            values["late_percent"] = 100 * load.figures["late"] / max(1.0, PER_SECOND * self.seconds_each)
            if judged is not None:
                beside, invalid = judged()
                # Processor time is of both together: neither's cost can be told from it.
                values |= {"cpu_us": None, "total_cpu_us": None, **beside}
                load.invalid += invalid
        return load.sample(case.name, values, histogram=load.figures["histogram"])

    @contextlib.contextmanager
    def _bulk(self, stand: Stand, running: Running, streams: int) -> Iterator[Judged]:
        """Streams up, through the second route, from before the requests until after them."""
        far = self._beside
        before = far.counts()
        command = client_command(
            _second(running), "upload", connections=streams, threads=stand.cores.loads,
            seconds=self.seconds_each + _AROUND_S, warm_up=stand.warm_up_s,
        )  # fmt: skip
        with stand.client(command) as program:
            program.begun()
            yield lambda: _judged(far, before, program)


def _judged(far: FarEnd, before: Counts, program: Program) -> tuple[dict[str, float | None], list[str]]:
    program.read_line()
    figures = json.loads(program.read_rest())
    invalid, _ = settled(far, before, lambda counts: bulk_faults(figures, counts, up=True))
    return {"beside_gbit_s": sum(figures["streams"]) * 8 / figures["elapsed_s"] / 1e9}, invalid


@contextlib.contextmanager
def _idle(stand: Stand, running: Running, wanted: int) -> Iterator[None]:
    """Connections through the second route, held and silent."""
    with stand.client(client_command(_second(running), "idle", connections=wanted)) as program:
        program.begun()
        program.read_line()
        held = json.loads(program.read_line())
        if held["connections"] < wanted:
            raise BenchError(f"only {held['connections']} connections could be held open")
        yield


def _second(running: Running) -> Running:
    """As seen by a client of the second route."""
    return replace(running, targets=running.targets[1:])
