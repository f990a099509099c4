"""Results as they are kept: raw samples with what they were measured on, one JSON file a run."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.statistics import Summary, summarise

__all__ = ["AGAIN", "RESULTS_DIR", "Result", "Sample", "SubjectInfo", "load_results", "newest"]

RESULTS_DIR = Path(__file__).resolve().parent / "results"
AGAIN = "again"
"""The folder in there with a second run of the same."""
FORMAT = 1


@dataclass(slots=True)
class SubjectInfo:
    """A subject in this run. `integrity` and `half_close` are empty if the test passed, None if it was not run.

    `unavailable` is why it was not measured; empty if it was.
    """

    name: str
    family: str
    base: str
    buffer_bytes: int | None = None
    version: str = ""
    note: str = ""
    integrity: str | None = None
    half_close: str | None = None
    unavailable: str = ""
    configuration: str = ""
    """As `Running.configuration`: for those who know the program better than the bench does."""

    @property
    def mark(self) -> str:
        """What stands beside the name in tables: `!` does not deliver, `½` does not pass a half-close on."""
        return ("!" if self.integrity else "") + ("½" if self.half_close else "")

    def faults(self) -> list[str]:
        """What the test of the subject says against each of its samples."""
        texts = []
        if self.integrity:
            texts.append(f"does not deliver what it is given: {self.integrity}")
        if self.half_close:
            texts.append(f"half-close not passed on: {self.half_close}")
        return texts

    @property
    def threads(self) -> int:
        """The configured number; 0 if the subject chose it."""
        return int(self.name.partition("×")[2] or 0)


@dataclass(slots=True)
class Sample:
    """One measurement. `case` is the variation (`P8`, `64B × 1`); a value is None if it cannot be had.

    `invalid` says why the sample is not what it says, `ambient` what the machine did that spoils it; both are empty in
    a good one. `machine` is the state of the machine while it was measured.
    """

    subject: str
    case: str
    round: int
    values: dict[str, float | None]
    warm_up: bool = False
    error: str = ""
    detail: dict[str, Any] = field(default_factory=dict)
    invalid: list[str] = field(default_factory=list)
    ambient: list[str] = field(default_factory=list)
    machine: dict[str, float | None] = field(default_factory=dict)


@dataclass
class Result:
    """One run of one experiment."""

    experiment: str
    settings: dict[str, Any]
    machine: dict[str, str]
    topology: dict[str, str]
    subjects: list[SubjectInfo] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    started: float = field(default_factory=time.time)
    finished: float = 0.0
    quick: bool = False
    profiles: dict[str, Any] = field(default_factory=dict)
    """From runs apart, by subject: counters, system calls."""

    @property
    def rounds_measured(self) -> int:
        """How many rounds came to an end for every subject."""
        rounds = [sample.round for sample in self.samples if not sample.warm_up]
        return max(rounds, default=-1) + (0 if self.interrupted else 1)

    @property
    def precision(self) -> str:
        """How much was measured, in words."""
        count = self.rounds_measured
        words = ["one round" if count == 1 else f"{count} rounds"]
        if seconds := self.settings.get("seconds"):
            words[0] += f" of {seconds:g} s"
        words.append("a quick run" if self.quick else "a full run")
        if self.interrupted:
            words.append("INTERRUPTED")
        return ", ".join(words)

    def cases(self) -> list[str]:
        """Those that something was measured in; of a subject that did not start there is none."""
        return list(
            dict.fromkeys(each.case for each in self.samples if not each.warm_up and (each.values or not each.error))
        )

    def status(self) -> int:
        """The exit status of a run: 1 if it was interrupted, nothing was measured, or a sample is invalid or failed."""
        bad = any(sample.invalid or sample.error for sample in self.samples)
        return int(bad or self.interrupted or not self.measured())

    @property
    def interrupted(self) -> bool:
        return bool(self.settings.get("interrupted"))

    def invalid(self, subject: str, case: str) -> list[str]:
        """Why samples of this cell are not what they say, each reason once."""
        texts = (
            text
            for sample in self.samples
            if (sample.subject, sample.case) == (subject, case) and not sample.warm_up
            for text in sample.invalid
        )
        return list(dict.fromkeys(texts))

    def measured(self) -> list[SubjectInfo]:
        """The subjects that have samples, in order."""
        with_samples = {sample.subject for sample in self.samples if not sample.warm_up and not sample.error}
        return [subject for subject in self.subjects if subject.name in with_samples]

    def by_buffer(self) -> dict[str, list[SubjectInfo]]:
        """The modes that were measured with several buffers, smallest first; of several thread numbers the greatest."""
        modes: dict[str, dict[int, list[SubjectInfo]]] = {}
        for subject in self.measured():
            if subject.family == "oinetd" and subject.buffer_bytes:
                modes.setdefault(subject.base, {}).setdefault(subject.threads, []).append(subject)
        return {
            base: sorted(threads[max(threads)], key=lambda each: each.buffer_bytes or 0)
            for base, threads in modes.items()
            if len(threads[max(threads)]) > 1
        }

    def values(self, subject: str, case: str, name: str) -> list[float]:
        """The samples of one figure, warm-up left out."""
        return [
            value
            for sample in self.samples
            if (sample.subject, sample.case) == (subject, case) and not sample.warm_up and not sample.error
            for value in [sample.values.get(name)]
            if value is not None
        ]

    def figure(self, subject: str, case: str, name: str) -> Summary | None:
        return summarise(self.values(subject, case, name))

    def save(self, directory: Path) -> Path:
        """Write `EXPERIMENT-TIME[-quick].json` into `directory`, complete or not at all."""
        directory.mkdir(parents=True, exist_ok=True)
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(self.started))
        path = directory / f"{self.experiment}-{stamp}{'-quick' if self.quick else ''}.json"
        partial = path.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(self.text())
        partial.replace(path)
        return path

    def text(self) -> str:
        """JSON with a line for each sample, so that a result that is kept can be read and compared."""
        fields = {"format": FORMAT, **asdict(self)}
        lines = []
        for key, value in fields.items():
            if key in ("samples", "subjects"):
                rows = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in value)
                lines.append(f' "{key}": [\n  {rows}\n ]')
            else:
                lines.append(f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @classmethod
    def load(cls, path: Path) -> Result:
        """Raises `BenchError` if the file is not a result."""
        try:
            fields = json.loads(path.read_text())
            if fields.pop("format") != FORMAT:
                raise BenchError(f"{path}: written by another version of the bench")
            fields["subjects"] = [SubjectInfo(**subject) for subject in fields["subjects"]]
            fields["samples"] = [Sample(**sample) for sample in fields["samples"]]
            return cls(**fields)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BenchError(f"{path} is not a result of the bench: {error!r}") from None


def load_results(paths: Sequence[Path]) -> list[Result]:
    """The results in files and directories, oldest first. Raises `BenchError` if there are none."""
    files: list[Path] = []
    for path in paths:
        files += sorted(path.glob("*.json")) if path.is_dir() else [path]
    results = sorted(map(Result.load, files), key=lambda result: result.started)
    if not results:
        raise BenchError(f"no results in {', '.join(map(str, paths))}")
    return results


def newest(results: Iterable[Result]) -> dict[str, Result]:
    """The newest complete run of each experiment, quick or full; an interrupted one only where there is no other.

    Runs in several ways (`--with`) have a table of their own, and no place here.
    """
    chosen: dict[str, Result] = {}
    plain = (each for each in results if not each.settings.get("with"))
    for result in sorted(plain, key=lambda each: (not each.interrupted, each.started)):
        chosen[result.experiment] = result
    return chosen
