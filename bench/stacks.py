"""Call stacks sampled by perf: which code uses CPU time."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.tools import need

__all__ = [
    "SAMPLES_PER_S",
    "Stacks",
    "fold",
    "parse_script",
    "record_command",
    "script_command",
    "softirq_share",
    "unfold",
]

SAMPLES_PER_S = 499
"""Not a divisor of the kernel's tick, so that samples do not fall on it."""

Stacks = Counter[tuple[str, ...]]
"""How often each stack was seen, the outermost frame first."""

_FRAME = re.compile(r"^\s+[0-9a-f]+ (.*) \(([^()]*(?:\([^()]*\))?[^()]*)\)$")
_OFFSET = re.compile(r"\+0x[0-9a-f]+$")


def record_command(pids: Sequence[int], seconds: float, output: Path) -> list[str]:
    """perf takes cycles where the processor counts them, else the clock."""
    return [
        need("perf"), "record", "-q", "-F", str(SAMPLES_PER_S), "-g", "-p", ",".join(map(str, pids)), "-o", str(output),
        "--", "sleep", f"{seconds:g}",
    ]  # fmt: skip


def script_command(recorded: Path) -> list[str]:
    return [need("perf"), "script", "-i", str(recorded), "-F", "comm,pid,tid,time,event,ip,sym,dso"]


def parse_script(lines: Iterable[str]) -> Stacks:
    """The stacks of `perf script`. A frame without a symbol is named after its file."""
    stacks: Stacks = Counter()
    root = ""
    frames: list[str] = []
    for line in (*lines, ""):
        if not line.strip():
            if root:
                stacks[(root, *reversed(frames))] += 1
            root, frames = "", []
        elif found := _FRAME.match(line):
            name, file = _OFFSET.sub("", found.group(1)), found.group(2)
            frames.append(f"[{Path(file).name.strip('[]')}]" if name == "[unknown]" else name)
        elif not line.startswith((" ", "\t", "#")):
            # The command may hold blanks; what follows it is `PID/TID`.
            root = re.split(r"\s+\d+(?:/\d+)?\s", line, maxsplit=1)[0].strip()
    return stacks


_SOFTIRQ = re.compile(r"(?:__)?do_softirq|handle_softirqs|__irq_exit_rcu|irq_exit_rcu")


def softirq_share(stacks: Stacks) -> float | None:
    """The share of samples in a soft interrupt: work for whoever's packet came, charged to what it interrupted."""
    total = stacks.total()
    inside = sum(count for stack, count in stacks.items() if any(map(_SOFTIRQ.match, stack)))
    return inside / total if total else None


def fold(stacks: Stacks) -> list[str]:
    """One line for each stack, `a;b;c 12`, as other tools read them."""
    return [f"{';'.join(stack)} {count}" for stack, count in sorted(stacks.items())]


def unfold(lines: Iterable[str]) -> Stacks:
    """What `fold` has written."""
    stacks: Stacks = Counter()
    for line in lines:
        names, _, count = line.rpartition(" ")
        stacks[tuple(names.split(";"))] += int(count)
    return stacks
