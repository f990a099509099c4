"""`connections`: the table of engines. Many connections are opened through each, and each downloads the same amount.

Every column is defined once and is the client's for all engines alike:

- socket creation: `socket()` and `connect()`, the mean of one connection;
- job setup: from connected until one byte asked for is here, so the forwarder has accepted, connected and relayed;
- download: from the request to the last byte, the mean of one connection; beside it the rate of all together;
- run time: from the first `socket()` to the last `close()`;
- memory: proportional set size of the forwarder's processes, sampled while the run lasts, and what the kernel holds.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterator

from bench.errors import BenchError
from bench.experiment import Case, Experiment
from bench.extension import native
from bench.loads import bulk_load
from bench.results import Sample
from bench.stand import Running, Stand

__all__ = ["Connections"]

CONNECTIONS = 100
MIB_EACH = 200
BLOCK_BYTES = 65536
"""The unit of what is downloaded."""
_EXPECTED_BYTES_S = 1.5e9
"""For the reckoning of the run's length only."""


class Connections(Experiment):
    name = "connections"
    subjects = ("floor", "oinetd", "peer", "reference")
    quick_subjects = ("direct", "native-splice", "native-copy", "python", "ref-threads", "ref-polling")
    rounds, quick_rounds = 10, 2
    quick_scale = 0.04
    warm_up_s = 0.0
    buffers = (65536,)

    def prepare(self) -> None:
        native()

    @property
    def scale(self) -> float:
        """The share of the 200 MiB that each connection downloads."""
        return float(self.options.extra.get("scale") or (self.quick_scale if self.options.quick else 1.0))

    def cases(self) -> list[Case]:
        size = round(MIB_EACH * self.scale * (1 << 20))
        label = f"{CONNECTIONS} × {MIB_EACH * self.scale:g} MiB"
        if self.scale != 1:
            label += f" (scaled down from {MIB_EACH} MiB)"
        blocks = max(1, size // BLOCK_BYTES)
        return [Case(label, CONNECTIONS * size / _EXPECTED_BYTES_S + 0.5, {"blocks": blocks})]

    @contextlib.contextmanager
    def server(self, stand: Stand) -> Iterator[tuple[int, ...]]:
        with stand.far_end() as self._far:
            yield (self._far.port,)

    def measure(self, stand: Stand, running: Running, case: Case) -> Sample:
        blocks = case.parameters["blocks"]
        load = bulk_load(stand, running, self._far, connections=CONNECTIONS, up=False, blocks=blocks)
        figures = load.figures
        times = [flow["ended_ns"] - flow["begun_ns"] for flow in figures["flows"] if not flow["fault"]]
        moved = sum(flow["moved"] for flow in figures["flows"])
        if not times:
            raise BenchError("; ".join(load.invalid) or "no download came to its end")
        whole_ns = max(flow["ended_ns"] for flow in figures["flows"]) - min(
            flow["begun_ns"] for flow in figures["flows"]
        )
        values: dict[str, float | None] = {
            "socket_us": statistics.fmean(figures["connect_ns"]) / 1e3,
            "setup_us": statistics.fmean(figures["setup_ns"]) / 1e3,
            "download_s": statistics.fmean(times) / 1e9,
            "download_mib_s": moved / (1 << 20) / (whole_ns / 1e9),
            "run_s": figures["run_s"],
            "cpu_s_per_gb": load.spent.cpu_per(moved / 1e9),
        }
        if running.pids:
            values |= load.spent.watch.memory_values()
        setups = list(zip(figures["connect_ns"], figures["setup_ns"], strict=True))
        return load.sample(case.name, values, setup_ns=setups, times_ns=times)
