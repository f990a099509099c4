"""`upgrade`: forwarders are replaced under load, oinetd by `oinetd upgrade`, the others by their own seamless reload.

Counted are new connections that failed, lasting ones that broke, datagrams that were lost, UDP clients that got a new
port towards the server; the longest time without a new connection, and the longest round trip; and the connections that
processes of before the last replacement still have some time later.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from bench.errors import BenchError
from bench.experiment import Case, Experiment
from bench.programs import Place, Program, python_command
from bench.results import Sample, SubjectInfo
from bench.stand import Running, Stand
from bench.subjects import Subject, choose_from
from bench.subjects.replaceable import Replaceable, Start, replaceable_subjects

__all__ = ["Upgrade", "connections_of"]

IDLE_CASE = "9000 idle"
_BEFORE_S = 1.0
"""Of the load before the first replacement, and between two."""
_LEFT_S, _QUICK_LEFT_S = 60.0, 3.0
_OVERHEAD_S = 4.0
_ESTABLISHED = "01"


class Upgrade(Experiment):
    name = "upgrade"
    subjects = ("oinetd", "peer")
    quick_subjects = ("oinetd", "peer")
    rounds, quick_rounds = 3, 1
    seconds, quick_seconds = 2.0, 1.0
    warm_up_s = 0.0

    def chosen(self) -> list[Subject]:
        names = self.options.subjects or list(self.subjects)
        return choose_from(replaceable_subjects(), names)

    @property
    def left_s(self) -> float:
        """How long after the last replacement the connections of old processes are counted."""
        return _QUICK_LEFT_S if self.options.quick else _LEFT_S

    def cases(self) -> list[Case]:
        times = 2 if self.options.quick else 20
        rate = 200 if self.options.quick else 1000
        mixed = {
            "rate": rate, "idle": 500 if self.options.quick else 1000, "half": 20 if self.options.quick else 100,
            "round-trips": 20 if self.options.quick else 50, "bulk": 4 if self.options.quick else 8, "datagrams": 10,
        }  # fmt: skip
        length = self.left_s + _OVERHEAD_S
        return [
            Case(f"mixed, {times} times", length + times * (_BEFORE_S + self.seconds_each), {"times": times, **mixed}),
            Case(IDLE_CASE, length + 8.0, {"times": 1, "idle": 9000, "round-trips": 10}),
        ]

    def settings(self) -> dict[str, object]:
        return {**super().settings(), "left after": self.left_s}

    def check(self, stand: Stand, subject: Subject, figures: SubjectInfo) -> None:
        """The load itself looks at every byte."""

    @contextlib.contextmanager
    def server(self, stand: Stand) -> Iterator[tuple[int, ...]]:
        if stand.topology.name == "loopback":
            raise BenchError("old and new processes are told apart by their namespace: --topology netns")
        port = stand.free_port()
        with stand.server(python_command("bench.continuity", "serve", stand.topology.server_address, str(port)), port):
            self._port = port
            yield (port,)

    def measure(self, stand: Stand, running: Running, case: Case) -> Sample:
        """With a process of its own for each case: nothing is left of an earlier one."""
        subject = running.subject
        assert isinstance(subject, Replaceable)
        options = dict(case.parameters)
        times = int(options.pop("times"))
        if not subject.has_datagrams:
            options.pop("datagrams", None)
        with stand.subject(subject, self._port) as fresh, contextlib.ExitStack() as stack:
            command = python_command("bench.continuity", "load", fresh.host, str(fresh.port))
            for name, value in options.items():
                command += [f"--{name}", str(value)]
            command += ["--half-s", str(min(9, round(times * (_BEFORE_S + self.seconds_each)) + 1))]
            handles = _handles(stand, fresh, stack)
            with stand.client(command) as load:
                load.read_line()
                moving: list[float] = []
                for _ in range(times):
                    time.sleep(_BEFORE_S)
                    replaced = set(fresh.account.pids())
                    took = subject.replace(*handles)
                    moving += [took] if took is not None else []
                    time.sleep(self.seconds_each)
                time.sleep(self.left_s)
                left, old = connections_of(replaced.intersection(fresh.account.pids()), fresh.port)
                found = json.loads(load.ask())
                load.read_rest()
        return _sample(case, found, left, old, moving, datagrams="datagrams" in options)


def _handles(stand: Stand, fresh: Running, stack: contextlib.ExitStack) -> tuple[Place, tuple[int, ...], Start]:
    """What a subject needs to be replaced: where it runs, its pids, and a way to start a program there."""
    isolation = fresh.account.isolation
    assert isolation is not None
    groups = fresh.account.group.directories if fresh.account.group else []

    def start(command: Sequence[str]) -> Program:
        program = Program(command, stand.run, stand.log("replacement"), place=isolation.place, groups=groups)
        stack.callback(program.stop)
        return program

    return isolation.place, fresh.pids, start


def connections_of(pids: Iterable[int], port: int) -> tuple[int, int]:
    """The connections of clients that processes have, and the number of these processes."""
    connections = processes = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            held = {path.readlink().name for path in Path(f"/proc/{pid}/fd").iterdir()}
            count = sum(inode in held for inode in _established(pid, port))
            connections += count
            processes += bool(count)
    return connections, processes


def _established(pid: int, port: int) -> Iterator[str]:
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == _ESTABLISHED and int(fields[1].rpartition(":")[2], 16) == port:
            yield f"socket:[{fields[9]}]"


def _sample(
    case: Case, found: dict[str, dict[str, float]], left: int, old: int, moving: Sequence[float], *, datagrams: bool
) -> Sample:
    counts, gaps = found["counts"], found["gaps"]
    broken = sum(counts.get(f"{kind}_failed", 0) for kind in ("idle", "half", "round_trips", "bulk"))
    values: dict[str, float | None] = {
        "new_failed": counts.get("new_failed", 0) if "new" in counts else None,
        "broken": broken,
        "lost_datagrams": counts.get("datagrams_lost", 0) if datagrams else None,
        "new_ports": counts.get("new_ports", 0) if datagrams else None,
        "gap_s": gaps.get("new"),
        "pause_s": gaps.get("round_trip"),
        "bulk_pause_s": gaps.get("bulk"),
        "moving_s": max(moving, default=None),
        "left": left,
        "left_processes": old,
    }
    return Sample("", case.name, 0, values, detail={"counts": counts, "faults": found["faults"], "moving_s": moving})
