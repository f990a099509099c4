"""What `--with` makes of an experiment: the same loads in several ways, each beside the plain one of the same round."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich.console import Console

from bench.errors import BenchError
from bench.experiment import Case, Experiment, Options
from bench.results import Result, Sample
from bench.stand import FarEnd, Running, Stand
from bench.subjects import Destination, Subject
from bench.tables import print_ways
from bench.ways import PLAIN, Way, chosen_ways

__all__ = ["InWays"]

_SECONDS = 0.9
"""Of each load, unless `--seconds` says otherwise: the default subjects take less than five minutes with all ways."""

_NOT_WITH = {"perf", "strace", "flamegraph", "softirq", "netperf", "rate", "idle"}
"""Options of runs that have no ways."""


class InWays(Experiment):
    """An experiment whose loads can also be measured with PROXY headers, server names and unix sockets.

    One process of each subject has a route for each way. The ways take turns, in another order in each round.
    """

    way_subjects: tuple[str, ...] = ("native-auto", "haproxy", "haproxy-trixie", "nginx")
    way_cases: tuple[str, ...]
    """The cases that are measured in each way."""
    amount_key, cpu_key = "per_second", "cpu_us"
    _far: FarEnd
    """The server, if all is plain."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        names: list[str] = options.extra.get("with") or []
        self.way_names = [way.name for way in chosen_ways(names, "0.0.0.0")] if names else []
        if self.way_names and (other := _NOT_WITH & options.extra.keys()):
            raise BenchError(f"--with cannot be combined with {', '.join(f'--{name}' for name in sorted(other))}")
        if self.way_names and not options.seconds:
            self.seconds_each = min(self.seconds_each, _SECONDS)

    def plain_cases(self) -> list[Case]:
        raise NotImplementedError

    def cases(self) -> list[Case]:
        if not self.way_names:
            return self.plain_cases()
        return [
            Case(f"{case.name}, {way}", case.seconds, {**case.parameters, "way": way})
            for case in self.plain_cases()
            if case.name in self.way_cases
            for way in self.way_names
        ]

    def chosen(self) -> list[Subject]:
        if not self.way_names:
            return super().chosen()
        if not self.options.subjects:
            self.options.subjects = list(self.way_subjects)
        subjects = super().chosen()
        if unable := [subject.name for subject in subjects if not subject.ways]:
            raise BenchError(f"--with is for oinetd, haproxy and nginx, not for {', '.join(unable)}")
        return subjects

    def order(self, cases: Sequence[Case], number: int) -> list[Case]:
        """Each way comes first, in the middle and last, so that none has a better place than the plain one."""
        if not self.way_names:
            return list(cases)
        turned = [*cases[number % len(cases) :], *cases[: number % len(cases)]]
        return turned[::-1] if number % 2 else turned

    @contextlib.contextmanager
    def ways_server(self, stand: Stand) -> Iterator[tuple[Destination, ...]]:
        """A server for each way, which wants what comes before the hello there."""
        self._ways = {way.name: way for way in chosen_ways(self.way_names, stand.topology.client_address)}
        self._ends: dict[str, FarEnd] = {}
        with contextlib.ExitStack() as stack:
            for way in self._ways.values():
                path = stand.directory / "server.sock" if way.connect_unix else None
                self._ends[way.name] = stack.enter_context(stand.far_end(way.expects, path))
            yield tuple(self._destination(stand, way) for way in self._ways.values())

    def _destination(self, stand: Stand, way: Way) -> Destination:
        path = str(stand.directory / "server.sock") if way.connect_unix else ""
        return Destination(self._ends[way.name].port, way.name, path, way.listen_unix)

    def reach(self, running: Running, name: str | None) -> tuple[Running, FarEnd]:
        """Where the clients of a case connect, what they send first, and the server that is behind it."""
        if name is None:
            return running, self._far
        target = running.targets[list(self._ways).index(name)]
        return replace(running, targets=(target,), preamble=self._ways[name].sends), self._ends[name]

    def finish(self, result: Result) -> None:
        """Fill in what each way costs, in per cent of the plain one of the same subject and round."""
        if not self.way_names:
            return
        plain = {
            (sample.subject, sample.round, load): sample
            for sample in result.samples
            for load, _, way in [sample.case.rpartition(", ")]
            if way == PLAIN and _sound(sample)
        }
        for sample in result.samples:
            load, _, way = sample.case.rpartition(", ")
            beside = plain.get((sample.subject, sample.round, load))
            if way == PLAIN or beside is None or not _sound(sample):
                continue
            amount, usual = sample.values.get(self.amount_key), beside.values.get(self.amount_key)
            if amount and usual:
                sample.values["lost_percent"] = 100 * (1 - amount / usual)
            cpu, usual = sample.values.get(self.cpu_key), beside.values.get(self.cpu_key)
            if cpu and usual:
                sample.values["more_cpu_percent"] = 100 * (cpu / usual - 1)

    def show(self, result: Result, console: Console) -> int:
        if not self.way_names:
            return super().show(result, console)
        print_ways(result, console)
        return result.status()


def _sound(sample: Sample) -> bool:
    return not (sample.error or sample.invalid or sample.warm_up)
