"""`udp`: datagrams through a forwarder: how many, how many are lost, what each costs, and how long they take."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from bench.errors import BenchError
from bench.experiment import Case, Experiment
from bench.experiments.latency import run_client
from bench.extension import native
from bench.histogram import percentiles_us
from bench.meter import Spent
from bench.programs import python_command
from bench.results import Sample, SubjectInfo
from bench.stand import Running, Stand
from bench.subjects import Subject, choose_from
from bench.subjects.datagram import datagram_subjects

__all__ = ["Udp", "offered_figures", "round_trip_figures"]

_SHAPES = ((64, 1), (1400, 1), (64, 100))
"""Bytes of a datagram, and the number of clients that send them."""
_WINDOW = 32
"""Udp under way where the question is how many there can be."""
_RATES = (50_000, 100_000)
_QUICK_RATES = (50_000,)
_WARM_UP_S = 0.1
_OVERHEAD_S = 0.4
"""The client's start and end."""
_SETTLE_S = 0.25
"""Until the far end has counted the last, before and after a load."""


class Udp(Experiment):
    name = "udp"
    subjects = quick_subjects = ("floor", "oinetd", "peer")
    rounds, quick_rounds = 5, 1
    seconds, quick_seconds = 2.0, 0.5
    warm_up_s = 0.0

    def prepare(self) -> None:
        native()

    def chosen(self) -> list[Subject]:
        names = self.options.subjects or list(self.subjects)
        return choose_from(datagram_subjects(self.options.peers), names)

    def cases(self) -> list[Case]:
        rates = self.options.extra.get("rate") or (_QUICK_RATES if self.options.quick else _RATES)
        length = self.seconds_each + _WARM_UP_S + _OVERHEAD_S
        cases = []
        for size, clients in _SHAPES:
            load = {"size": size, "clients": clients}
            shape = f"{size}B × {clients}"
            cases.append(Case(f"{shape}, one under way each", length, {**load, "window": 1}))
            if clients < _WINDOW:
                cases.append(Case(f"{shape}, {_WINDOW} under way", length, {**load, "window": _WINDOW}))
            cases += [
                Case(f"{shape}, {rate} offered a second", length + 2 * _SETTLE_S, {**load, "rate": rate})
                for rate in rates
            ]
        return cases

    def check(self, stand: Stand, subject: Subject, figures: SubjectInfo) -> None:
        """Fill in whether datagrams come back as they were sent; there is no half-close to pass on."""
        try:
            with self.server(stand) as ports, stand.subject(subject, *ports) as running:
                command = python_command("bench.datagrams", "verify", running.host, str(running.port))
                with stand.client(command) as program:
                    figures.integrity = json.loads(program.read_rest())["integrity"]
        except BenchError as error:
            figures.unavailable = str(error)

    @contextlib.contextmanager
    def server(self, stand: Stand) -> Iterator[tuple[int, ...]]:
        port = stand.free_port()
        host = stand.topology.server_address
        with stand.server(python_command("bench.datagrams", "serve", host, str(port)), port, protocol="udp"):
            self._sink = f"{host}:{port}"
            yield (port,)

    def measure(self, stand: Stand, running: Running, case: Case) -> Sample:
        load = {**case.parameters, "seconds": self.seconds_each, "warm_up": _WARM_UP_S}
        if "rate" in load:
            figures, spent = run_client(stand, running, "offer", module="bench.datagrams", sink=self._sink, **load)
            return Sample("", case.name, 0, offered_figures(figures, spent))
        figures, spent = run_client(stand, running, "round-trips", module="bench.datagrams", **load)
        if not figures["operations"]:
            raise BenchError("no datagram was answered")
        return Sample("", case.name, 0, round_trip_figures(figures, spent), detail={"histogram": figures["histogram"]})


def round_trip_figures(figures: dict[str, Any], spent: Spent) -> dict[str, float | None]:
    """An answered datagram was forwarded twice, there and back; one is lost when its answer does not come."""
    forwarded = 2 * figures["operations"]
    return {
        "datagrams_per_s": forwarded / figures["elapsed_s"],
        "loss_percent": _percent(figures["lost"], figures["operations"] + figures["lost"]),
        "stray_percent": _percent(figures["strays"], figures["operations"] + figures["strays"]),
        **_costs(spent, forwarded),
        **percentiles_us(figures["histogram"]),
    }


def offered_figures(figures: dict[str, Any], spent: Spent) -> dict[str, float | None]:
    """What was offered and what reached the far end, in one direction; processor time is for those that did."""
    return {
        "offered_per_s": figures["sent"] / figures["elapsed_s"],
        "datagrams_per_s": figures["delivered"] / figures["elapsed_s"],
        "loss_percent": _percent(figures["sent"] - figures["delivered"], figures["sent"]),
        **_costs(spent, figures["delivered"]),
    }


def _percent(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None


def _costs(spent: Spent, datagrams: int) -> dict[str, float | None]:
    return {
        "cpu_s_per_million": spent.cpu_per(datagrams, 1e6),
        "total_cpu_s_per_million": spent.total_cpu_per(datagrams, 1e6),
    }
