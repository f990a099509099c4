"""`throughput`: iperf3 through each subject on one stream, on eight, and back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from bench.errors import BenchError
from bench.experiment import Case, Experiment
from bench.iperf import Transfer, client_command, parse_transfer, server_command
from bench.meter import Spent, metered
from bench.results import Sample
from bench.stand import Running, Stand
from bench.tools import need

__all__ = ["Throughput"]

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

    def _transfer(
        self, stand: Stand, running: Running, seconds: int, streams: int, reverse: bool
    ) -> tuple[Transfer, Spent]:
        command = client_command(running.host, running.port, seconds, streams, reverse)
        with metered(stand, running) as spent, stand.client(command) as program:
            # iperf3 tells its errors in the JSON, and ends with a status of 1.
            assert program.process.stdout is not None
            told = program.process.stdout.read()
        return parse_transfer(told), spent


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
