"""`throughput`: bulk through each subject on one stream, on eight, and back; every byte checked, iperf3 beside it."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console

from bench.counters import with_ratios
from bench.errors import BenchError
from bench.experiment import Case
from bench.experiments.ways import InWays
from bench.extension import native
from bench.flamegraph import flamegraph
from bench.iperf import Transfer, client_command, parse_transfer, server_command
from bench.loads import Load, bulk_load
from bench.meter import Spent, metered
from bench.meter import client_command as own_command
from bench.profiling import SOFTIRQ_S, count_events, count_syscalls, sample_stacks, softirq_of
from bench.results import Result, Sample
from bench.stacks import fold, softirq_share
from bench.stand import WARM_UP_S, Running, Stand
from bench.subjects import Destination, Subject
from bench.tables import print_profiles
from bench.tools import available, need

__all__ = ["Throughput"]

_APART = ("perf", "strace", "flamegraph")
_APART_S = 3
"""How long a run apart is looked at."""
_OVERHEAD_S = 0.3
"""iperf3's own beginning and end."""


class Throughput(InWays):
    name = "throughput"
    way_cases = ("P1",)
    way_subjects = ("native-auto", "native-splice", "haproxy", "haproxy-splice", "haproxy-splice-trixie", "nginx")
    amount_key, cpu_key = "gbit_s", "cpu_s_per_gb"
    tools = ("iperf3",)
    subjects = ("floor", "oinetd", "peer", "reference")
    quick_subjects = ("direct", "native-splice", "native-copy", "python", "haproxy-splice")
    warm_up_s = 0.0  # each load has its own, on the connections that are then timed
    quick_seconds = 1.0

    def cases_of(self, subject: Subject, cases: Sequence[Case]) -> list[Case]:
        """Of another buffer than the default one stream up is enough: it is what the sizes are compared by."""
        return [case for case in cases if "@" not in subject.name or case.name == "P1"] or list(cases)

    def prepare(self) -> None:
        native()
        for option, program in (("perf", "perf"), ("flamegraph", "perf"), ("strace", "strace")):
            if self.options.extra.get(option):
                need(program)

    @property
    def iperf(self) -> bool:
        """Whether iperf3 is run beside the bench's own load."""
        return available("iperf3") is not None and not self.way_names and not self.options.extra.get("no_iperf3")

    def plain_cases(self) -> list[Case]:
        length = self.seconds_each + WARM_UP_S + _OVERHEAD_S
        if self.iperf:
            length += self._iperf_seconds + _OVERHEAD_S
        return [
            Case(name, length, {"streams": streams, "reverse": reverse})
            for name, streams, reverse in (("P1", 1, False), ("P8", 8, False), ("P1 reverse", 1, True))
        ]

    @property
    def _iperf_seconds(self) -> int:
        """iperf3 counts in whole seconds."""
        return max(1, int(self.seconds_each / 2))

    @contextlib.contextmanager
    def server(self, stand: Stand) -> Iterator[tuple[int | Destination, ...]]:
        if self.way_names:
            with self.ways_server(stand) as destinations:
                yield destinations
            return
        with contextlib.ExitStack() as stack:
            self._far = stack.enter_context(stand.far_end())
            ports = [self._far.port]
            if self.iperf:
                ports.append(stand.free_port())
                stack.enter_context(stand.server(server_command(ports[-1]), ports[-1]))
            yield tuple(ports)

    def measure(self, stand: Stand, running: Running, case: Case) -> Sample:
        running, far = self.reach(running, case.parameters.get("way"))
        load = bulk_load(
            stand, running, far, connections=case.parameters["streams"], up=not case.parameters["reverse"],
            seconds=self.seconds_each,
        )  # fmt: skip
        values = _values(running, load)
        detail = {"bytes": _moved(load), "streams": load.figures["streams"]}
        if self.iperf and not load.invalid:
            with contextlib.suppress(BenchError):  # a second opinion, and not what is measured
                transfer, spent = self._transfer(stand, running, self._iperf_seconds, **case.parameters)
                values["iperf_gbit_s"] = transfer.gbit_s
                values["iperf_cpu_s_per_gb"] = spent.cpu_per(transfer.received_bytes / 1e9)
                detail["retransmits"] = transfer.retransmits
        return load.sample(case.name, values, **detail)

    def apart_s(self) -> float:
        wanted = sum(bool(self.options.extra.get(option)) for option in _APART)
        return wanted * (_APART_S + 2 * _OVERHEAD_S + 1) + bool(self.options.extra.get("softirq")) * (SOFTIRQ_S + 1)

    def apart(self, stand: Stand, subject: Subject, ports: tuple[int, ...], result: Result) -> None:
        """Eight streams, and the tool in the middle of them."""
        if self.options.extra.get("softirq") and "@" not in subject.name:
            result.profiles.setdefault("softirq", {})[subject.name] = softirq_of(
                stand, subject, ports, "eight streams up", "upload", connections=8
            )
        if subject.family == "floor":
            return
        for option in _APART:
            if self.options.extra.get(option):
                with stand.subject(subject, *ports) as running:
                    command = own_command(
                        running, "upload", connections=8, seconds=_APART_S + 1, warm_up=stand.warm_up_s,
                        threads=stand.cores.loads,
                    )  # fmt: skip
                    with stand.client(command) as load:
                        load.begun()
                        shown = self._look(option, stand, running)
                        load.read_line()
                        figures = json.loads(load.read_rest())
                gigabytes = sum(figures["streams"]) / 1e9 * _APART_S / figures["elapsed_s"]
                shown = {"gigabytes": gigabytes, **shown}
                result.profiles.setdefault(option, {})[subject.name] = shown

    def _look(self, option: str, stand: Stand, running: Running) -> dict[str, Any]:
        if option == "perf":
            return {"counts": with_ratios(count_events(running, _APART_S))}
        if option == "strace":
            return {"calls": [asdict(row) for row in count_syscalls(running, _APART_S, stand.directory)]}
        stacks = sample_stacks(running, _APART_S, stand.directory)
        self.options.out.mkdir(parents=True, exist_ok=True)
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        path = self.options.out / f"flamegraph-{stamp}-{running.subject.name}.svg"
        path.write_text(flamegraph(stacks, f"{running.subject.name}: eight streams up"))
        return {
            "file": path.name, "samples": stacks.total(), "softirq": softirq_share(stacks), "stacks": fold(stacks),
        }  # fmt: skip

    def show(self, result: Result, console: Console) -> int:
        status = super().show(result, console)
        print_profiles(result, console)
        return status

    def _transfer(
        self, stand: Stand, running: Running, seconds: int, streams: int, reverse: bool
    ) -> tuple[Transfer, Spent]:
        host, port = running.targets[1]
        command = client_command(host, port, seconds, streams, reverse)
        with metered(stand, running) as spent, stand.client(command) as program:
            # iperf3 tells its errors in the JSON, and ends with a status of 1.
            assert program.process.stdout is not None
            figures = program.process.stdout.read()
        return parse_transfer(figures), spent


def _moved(load: Load) -> int:
    return sum(load.figures["streams"])


def _values(running: Running, load: Load) -> dict[str, float | None]:
    moved, spent = _moved(load), load.spent
    switches, migrations = spent.watch.rates()
    return {
        "gbit_s": moved * 8 / load.figures["elapsed_s"] / 1e9,
        "cpu_s_per_gb": spent.cpu_per(moved / 1e9),
        "total_cpu_s_per_gb": spent.total_cpu_per(moved / 1e9),
        "switches_per_s": switches,
        "migrations_per_s": migrations,
        **(spent.watch.memory_values() if running.pids else {}),
    }
