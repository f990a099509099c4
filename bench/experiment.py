"""What all experiments share: the rounds over the subjects, the checks before, the samples kept."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.errors import BenchError, Interrupted
from bench.machine import describe
from bench.path import PathQuality
from bench.plan import Plan, interleave
from bench.programs import python_command
from bench.results import Result, Sample, SubjectInfo
from bench.stand import Running, Stand
from bench.subjects import Destination, Subject, choose

__all__ = ["Case", "Experiment", "Options", "check", "info", "must_be_writable", "perform", "planned_s"]

START_S = 0.6
"""About how long a subject takes to start and stop; for the reckoning of how long a run takes."""
CHECK_S = 1.0


@dataclass
class Options:
    """What the command line says. `rounds`, `seconds` 0 and `subjects` empty stand for the experiment's own choice."""

    quick: bool = False
    subjects: list[str] = field(default_factory=list)
    peers: list[str] = field(default_factory=list)
    buffers: list[int] = field(default_factory=list)
    rounds: int = 0
    seconds: float = 0.0
    topology: str = "auto"
    threads: list[int] = field(default_factory=list)
    check: bool = True
    out: Path = Path()
    path: PathQuality = field(default_factory=PathQuality)
    cores: list[str] = field(default_factory=list)
    cases: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    """What one experiment alone takes."""


@dataclass(frozen=True, slots=True)
class Case:
    """A variation of the load; `seconds` is about how long it takes, `parameters` are the experiment's."""

    name: str
    seconds: float
    parameters: dict[str, Any] = field(default_factory=dict)


class Experiment:
    """One kind of load. Subclasses say what is started, what is done, and what is read off."""

    name: str
    tools: tuple[str, ...] = ()
    """Programs whose versions are recorded."""
    subjects: tuple[str, ...]
    quick_subjects: tuple[str, ...]
    rounds, quick_rounds = 6, 2
    seconds, quick_seconds = 5.0, 1.0
    warm_up_s = 1.0
    buffers: tuple[int, ...] = (8 << 10, 16 << 10, 64 << 10, 256 << 10)

    def __init__(self, options: Options) -> None:
        self.options = options
        self.round_count = options.rounds or (self.quick_rounds if options.quick else self.rounds)
        self.seconds_each = options.seconds or (self.quick_seconds if options.quick else self.seconds)

    def cases(self) -> list[Case]:
        raise NotImplementedError

    def chosen_cases(self) -> list[Case]:
        """The cases that were asked for, by name or pattern; all without such a wish.

        Raises `BenchError` if there is none of that name.
        """
        known = {case.name: case for case in self.cases()}
        chosen: dict[str, Case] = {}
        for pattern in self.options.cases:
            found = fnmatch.filter(known, pattern)
            if not found:
                raise BenchError(f"no case is called {pattern}; there are: {'; '.join(known)}")
            chosen |= {name: known[name] for name in found}
        return list(chosen.values()) or list(known.values())

    def cases_of(self, subject: Subject, cases: Sequence[Case]) -> list[Case]:
        """Those of `cases` that `subject` is measured in."""
        return list(cases)

    def prepare(self) -> None:
        """Raise `ToolMissing` where something is missing without which nothing can be measured."""

    def order(self, cases: Sequence[Case], number: int) -> list[Case]:
        """The cases in the order of round `number`."""
        return list(cases)

    def server(self, stand: Stand) -> contextlib.AbstractContextManager[tuple[int | Destination, ...]]:
        """The far end; gives the ports, or other places, that a subject forwards to."""
        raise NotImplementedError

    def warm_up(self, stand: Stand, running: Running) -> Sample | None:
        """A load before the timed ones; what it shows is kept apart."""
        return None

    def measure(self, stand: Stand, running: Running, case: Case) -> Sample:
        """One timed run. `subject`, `case` and `round` of the sample are filled in by the caller."""
        raise NotImplementedError

    def check(self, stand: Stand, subject: Subject, info: SubjectInfo) -> None:
        """Fill in whether the subject delivers what it is given, or why it does not even start."""
        check(subject, stand, info)

    def apart_s(self) -> float:
        """About how long `apart` takes for each subject."""
        return 0.0

    def apart(self, stand: Stand, subject: Subject, ports: tuple[int, ...], result: Result) -> None:
        """Runs that are not timed, after those that are; what they show goes to `result.profiles`."""

    def finish(self, result: Result) -> None:
        """Fill in what can only be reckoned when all is measured."""

    def show(self, result: Result, console: Console) -> int:
        """Print the tables; the exit status of the command."""
        from bench.tables import print_result

        print_result(result, console)
        return result.status()

    def chosen(self) -> list[Subject]:
        """The subjects in the order of tables, each size of buffer a subject of its own."""
        options = self.options
        names = options.subjects or list(self.quick_subjects if options.quick else self.subjects)
        buffers = options.buffers or ([65536] if options.quick else list(self.buffers))
        return choose(names, buffers, options.peers, options.threads)

    def settings(self) -> dict[str, Any]:
        return {
            "rounds": self.round_count,
            "seconds": self.seconds_each,
            "threads": self.options.threads or "one per core",
            "buffers": self.options.buffers,
            **self.options.extra,
        }


def perform(experiment: Experiment, console: Console) -> Result:
    """Measure; the result holds what could be measured also when the run was interrupted (`settings.interrupted`)."""
    experiment.prepare()
    subjects = experiment.chosen()
    options = experiment.options
    must_be_writable(options.out)
    threads = options.threads[0] if len(options.threads) == 1 else 0
    stand = Stand(options.topology, threads, options.path, options.cores)
    with contextlib.ExitStack() as stack:
        stack.callback(stand.sweep)
        stack.enter_context(stand)
        result = Result(
            experiment=experiment.name,
            settings=experiment.settings(),
            machine=describe(experiment.tools),
            topology={"name": stand.topology.name, **stand.topology.facts, **stand.cores.facts()},
            quick=options.quick,
        )
        result.subjects = [info(subject, stand) for subject in subjects]
        ready = [subject for subject, info in zip(subjects, result.subjects, strict=True) if not info.unavailable]
        infos = {each.name: each for each in result.subjects}
        cases = experiment.chosen_cases()
        with Plan(console, planned_s(experiment, ready, cases)) as plan:
            if options.topology == "auto" and stand.topology.name == "loopback":
                plan.say("on loopback: namespaces of its own need root, and pyroute2")
            for each in result.subjects:
                if each.unavailable:
                    plan.say(f"{each.name} is skipped: {each.unavailable}")
            try:
                if options.check:
                    for subject in ready:
                        plan.now(f"checking {subject.name}")
                        experiment.check(stand, subject, infos[subject.name])
                        plan.did(CHECK_S)
                ready = [subject for subject in ready if not infos[subject.name].unavailable]
                _rounds(experiment, stand, ready, cases, plan, result)
            except Interrupted:
                result.settings["interrupted"] = True
                plan.say("interrupted: what was measured so far is kept")
    experiment.finish(result)
    result.finished = time.time()
    return result


def planned_s(experiment: Experiment, subjects: Sequence[Subject], cases: Sequence[Case]) -> float:
    """About how long it takes to measure these subjects in these cases."""
    once_s = CHECK_S * experiment.options.check + experiment.apart_s()
    start_s = START_S + experiment.warm_up_s
    return sum(
        once_s + experiment.round_count * (start_s + sum(case.seconds for case in experiment.cases_of(subject, cases)))
        for subject in subjects
    )


def must_be_writable(directory: Path) -> None:
    """Raise `BenchError` where the result could not be kept, before anything is measured."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise BenchError(f"--out {directory}: {error.strerror}; choose a directory that can be written to") from None


def info(subject: Subject, stand: Stand) -> SubjectInfo:
    return SubjectInfo(
        name=subject.name,
        family=subject.family,
        base=subject.base,
        buffer_bytes=subject.buffer_bytes,
        version=subject.version(),
        note=subject.note,
        unavailable=subject.unavailable(stand.topology) or "",
    )


def check(subject: Subject, stand: Stand, info: SubjectInfo) -> None:
    """Fill in whether the subject delivers and passes a half-close on, or why it does not even start."""
    port = stand.free_port()
    server = python_command("bench.integrity", "serve", stand.topology.server_address, str(port))
    with stand.server(server, port):
        try:
            with stand.subject(subject, port) as running:
                client = python_command("bench.integrity", "verify", running.host, str(running.port))
                with stand.client(client) as program:
                    verdict = json.loads(program.read_rest())
        except BenchError as error:
            info.unavailable = str(error)
            return
    info.integrity, info.half_close = verdict["integrity"], verdict["half_close"]


def _rounds(
    experiment: Experiment, stand: Stand, subjects: list[Subject], cases: list[Case], plan: Plan, result: Result
) -> None:
    infos = {each.name: each for each in result.subjects}
    with experiment.server(stand) as ports:
        for number, subject in interleave(subjects, experiment.round_count):
            at = f"round {number + 1} of {experiment.round_count}: {subject.name}"
            plan.now(at)
            before = len(result.samples)
            turn = experiment.order(experiment.cases_of(subject, cases), number)
            try:
                with stand.subject(subject, *ports) as running:
                    infos[subject.name].configuration = running.configuration
                    for sample in _subject(experiment, stand, running, turn, plan, at):
                        sample.subject, sample.round = subject.name, number
                        sample.invalid = list(dict.fromkeys([*sample.invalid, *infos[subject.name].faults()]))
                        result.samples.append(sample)
                for text in running.changed:
                    plan.say(f"{subject.name} changed a setting of the kernel: {text}")
                    for sample in result.samples[before:]:
                        sample.ambient.append(f"settings: {text}")
            except BenchError as error:
                # It ran a moment ago, so this is news and not a missing package; the others go on.
                plan.say(f"{subject.name}: {error}")
                result.samples.append(Sample(subject.name, "start", number, {}, error=str(error)))
        for subject in subjects:
            if not experiment.apart_s():
                break
            plan.now(f"looking into {subject.name}")
            try:
                experiment.apart(stand, subject, tuple(port for port in ports if isinstance(port, int)), result)
            except BenchError as error:
                plan.say(f"{subject.name}: {error}")
            plan.did(experiment.apart_s())


def _subject(
    experiment: Experiment, stand: Stand, running: Running, cases: list[Case], plan: Plan, at: str
) -> Iterator[Sample]:
    plan.did(START_S)
    if (sample := experiment.warm_up(stand, running)) is not None:
        sample.warm_up = True
        yield sample
    plan.did(experiment.warm_up_s)
    for case in cases:
        plan.now(f"{at}, {case.name}")
        try:
            sample = experiment.measure(stand, running, case)
            for text in sample.invalid:
                plan.say(f"{running.subject.name}, {case.name}: INVALID: {text}")
        except BenchError as error:
            plan.say(f"{running.subject.name}, {case.name}: {error}")
            sample = Sample("", case.name, 0, {}, error=str(error))
        sample.case = case.name
        yield sample
        plan.did(case.seconds)
