"""`udp`: datagrams through a forwarder: how many, how many are lost, what each costs, and how long they take."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

from bench.ambient import ambient_texts
from bench.errors import BenchError
from bench.experiment import Case, Experiment
from bench.extension import native
from bench.histogram import percentiles_us
from bench.meter import Spent, run_client
from bench.programs import python_command
from bench.results import Sample, SubjectInfo
from bench.stand import Counts, FarEnd, Running, Stand
from bench.subjects import Subject, choose_from
from bench.subjects.datagram import datagram_subjects

__all__ = [
    "Udp", "datagram_faults", "datagram_server", "offered_figures", "round_trip_figures", "settled_counts",
]  # fmt: skip

_SHAPES = ((64, 1), (1400, 1), (64, 100))
"""Bytes of a datagram, and the number of clients that send them."""
_WINDOW = 32
"""Datagrams under way where the question is how many there can be."""
_RATES = (50_000, 100_000)
_QUICK_RATES = (50_000,)
_WARM_UP_S = 0.2
_OVERHEAD_S = 0.3
"""The client's start and end."""
_QUIET_S = 0.1
"""How long a count must not change until it is the last."""


class Udp(Experiment):
    name = "udp"
    subjects = quick_subjects = ("floor", "oinetd", "peer")
    rounds, quick_rounds = 6, 2
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
                Case(f"{shape}, {rate} offered a second", length + 2 * _QUIET_S, {**load, "rate": rate})
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
        with datagram_server(stand) as self._far:
            yield (self._far.port,)

    def measure(self, stand: Stand, running: Running, case: Case) -> Sample:
        load = {**case.parameters, "seconds": self.seconds_each, "warm_up": _WARM_UP_S}
        what = "offer" if "rate" in load else "round-trips"
        before = self._far.counts()
        figures, spent = run_client(stand, running, what, module="bench.datagrams", **load)
        after = settled_counts(self._far)
        counted = after.since(before)
        if what == "offer":
            # What the client sent in its warm-up went the same way, and is in the count of the server.
            values = offered_figures(figures, counted["counted"], spent)
            detail: dict[str, Any] = {}
        elif not figures["operations"]:
            raise BenchError("no datagram was answered")
        else:
            values, detail = round_trip_figures(figures, spent), {"histogram": figures["histogram"]}
        return Sample(
            "", case.name, 0, values, detail=detail, invalid=datagram_faults(figures, counted) + spent.elsewhere,
            ambient=ambient_texts(spent.machine, 0.0, after.busy_since(before)), machine=dict(spent.machine),
        )  # fmt: skip


@contextlib.contextmanager
def datagram_server(stand: Stand) -> Iterator[FarEnd]:
    """The far end of datagrams."""
    port = stand.free_port()
    command = python_command("bench.datagrams", "serve", stand.topology.server_address, str(port))
    with stand.server(command, port, protocol="udp", pipe=True) as program:
        yield FarEnd(port, program)


def settled_counts(far: FarEnd) -> Counts:
    """What the server has counted when nothing has come for a moment."""
    counts = far.counts()
    deadline = time.monotonic() + 2.0
    while time.monotonic() < deadline:
        time.sleep(_QUIET_S)
        later = far.counts()
        if later.numbers == counts.numbers:
            break
        counts = later
    return counts


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


def offered_figures(figures: dict[str, Any], counted: int, spent: Spent) -> dict[str, float | None]:
    """What was offered and what reached the far end, each number once, so that loss is never negative.

    The count is of warm-up and timed load together; processor time is of the timed load.
    """
    sent = figures["sent"] + figures["warm_up_sent"]
    share = min(1.0, counted / sent) if sent else 0.0
    delivered = figures["sent"] * share
    return {
        "offered_per_s": figures["sent"] / figures["elapsed_s"],
        "datagrams_per_s": delivered / figures["elapsed_s"],
        "loss_percent": 100 * (1 - share) if sent else None,
        **_costs(spent, delivered),
    }


def datagram_faults(figures: dict[str, Any], counted: dict[str, int]) -> list[str]:
    """Why a load of datagrams is not what it says. Loss is no fault: it is a figure."""
    found = []
    doubled = figures.get("doubled", 0) + counted["doubled"]
    if doubled:
        found.append(f"{doubled} datagrams were doubled")
    wrong = figures.get("wrong", 0) + counted["wrong"]
    if wrong:
        found.append(f"{wrong} datagrams were changed, or not the other end's")
    if figures.get("every", 0) > counted["echoed"]:
        found.append(f"{figures['every'] - counted['echoed']} datagrams were answered that the server never saw")
    return found


def _percent(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None


def _costs(spent: Spent, datagrams: float) -> dict[str, float | None]:
    return {
        "cpu_s_per_million": spent.cpu_per(datagrams, 1e6),
        "total_cpu_s_per_million": spent.total_cpu_per(datagrams, 1e6),
    }
