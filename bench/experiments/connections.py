"""`connections`: the table of engines. Many connections are opened through each, and each downloads the same amount.

Every column is defined once and is the client's for all engines alike:

- socket creation: `socket()` and `connect()`, the mean of one connection;
- job setup: from connected until one byte asked for is here, so the forwarder has accepted, connected and relayed;
- download: from the request to the last byte, the mean of one connection, with its rate;
- run time: from the first `socket()` to the last `close()`;
- memory: proportional set size of the forwarder's processes, sampled while the run lasts, and what the kernel holds.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterator

from bench.experiment import Case, Experiment
from bench.experiments.latency import run_client
from bench.extension import native
from bench.results import Sample
from bench.stand import Running, Stand

__all__ = ["Connections"]

CONNECTIONS = 100
MIB_EACH = 200
_EXPECTED_BYTES_S = 1.5e9
"""For the reckoning of the run's length only."""


class Connections(Experiment):
    name = "connections"
    subjects = ("floor", "oinetd", "peer", "reference")
    quick_subjects = ("direct", "native-splice", "native-copy", "python", "ref-threads", "ref-polling")
    rounds, quick_rounds = 10, 1
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
        return [Case(label, CONNECTIONS * size / _EXPECTED_BYTES_S + 0.5, {"size": size})]

    @contextlib.contextmanager
    def server(self, stand: Stand) -> Iterator[tuple[int, ...]]:
        with stand.native_server("source") as port:
            yield (port,)

    def measure(self, stand: Stand, running: Running, case: Case) -> Sample:
        size = case.parameters["size"]
        figures, spent = run_client(stand, running, "downloads", connections=CONNECTIONS, size=size)
        sockets, setups, times = zip(*figures["times_ns"], strict=True)
        gigabytes = CONNECTIONS * size / 1e9
        values: dict[str, float | None] = {
            "socket_us": statistics.fmean(sockets) / 1e3,
            "setup_us": statistics.fmean(setups) / 1e3,
            "download_s": statistics.fmean(times) / 1e9,
            "download_mib_s": statistics.fmean(size / (1 << 20) / (ns / 1e9) for ns in times),
            "run_s": figures["elapsed_s"],
            "cpu_s_per_gb": spent.cpu_per(gigabytes),
        }
        if running.pids:
            values |= spent.watch.memory_values()
        return Sample("", case.name, 0, values, detail={"times_ns": figures["times_ns"]})
