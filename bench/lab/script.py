"""The text of `perf script`, as events and as call stacks."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["EVENT_FIELDS", "STACK_FIELDS", "Event", "Frame", "Sample", "lines_of", "read_events", "read_samples"]

EVENT_FIELDS = "comm,pid,tid,cpu,time,event,trace"
STACK_FIELDS = "comm,pid,tid,cpu,time,event,ip,sym,dso"

# The command may hold blanks and slashes; from the process id on all is regular.
_EVENT = re.compile(r"^\s*(.+?)\s+(-?\d+)/(-?\d+)\s+\[(\d+)\]\s+(\d+)\.(\d{9}):\s+(\w+:\w+):\s?(.*)$")
_SAMPLE = re.compile(r"^\s*(.+?)\s+(-?\d+)/(-?\d+)\s+\[(\d+)\]\s+(\d+)\.(\d{9}):\s+(\S+?):*\s*$")
_FRAME = re.compile(r"^\s+[0-9a-f]+ (.*) \(([^()]*(?:\([^()]*\))?[^()]*)\)$")
_LOST = re.compile(r"PERF_RECORD_LOST.*?lost (\d+)|lost (\d+) (?:events|chunks)")


@dataclass(frozen=True, slots=True)
class Event:
    """One tracepoint. `lost` is how many events perf could not keep; then the rest is empty."""

    command: str
    pid: int
    tid: int
    cpu: int
    time_ns: int
    name: str
    text: str
    lost: int = 0


@dataclass(frozen=True, slots=True)
class Frame:
    symbol: str
    file: str

    @property
    def kernel(self) -> bool:
        """Whether it is in the kernel or one of its modules."""
        return self.file.startswith("[") and self.file not in ("[vdso]", "[unknown]", "[heap]", "[stack]")


@dataclass(frozen=True, slots=True)
class Sample:
    """One call stack, the innermost frame first."""

    command: str
    pid: int
    event: str
    frames: tuple[Frame, ...]

    @property
    def idle(self) -> bool:
        return self.pid == 0


def lines_of(path: Path) -> Iterator[str]:
    with gzip.open(path, "rt", errors="replace") as file:
        yield from file


def read_events(lines: Iterable[str]) -> Iterator[Event]:
    for line in lines:
        found = _EVENT.match(line)
        if found is not None:
            command, pid, tid, cpu, seconds, fraction, name, text = found.groups()
            time_ns = int(seconds) * 10**9 + int(fraction)
            yield Event(command, int(pid), int(tid), int(cpu), time_ns, name, text.rstrip())
        elif (lost := _LOST.search(line)) is not None:
            yield Event("", 0, 0, 0, 0, "", "", lost=int(lost.group(1) or lost.group(2)))


def read_samples(lines: Iterable[str]) -> Iterator[Sample]:
    """A frame without a symbol is named after its file."""
    command, pid, event = "", 0, ""
    frames: list[Frame] = []
    for line in lines:
        if found := _FRAME.match(line):
            symbol, file = found.group(1).partition("+0x")[0], found.group(2)
            frames.append(Frame(f"[{Path(file).name.strip('[]')}]" if symbol == "[unknown]" else symbol, file))
        elif found := _SAMPLE.match(line):
            command, pid, event = found.group(1), int(found.group(2)), found.group(7)
        elif not line.strip() and event:
            yield Sample(command, pid, event, tuple(frames))
            event, frames = "", []
    if event:
        yield Sample(command, pid, event, tuple(frames))
