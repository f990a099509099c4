"""`moves`: what moving a connection between threads costs, and how soon threads share 64 connections of one of them.

Evenness: 64 connections for each thread are opened, and 64 that one thread has become busy; the others stay silent.
They carry messages in one direction, and every forwarder has a buffer of 2 KiB: so it reads and writes each message in
parts, has more to do than client and server together, and there is room for another thread of it on two cores. The
processor time of each thread is looked at every 50 ms. The threads are even from the first window of 100 ms on in which
the busiest did at most 1.2 times the mean of all, if that holds for the rest of the load.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

from bench.errors import BenchError
from bench.experiment import Case, Experiment
from bench.experiments.scaling import Threaded, imbalance, thread_times
from bench.pollers import clients_by_poller
from bench.programs import Program, plain_python_command, python_command
from bench.results import Sample, SubjectInfo
from bench.stand import Running, Stand
from bench.subjects import Subject, choose_from
from bench.subjects.oinetd import Oinetd
from bench.subjects.peers import Haproxy, Nginx
from bench.subjects.trixie import TrixieHaproxy, TrixieNginx

__all__ = ["EVEN", "Moves", "even_after"]

CONNECTIONS = 64
EVEN = 1.2
COST_CASE, EVEN_CASE = "a move", f"{CONNECTIONS} busy ones of one thread"
RATE = 250
"""Messages a second on each connection: about as many as one thread with a small buffer can do on a slow machine."""
BUFFER_BYTES = 2048
_LOOK_S, _WINDOW_LOOKS = 0.05, 2
_SETTLE_S = 0.3
_COST_S, _QUICK_COST_S = 4.0, 1.0

Look = tuple[float, dict[int, float]]


class Moves(Experiment):
    name = "moves"
    subjects = quick_subjects = ("oinetd", "peer")
    rounds, quick_rounds = 5, 1
    seconds, quick_seconds = 2.5, 2.0
    warm_up_s = 0.0

    def chosen(self) -> list[Subject]:
        counts = self.options.threads or [max(2, os.cpu_count() or 1)]
        kinds: list[Subject] = [
            Oinetd("native-copy", "native", "copy", BUFFER_BYTES),
            Haproxy(splice=False),
            TrixieHaproxy(splice=False),
            Nginx(),
            TrixieNginx(),
        ]
        for kind in kinds:
            kind.buffer_bytes = BUFFER_BYTES
        known = [Threaded(kind, count) for kind in kinds for count in dict.fromkeys(counts)]
        return choose_from(known, self.options.subjects or list(self.subjects))

    def cases(self) -> list[Case]:
        cost_s = _QUICK_COST_S if self.options.quick else _COST_S
        return [Case(COST_CASE, cost_s), Case(EVEN_CASE, self.seconds_each + _SETTLE_S + 1.0)]

    def cases_of(self, subject: Subject, cases: Sequence[Case]) -> list[Case]:
        """A move is oinetd's alone: the others have none."""
        return [case for case in cases if case.name != COST_CASE or subject.family == "oinetd"]

    def check(self, stand: Stand, subject: Subject, info: SubjectInfo) -> None:
        """The server compares every byte."""

    @contextlib.contextmanager
    def server(self, stand: Stand) -> Iterator[tuple[int, ...]]:
        port = stand.free_port()
        command = plain_python_command("bench.messages", "serve", stand.topology.server_address, str(port))
        with stand.server(command, port, pipe=True) as self._far:
            yield (port,)

    def measure(self, stand: Stand, running: Running, case: Case) -> Sample:
        if case.name == COST_CASE:
            return self._cost(stand)
        subject = running.subject
        if not isinstance(subject, Threaded):
            raise BenchError(f"{subject.name} has no number of threads")
        (rate,) = self.options.extra.get("rate") or (RATE,)
        words = {"connections": CONNECTIONS * subject.threads, "seconds": self.seconds_each, "rate": rate}
        command = plain_python_command("bench.messages", "load", running.host, str(running.port))
        for name, value in words.items():
            command += [f"--{name}", str(value)]
        before = json.loads(self._far.ask())
        with stand.client(command) as client:
            client.read_line()
            time.sleep(_SETTLE_S)
            pids = running.account.pids()
            mine = max(clients_by_poller(pids, running.port).values(), key=len, default=set())
            if len(mine) < CONNECTIONS:
                raise BenchError(f"no thread of {subject.name} has {CONNECTIONS} connections, one has {len(mine)}")
            tell(client, json.dumps(sorted(mine)[:CONNECTIONS]))
            looks = list(_looks(pids, self.seconds_each))
            found = json.loads(client.read_rest())
        after = json.loads(self._far.ask())
        return self._sample(subject, found, looks, before, after)

    def _cost(self, stand: Stand) -> Sample:
        words = ["--rounds", "10", "--blocks", "5"] if self.options.quick else []
        with stand.client(python_command("bench.moving", *words)) as program:
            found = json.loads(program.read_rest())
        values = {"move_together_s": found["together_s"], "move_alone_s": found["alone_s"]}
        return Sample("", COST_CASE, 0, values, detail={"moves": found["moves"]})

    def _sample(
        self,
        subject: Threaded,
        found: dict[str, Any],
        looks: Sequence[Look],
        before: dict[str, int],
        after: dict[str, int],
    ) -> Sample:
        begin, end = found["begin"], found["end"]
        during = [look for look in looks if begin - _LOOK_S <= look[0] <= end]
        last = during[len(during) // 2 :]
        values: dict[str, float | None] = {
            "even_s": even_after(during, begin, subject.threads),
            "first_imbalance": _imbalance(during[0], during[min(_WINDOW_LOOKS, len(during) - 1)], subject.threads),
            "imbalance": _imbalance(last[0], last[-1], subject.threads),
            "per_second": found["messages"] / (end - begin),
            "cpu_us": 1e6 * _spent_s(during[0], during[-1]) / found["messages"],
        }
        invalid = []
        if after["bytes"] - before["bytes"] != found["bytes"]:
            invalid.append(f"{found['bytes']} bytes sent, {after['bytes'] - before['bytes']} arrived")
        if after["wrong"] != before["wrong"]:
            invalid.append("other bytes arrived than were sent")
        sample = Sample("", EVEN_CASE, 0, values, detail={"imbalances": _course(during, begin, subject.threads)})
        sample.invalid = invalid
        return sample


def tell(program: Program, line: str) -> None:
    """A line for a piped program."""
    assert program.process.stdin is not None
    program.process.stdin.write(line + "\n")
    program.process.stdin.flush()


def even_after(looks: Sequence[Look], begin: float, workers: int) -> float | None:
    """Seconds after `begin` from which on the threads are even; None if they never are."""
    if len(looks) <= _WINDOW_LOOKS:
        return None
    for first, last in zip(looks, looks[_WINDOW_LOOKS:], strict=False):
        window, rest = _imbalance(first, last, workers), _imbalance(first, looks[-1], workers)
        if window is not None and rest is not None and max(window, rest) <= EVEN:
            return max(0.0, last[0] - begin)
    return None


def _imbalance(first: Look, last: Look, workers: int) -> float | None:
    spent = [seconds - first[1].get(thread, 0.0) for thread, seconds in last[1].items()]
    return imbalance(spent, workers)[0]


def _spent_s(first: Look, last: Look) -> float:
    return sum(seconds - first[1].get(thread, 0.0) for thread, seconds in last[1].items())


def _course(looks: Sequence[Look], begin: float, workers: int) -> list[list[float | None]]:
    """When, and how uneven the 100 ms before were."""
    return [
        [round(last[0] - begin, 3), _imbalance(first, last, workers)]
        for first, last in zip(looks, looks[_WINDOW_LOOKS:], strict=False)
    ]


def _looks(pids: Sequence[int], seconds: float) -> Iterator[Look]:
    """The processor time of each thread, every 50 ms, from the moment on at which the load is told to begin."""
    begin = time.monotonic()
    due = begin
    while due < begin + seconds + _LOOK_S:
        time.sleep(max(0.0, due - time.monotonic()))
        yield time.monotonic(), thread_times(pids)
        due += _LOOK_S
