"""`scaling`: one thread to as many as there are cores, one connection to ten thousand, lasting and short ones.

A worker is a thread of oinetd or HAProxy, a process of nginx. The imbalance is the processor time of the busiest by the
mean of all: 1 is even, and the number of workers if one does everything.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.errors import BenchError
from bench.experiment import Case, Experiment
from bench.experiments.latency import load_figures
from bench.extension import native
from bench.loads import Load, exchange_load, short_load
from bench.programs import descriptor_limit
from bench.results import Sample
from bench.stand import WARM_UP_S, Running, Stand
from bench.subjects import Setup, Subject, choose_from
from bench.subjects.oinetd import Oinetd
from bench.subjects.peers import Haproxy, Nginx
from bench.subjects.trixie import TrixieHaproxy, TrixieNginx
from bench.topology import Topology

__all__ = ["Scaling", "Threaded", "Workers", "imbalance", "thread_times"]

CONNECTIONS, QUICK_CONNECTIONS = (1, 10, 100, 1000, 10000), (1, 64, 1000)
SHORT_CONNECTIONS, QUICK_SHORT_CONNECTIONS = (1, 10, 100, 1000), (1, 64)
_OVERHEAD_S = 0.4
_OPENING_PER_S = 4000
_OWN_DESCRIPTORS = 1200
_WORKING_SHARE = 0.05
_LOOK_S = 0.2


class Threaded(Subject):
    """A subject with a number of threads of its own."""

    def __init__(self, subject: Subject, threads: int) -> None:
        self.subject = subject
        self.threads = threads
        self.name = f"{subject.name}×{threads}"
        self.family = subject.family
        self.base = subject.base
        self.buffer_bytes = subject.buffer_bytes

    def unavailable(self, topology: Topology) -> str | None:
        return self.subject.unavailable(topology)

    def version(self) -> str:
        return self.subject.version()

    def commands(self, setup: Setup) -> list[list[str]]:
        return self.subject.commands(replace(setup, threads=self.threads))

    def environment(self) -> dict[str, str]:
        return self.subject.environment()


class Scaling(Experiment):
    name = "scaling"
    subjects = quick_subjects = ("oinetd", "peer")
    rounds, quick_rounds = 3, 1
    seconds, quick_seconds = 3.0, 1.0
    warm_up_s = 0.0

    def prepare(self) -> None:
        native()

    def chosen(self) -> list[Subject]:
        cores = os.cpu_count() or 1
        counts = self.options.threads or ([1, cores] if self.options.quick else list(range(1, cores + 1)))
        kinds: list[Subject] = [
            Oinetd("native-auto", "native", "auto"),
            Haproxy(splice=False),
            TrixieHaproxy(splice=False),
            Nginx(),
            TrixieNginx(),
        ]
        known = [Threaded(kind, count) for kind in kinds for count in dict.fromkeys(counts)]
        return choose_from(known, self.options.subjects or list(self.subjects))

    def cases(self) -> list[Case]:
        most = (descriptor_limit() - _OWN_DESCRIPTORS) // 2  # a forwarder needs two for each
        length = self.seconds_each + WARM_UP_S + _OVERHEAD_S
        lasting = QUICK_CONNECTIONS if self.options.quick else CONNECTIONS
        short = QUICK_SHORT_CONNECTIONS if self.options.quick else SHORT_CONNECTIONS
        return [
            *(
                Case(f"64B × {count}", length + count / _OPENING_PER_S, {"what": "exchange", "connections": count})
                for count in (min(each, most) for each in lasting)
            ),
            *(Case(f"connect/close × {count}", length, {"what": "short", "connections": count}) for count in short),
        ]

    @contextlib.contextmanager
    def server(self, stand: Stand) -> Iterator[tuple[int, ...]]:
        with stand.far_end() as self._far:
            yield (self._far.port,)

    def measure(self, stand: Stand, running: Running, case: Case) -> Sample:
        subject, count = running.subject, case.parameters["connections"]
        if not isinstance(subject, Threaded):
            raise BenchError(f"{subject.name} has no number of threads")
        load: Load
        with Workers(running) as workers:
            if case.parameters["what"] == "exchange":
                load = exchange_load(
                    stand, running, self._far, connections=count, up=64, down=64, seconds=self.seconds_each
                )
            else:
                load = short_load(stand, running, self._far, connections=count, seconds=self.seconds_each)
        values: dict[str, float | None] = {**load_figures(load), **workers.values(subject.threads)}
        if "failures" in load.figures and case.parameters["what"] == "short":
            values["failures"] = load.figures["failures"]
        return load.sample(case.name, values)


class Workers:
    """The processor time of each thread of a subject while a load runs, looked at five times a second.

    Only the looks in the middle half count: the load begins after the first ones and ends before the last.
    """

    def __init__(self, running: Running) -> None:
        self._running = running
        self._looks: list[dict[int, float]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="bench-workers")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(_LOOK_S):
            self._looks.append(thread_times(self._running.account.pids()))

    def values(self, workers: int) -> dict[str, float | None]:
        """Figures of the busiest of so many workers."""
        spent = self._spent()
        if spent is None:
            return {}
        found, windows = spent
        index, working = imbalance(found, workers)
        busiest = max(found, default=0.0)
        return {"imbalance": index, "working": working, "busiest_percent": 100 * busiest / (windows * _LOOK_S)}

    def _spent(self) -> tuple[list[float], int] | None:
        """What each thread has used between two looks, during the part of the load with the most work."""
        if len(self._looks) < 3:
            return None
        totals = [sum(look.values()) for look in self._looks]
        length = max(1, (len(self._looks) - 1) // 2)
        begin = max(range(len(totals) - length), key=lambda at: totals[at + length] - totals[at])
        first, last = self._looks[begin], self._looks[begin + length]
        return [seconds - first.get(thread, 0.0) for thread, seconds in last.items()], length


def imbalance(spent: Sequence[float], workers: int) -> tuple[float | None, int]:
    """The busiest by the mean of so many workers, those with the most work; and how many did any to speak of."""
    most = sorted(spent, reverse=True)[:workers]
    total = sum(most)
    if not total:
        return None, 0
    return most[0] * workers / total, sum(each >= _WORKING_SHARE * most[0] for each in most)


def thread_times(pids: Sequence[int]) -> dict[int, float]:
    """Processor seconds of each thread."""
    ticks: Any = os.sysconf("SC_CLK_TCK")
    times = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                with contextlib.suppress(OSError):
                    found = _scheduled(task)
                    if found is None:
                        fields = (task / "stat").read_text().rpartition(")")[2].split()
                        found = (int(fields[11]) + int(fields[12])) / ticks
                    times[int(task.name)] = found
    return times


def _scheduled(task: Path) -> float | None:
    """Seconds on a core by the scheduler's own count, which is finer than ticks; None if the kernel has none."""
    try:
        return int((task / "schedstat").read_text().split()[0]) / 1e9
    except (OSError, ValueError, IndexError):
        return None
