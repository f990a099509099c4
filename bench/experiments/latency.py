"""`latency`: round trips of small and large messages, on one connection and on many."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console

from bench import netperf
from bench.errors import BenchError
from bench.experiment import Case
from bench.experiments.ways import InWays
from bench.extension import native
from bench.histogram import percentiles_us
from bench.loads import Load, exchange_load
from bench.profiling import SOFTIRQ_S, softirq_of
from bench.results import Result, Sample
from bench.stand import WARM_UP_S, Running, Stand
from bench.subjects import Destination, Subject
from bench.subjects.subject import size_text
from bench.tables import print_profiles
from bench.tools import need

__all__ = ["Latency", "load_figures"]

_NETPERF_TESTS = ("TCP_RR", "TCP_CRR")
_NETPERF_BYTES = {"TCP_RR": 32, "TCP_CRR": 1}
_NETPERF_S = 3
_OFFERED_BYTES, _OFFERED_ON = 64, 64
"""The requests of an open loop: bytes each way, and connections."""
_OVERHEAD_S = 0.3
"""The client's start and end."""


class Latency(InWays):
    name = "latency"
    way_cases = ("64B × 1",)
    subjects = ("floor", "oinetd", "peer", "reference")
    quick_subjects = ("direct", "native-auto", "native-copy", "python", "haproxy")
    rounds, quick_rounds = 6, 2
    seconds, quick_seconds = 2.0, 0.8
    warm_up_s = 0.0  # each case has its own, on the connections it then uses
    buffers = (65536,)

    def prepare(self) -> None:
        native()
        if self.options.extra.get("netperf"):
            need("netperf")
            need("netserver")

    def plain_cases(self) -> list[Case]:
        """A closed loop; with `--rate`, requests at fixed rates on 64 connections."""
        length = self.seconds_each + WARM_UP_S + _OVERHEAD_S
        if rates := self.options.extra.get("rate"):
            return [
                Case(
                    f"{size_text(_OFFERED_BYTES)}B × {_OFFERED_ON}, offered {rate}/s", length,
                    {"up": _OFFERED_BYTES, "down": _OFFERED_BYTES, "connections": _OFFERED_ON, "rate": rate},
                )
                for rate in rates
            ]  # fmt: skip
        sizes = (64, 16384) if self.options.quick else (32, 64, 1024, 4096, 16384, 65536)
        return [
            Case(f"{size_text(size)}B × {connections}", length, {"up": size, "down": size, "connections": connections})
            for size in sizes
            for connections in (1, 64)
        ]

    @contextlib.contextmanager
    def server(self, stand: Stand) -> Iterator[tuple[int | Destination, ...]]:
        if self.way_names:
            with self.ways_server(stand) as destinations:
                yield destinations
            return
        with stand.far_end() as self._far:
            yield (self._far.port,)

    def apart_s(self) -> float:
        netperf_s = len(_NETPERF_TESTS) * (_NETPERF_S + 1.0) if self.options.extra.get("netperf") else 0.0
        return netperf_s + bool(self.options.extra.get("softirq")) * (SOFTIRQ_S + 1)

    def apart(self, stand: Stand, subject: Subject, ports: tuple[int, ...], result: Result) -> None:
        if self.options.extra.get("softirq"):
            result.profiles.setdefault("softirq", {})[subject.name] = softirq_of(
                stand, subject, ports, "64B × 64", "exchange", connections=64
            )
        if self.options.extra.get("netperf"):
            self._netperf(stand, subject, result)

    def _netperf(self, stand: Stand, subject: Subject, result: Result) -> None:
        """netperf's own figures. It pins the number of its data port on either side of the forwarder."""
        if stand.topology.name == "loopback":
            raise BenchError("netperf's data port has one number on both sides of a forwarder: --topology netns")
        control, data = stand.free_port(), stand.free_port()
        with (
            stand.server(netperf.server_command(control), control),
            stand.subject(subject, control, data, same_ports=True) as running,
        ):
            for test in _NETPERF_TESTS:
                command = netperf.client_command(test, running.host, control, data, _NETPERF_S, _NETPERF_BYTES[test])
                with stand.client(command) as program:
                    figures = netperf.parse_keyvals(program.read_rest())
                result.profiles.setdefault("netperf", {}).setdefault(subject.name, {})[test] = figures

    def show(self, result: Result, console: Console) -> int:
        status = super().show(result, console)
        print_profiles(result, console)
        return status

    def measure(self, stand: Stand, running: Running, case: Case) -> Sample:
        parameters = dict(case.parameters)
        running, far = self.reach(running, parameters.pop("way", None))
        load = exchange_load(stand, running, far, seconds=self.seconds_each, **parameters)
        values = load_figures(load)
        if rate := case.parameters.get("rate"):
            values["offered_per_s"] = rate
            values["late_percent"] = 100 * load.figures["late"] / max(1.0, rate * self.seconds_each)
        return load.sample(case.name, values, histogram=load.figures["histogram"])


def load_figures(load: Load) -> dict[str, float | None]:
    operations = load.figures["operations"]
    return {
        "per_second": operations / load.figures["elapsed_s"],
        "cpu_us": load.spent.cpu_per(operations, 1e6),
        "total_cpu_us": load.spent.total_cpu_per(operations, 1e6),
        **percentiles_us(load.figures["histogram"]),
    }
