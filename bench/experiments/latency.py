"""`latency`: round trips of small and large messages, on one connection and on many."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from rich.console import Console

from bench import netperf
from bench.errors import BenchError
from bench.experiment import Case, Experiment
from bench.extension import native
from bench.histogram import percentiles_us
from bench.meter import Spent, metered
from bench.programs import python_command
from bench.results import Result, Sample
from bench.stand import Running, Stand
from bench.subjects import Subject
from bench.subjects.subject import size_text
from bench.tables import print_profiles
from bench.tools import need

__all__ = ["Latency", "load_figures", "own_client", "run_client"]

_NETPERF_TESTS = ("TCP_RR", "TCP_CRR")
_NETPERF_BYTES = {"TCP_RR": 64, "TCP_CRR": 1}
_NETPERF_S = 3
_WARM_UP_S = 0.2
_OVERHEAD_S = 0.4
"""The client's start and end."""


class Latency(Experiment):
    name = "latency"
    subjects = ("floor", "oinetd", "peer", "reference")
    quick_subjects = ("direct", "native-auto", "native-copy", "python", "haproxy")
    rounds, quick_rounds = 5, 2
    seconds, quick_seconds = 2.0, 0.8
    warm_up_s = 0.0  # each case has its own, on the connections it then uses
    buffers = (65536,)

    def prepare(self) -> None:
        native()
        if self.options.extra.get("netperf"):
            need("netperf")
            need("netserver")

    def cases(self) -> list[Case]:
        sizes = (64, 16384) if self.options.quick else (32, 64, 1024, 4096, 16384, 65536)
        length = self.seconds_each + _WARM_UP_S + _OVERHEAD_S
        return [
            Case(f"{size_text(size)}B × {connections}", length, {"size": size, "connections": connections})
            for size in sizes
            for connections in (1, 64)
        ]

    @contextlib.contextmanager
    def server(self, stand: Stand) -> Iterator[tuple[int, ...]]:
        with stand.native_server("echo") as port:
            yield (port,)

    def apart_s(self) -> float:
        return len(_NETPERF_TESTS) * (_NETPERF_S + 1.0) if self.options.extra.get("netperf") else 0.0

    def apart(self, stand: Stand, subject: Subject, ports: tuple[int, ...], result: Result) -> None:
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
        figures, spent = run_client(
            stand, running, "round-trips", seconds=self.seconds_each, warm_up=_WARM_UP_S, **case.parameters
        )
        return Sample("", case.name, 0, load_figures(figures, spent), detail={"histogram": figures["histogram"]})


def own_client(running: Running, what: str, module: str = "bench.client", **options: Any) -> list[str]:
    """The command of the bench's own client, `module`."""
    flags: list[str] = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            flags.append(flag)
        elif value is not False:
            flags += [flag, str(value)]
    return python_command(module, what, running.host, str(running.port), *flags)


def run_client(
    stand: Stand, running: Running, what: str, module: str = "bench.client", **options: Any
) -> tuple[dict[str, Any], Spent]:
    """Run the bench's own client; its report, and the resource use from its `go` to its end."""
    command = own_client(running, what, module, **options)
    with stand.client(command) as program:
        program.read_line()
        with metered(stand, running) as spent:
            figures = json.loads(program.read_rest())
    return figures, spent


def load_figures(figures: dict[str, Any], spent: Spent) -> dict[str, float | None]:
    operations = figures["operations"]
    return {
        "per_second": operations / figures["elapsed_s"],
        "cpu_us": spent.cpu_per(operations, 1e6),
        "total_cpu_us": spent.total_cpu_per(operations, 1e6),
        **percentiles_us(figures["histogram"]),
    }
