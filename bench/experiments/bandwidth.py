"""`bandwidth`: what of a bound is reached, how evenly, and what the bounding costs.

TCP: downloads whose far end sends as fast as it may; `no bound` is requests at a rate that asks for as much, through
the same forwarder without a bound: what is left is the cost of bounding. UDP: twice as much as may pass is offered, and
the far end counts.
"""

from __future__ import annotations

import contextlib
import math
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from bench.ambient import ambient_texts
from bench.errors import BenchError
from bench.experiment import Case, Experiment
from bench.experiments.udp import datagram_faults, datagram_server, settled_counts
from bench.extension import native
from bench.loads import bulk_load, exchange_load
from bench.meter import Spent, run_client
from bench.results import Sample
from bench.stand import Counts, Running, Stand
from bench.subjects import Destination, Subject, choose_from
from bench.subjects.bandwidth import bandwidth_subjects, over_udp
from bench.tools import need
from bench.ways import PLAIN

__all__ = ["Bandwidth", "evenness", "within_window"]

MIB, KIB = 1 << 20, 1 << 10
NO_BOUND = "no bound"
BOUNDS = ("bandwidth", "bandwidth-per-source", "bandwidth-per-rule")
_SHAPES = ((1, 10 * MIB), (100, MIB))
"""Connections, and bytes a second of each."""
_UDP_SHAPES = ((1, 10 * MIB), (100, 100 * KIB))
_DATAGRAM = 1400
_EXCESS = 2
"""How many times the bound is offered."""
_PIECE = 64 * KIB
"""Of what is asked for at a time without a bound."""
_LEAST_WARM_UP_S = 0.6
"""Until what a full bucket lends has passed."""
PIECE_S = 0.25
"""What oinetd moves at a time, in seconds of the bound: a window of whole pieces does not depend on where it begins."""
_SLICES = 128
"""Into which the client divides warm-up and timed load together."""
_OVERHEAD_S = 2.5
"""Until what was under way at the end has come through the bound."""
_SEND_BUFFER = MIB
"""The most that the far end holds for each connection, so that this does not take longer than the load."""
_GIGA = 1e9


class Bandwidth(Experiment):
    name = "bandwidth"
    subjects = quick_subjects = ("native-splice", "native-copy", "python", "peer")
    rounds, quick_rounds = 3, 1
    seconds, quick_seconds = 10.0, 2.0
    warm_up_s = 0.0

    @property
    def warm_up_each(self) -> float:
        """Such that a piece is a whole number of the slices that the client counts in."""
        most = _SLICES * PIECE_S
        return max(_LEAST_WARM_UP_S, most / max(1, most // (self.seconds_each + _LEAST_WARM_UP_S)) - self.seconds_each)

    def prepare(self) -> None:
        native()

    def chosen(self) -> list[Subject]:
        return choose_from(bandwidth_subjects(self.options.buffers), self.options.subjects or list(self.subjects))

    def cases(self) -> list[Case]:
        found = []
        for transport, shapes, last in (("", _SHAPES, [NO_BOUND]), ("UDP, ", _UDP_SHAPES, [])):
            for count, each in shapes:
                for bound in (*BOUNDS, *last):
                    load: dict[str, Any] = {"udp": bool(transport), "connections": count, "bytes": count * each}
                    size = each if bound == BOUNDS[0] else count * each
                    load["way"] = PLAIN if bound == NO_BOUND else f"{bound}={size // KIB}K"
                    shape = f"{count} × {each // MIB} MiB/s" if each >= MIB else f"{count} × {each // KIB} KiB/s"
                    length = self.warm_up_each + self.seconds_each + _OVERHEAD_S
                    found.append(Case(f"{transport}{shape}, {bound}", length, load))
        return found

    def cases_of(self, subject: Subject, cases: Sequence[Case]) -> list[Case]:
        return [case for case in cases if not case.parameters["udp"] or over_udp(subject)]

    @contextlib.contextmanager
    def server(self, stand: Stand) -> Iterator[tuple[Destination, ...]]:
        """One far end for each transport; a forwarder has a route for each bound of TCP."""
        with stand.far_end() as self._far, datagram_server(stand) as self._datagrams:
            ways = [case.parameters["way"] for case in self.cases() if not case.parameters["udp"]]
            self._ways = list(dict.fromkeys(ways))
            if stand.topology.server.namespace:  # which goes with the run
                setting = f"net.ipv4.tcp_wmem=4096 16384 {_SEND_BUFFER}"
                words = stand.topology.server.enter([need("sysctl"), "-qw", setting])
                subprocess.run(words, check=True, capture_output=True)
            yield tuple(Destination(self._far.port, way) for way in self._ways)

    def measure(self, stand: Stand, running: Running, case: Case) -> Sample:
        load = case.parameters
        if load["udp"]:
            return self._offered(stand, running, case)
        at = running.targets[self._ways.index(load["way"])]
        route = replace(running, targets=(at,))
        if load["way"] == PLAIN:
            return self._asked(stand, route, case)
        done = bulk_load(
            stand, route, self._far, connections=load["connections"], up=False, seconds=self.seconds_each,
            warm_up=self.warm_up_each,
        )  # fmt: skip
        passed = within_window(done.figures["slices"], done.figures["slice_s"], self.warm_up_each)
        least, most = evenness(done.figures["flows"], done.figures["elapsed_s"])
        share = 100 * load["connections"] / load["bytes"]
        values = {
            "reached_percent": 100 * passed / load["bytes"],
            "least_percent": least * share,
            "most_percent": most * share,
            **_costs(done.spent, sum(done.figures["streams"]), passed),
        }
        return done.sample(case.name, values)

    def _asked(self, stand: Stand, route: Running, case: Case) -> Sample:
        """As many bytes as the bound would let pass, without one: the clients ask for them at that rate."""
        load = case.parameters
        done = exchange_load(
            stand, route, self._far, connections=load["connections"], up=64, down=_PIECE, seconds=self.seconds_each,
            rate=load["bytes"] / _PIECE, warm_up=self.warm_up_each,
        )  # fmt: skip
        moved = done.figures["operations"] * _PIECE
        rate = moved / done.figures["elapsed_s"]
        values = {"reached_percent": 100 * rate / load["bytes"], **_costs(done.spent, moved, rate)}
        return done.sample(case.name, values)

    def _offered(self, stand: Stand, running: Running, case: Case) -> Sample:
        """Datagrams for which there is no room are lost, which is no fault here."""
        load, subject = case.parameters, over_udp(running.subject)
        if subject is None:
            raise BenchError(f"{running.subject.name} bounds no datagrams")
        at_go: list[Counts] = []
        with stand.subject(subject, Destination(self._datagrams.port, load["way"])) as fresh:
            before = self._datagrams.counts()
            figures, spent = run_client(
                stand, fresh, "offer", module="bench.datagrams", size=_DATAGRAM, clients=load["connections"],
                rate=_EXCESS * load["bytes"] // _DATAGRAM, seconds=self.seconds_each, warm_up=self.warm_up_each,
                on_go=lambda: at_go.append(self._datagrams.counts()),
            )  # fmt: skip
            after = settled_counts(self._datagrams)
        passed = after.since(at_go[0])["counted"]
        moved = passed * _DATAGRAM
        rate = moved / figures["elapsed_s"]
        values: dict[str, float | None] = {
            "reached_percent": 100 * rate / load["bytes"],
            "loss_percent": 100 * (1 - passed / figures["sent"]) if figures["sent"] else None,
            **_costs(spent, moved, rate),
        }
        detail: dict[str, Any] = {"configuration": fresh.configuration}
        faults = datagram_faults(figures, after.since(before)) + spent.elsewhere
        return Sample(
            "", case.name, 0, values, detail=detail, invalid=faults,
            ambient=ambient_texts(spent.machine, 0.0, after.busy_since(before)), machine=dict(spent.machine),
        )  # fmt: skip


def _costs(spent: Spent, moved: float, rate: float) -> dict[str, float | None]:
    """Of each byte, and of so many in each second: after the end of the time less is moved than in it."""
    each = spent.cpu_per(moved)
    return {
        "cpu_percent": None if each is None else 100 * each * rate,
        "cpu_s_per_gb": spent.cpu_per(moved, _GIGA),
    }


def within_window(slices: Sequence[float], slice_s: float, warm_up_s: float) -> float:
    """Bytes a second of the timed part, from amounts in equal parts of warm-up and timed load together.

    The last part holds what came after the end as well, and is left out, as is what is no whole piece.
    """
    timed = slices[math.ceil(warm_up_s / slice_s - 1e-6) : -1]
    of_a_piece = max(1, round(PIECE_S / slice_s))
    timed = timed[: len(timed) // of_a_piece * of_a_piece] or timed
    return sum(timed) / (len(timed) * slice_s)


def evenness(flows: Sequence[dict[str, Any]], elapsed_s: float) -> tuple[float, float]:
    """Bytes a second of the slowest and of the fastest stream, each until its own end."""
    last = max(flow["ended_ns"] for flow in flows)
    rates = [
        (flow["moved"] - flow["at_go"]) / max(elapsed_s - (last - flow["ended_ns"]) / _GIGA, 1e-3) for flow in flows
    ]
    return min(rates), max(rates)
