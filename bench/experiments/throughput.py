"""`throughput`: iperf3 through each subject on one stream, on eight, and back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.console import Console

from bench.counters import with_ratios
from bench.errors import BenchError
from bench.experiment import Case, Experiment
from bench.flamegraph import flamegraph
from bench.iperf import Transfer, client_command, parse_transfer, server_command
from bench.meter import Spent, metered
from bench.profiling import count_events, count_syscalls, sample_stacks
from bench.programs import wait_until
from bench.results import Result, Sample
from bench.stand import Running, Stand
from bench.subjects import Subject
from bench.tables import print_profiles
from bench.tools import need

__all__ = ["Throughput"]

_APART = ("perf", "strace", "flamegraph")
_APART_S = 3
"""How long a run apart is looked at."""
_OVERHEAD_S = 0.4
"""iperf3's own beginning and end."""


class Throughput(Experiment):
    name = "throughput"
    tools = ("iperf3",)
    subjects = ("floor", "oinetd", "peer", "reference")
    quick_subjects = ("direct", "native-splice", "native-copy", "python", "haproxy-splice")
    warm_up_s = 1.0 + _OVERHEAD_S
    quick_seconds = 1.0

    def prepare(self) -> None:
        need("iperf3")
        for option, program in (("perf", "perf"), ("flamegraph", "perf"), ("strace", "strace")):
            if self.options.extra.get(option):
                need(program)
        if self.seconds_each < 1:
            raise BenchError("iperf3 counts in whole seconds: --seconds of at least 1")

    def cases(self) -> list[Case]:
        return [
            Case(name, int(self.seconds_each) + _OVERHEAD_S, {"streams": streams, "reverse": reverse})
            for name, streams, reverse in (("P1", 1, False), ("P8", 8, False), ("P1 reverse", 1, True))
        ]

    @contextlib.contextmanager
    def server(self, stand: Stand) -> Iterator[tuple[int, ...]]:
        port = stand.free_port()
        with stand.server(server_command(port), port):
            yield (port,)

    def warm_up(self, stand: Stand, running: Running) -> Sample | None:
        transfer, spent = self._transfer(stand, running, 1, 1, False)
        return Sample("", "warm-up", 0, _values(running, transfer, spent))

    def measure(self, stand: Stand, running: Running, case: Case) -> Sample:
        transfer, spent = self._transfer(stand, running, int(self.seconds_each), **case.parameters)
        error = "" if transfer.plausible else f"{transfer.lost_bytes} bytes were sent and did not arrive"
        detail = {
            "received_bytes": transfer.received_bytes,
            "sent_bytes": transfer.sent_bytes,
            "retransmits": transfer.retransmits,
        }
        return Sample("", case.name, 0, _values(running, transfer, spent), error=error, detail=detail)

    def apart_s(self) -> float:
        wanted = sum(bool(self.options.extra.get(option)) for option in _APART)
        return wanted * (_APART_S + 2 * _OVERHEAD_S + 1)

    def apart(self, stand: Stand, subject: Subject, ports: tuple[int, ...], result: Result) -> None:
        """Eight streams, and the tool in the middle of them."""
        if subject.family == "floor":
            return
        for option in _APART:
            if self.options.extra.get(option):
                with stand.subject(subject, *ports) as running:
                    command = client_command(running.host, running.port, _APART_S + 1, 8, False)
                    with stand.client(command) as load:
                        wait_until(lambda: running.account.cpu_times().total_s > 0.1, 5.0, "the load does not begin")
                        shown = self._look(option, stand, running)
                        assert load.process.stdout is not None
                        transfer = parse_transfer(load.process.stdout.read())
                if option != "flamegraph":
                    gigabytes = transfer.received_bytes / 1e9 * _APART_S / transfer.seconds
                    shown = {"gigabytes": gigabytes, **shown}
                result.profiles.setdefault(option, {})[subject.name] = shown

    def _look(self, option: str, stand: Stand, running: Running) -> dict[str, Any]:
        if option == "perf":
            return {"counts": with_ratios(count_events(running, _APART_S))}
        if option == "strace":
            return {"calls": [asdict(row) for row in count_syscalls(running, _APART_S, stand.directory)]}
        stacks = sample_stacks(running, _APART_S, stand.directory)
        self.options.out.mkdir(parents=True, exist_ok=True)
        path = self.options.out / f"flamegraph-{running.subject.name}.svg"
        path.write_text(flamegraph(stacks, f"{running.subject.name}: iperf3 -P 8"))
        return {"file": path.name, "samples": stacks.total()}

    def show(self, result: Result, console: Console) -> int:
        status = super().show(result, console)
        print_profiles(result, console)
        return status

    def _transfer(
        self, stand: Stand, running: Running, seconds: int, streams: int, reverse: bool
    ) -> tuple[Transfer, Spent]:
        command = client_command(running.host, running.port, seconds, streams, reverse)
        with metered(stand, running) as spent, stand.client(command) as program:
            # iperf3 tells its errors in the JSON, and ends with a status of 1.
            assert program.process.stdout is not None
            figures = program.process.stdout.read()
        return parse_transfer(figures), spent


def _values(running: Running, transfer: Transfer, spent: Spent) -> dict[str, float | None]:
    gigabytes = transfer.received_bytes / 1e9
    switches, migrations = spent.watch.rates()
    return {
        "gbit_s": transfer.gbit_s,
        "cpu_s_per_gb": spent.cpu_per(gigabytes),
        "total_cpu_s_per_gb": spent.total_cpu_per(gigabytes),
        "switches_per_s": switches,
        "migrations_per_s": migrations,
        **(spent.watch.memory_values() if running.pids else {}),
    }
