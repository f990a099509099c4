"""Runs apart: a subject under load with perf or strace beside it, never timed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.counters import parse_counters, stat_command
from bench.errors import BenchError
from bench.meter import client_command
from bench.programs import bound
from bench.softirq import look
from bench.stacks import Stacks, parse_script, record_command, script_command
from bench.stand import Running, Stand
from bench.subjects import Subject
from bench.syscalls import Syscall, parse_syscalls, strace_command

__all__ = ["SOFTIRQ_S", "count_events", "count_syscalls", "sample_stacks", "softirq_of"]

_PATIENCE_S = 60.0
_LOOKED_S = 0.4
"""At soft interrupts: some ten thousand events."""
SOFTIRQ_S = 2.0
"""How long the load lasts: perf takes its time to begin."""


def softirq_of(
    stand: Stand, subject: Subject, ports: Sequence[int], case: str, what: str, **load: Any
) -> dict[str, Any]:
    """Soft interrupts in the middle of a load, `what`, of the bench's own client, and what it moved meanwhile."""
    with stand.subject(subject, *ports) as running:
        command = client_command(
            running, what, seconds=SOFTIRQ_S, warm_up=stand.warm_up_s, threads=stand.cores.loads, **load
        )
        with stand.client(command) as program:
            program.begun()
            seen = look(running.account, _LOOKED_S, stand.directory)
            program.read_line()
            figures = json.loads(program.read_rest())
    bulk = what in ("upload", "download")
    amount = sum(figures["streams"]) / 1e9 if bulk else figures["operations"]
    return {
        "case": case, "unit": "s/GB" if bulk else "µs each", "units": amount / figures["elapsed_s"] * seen.seconds,
        "cpu_s": seen.cpu_s if running.pids else None, "own_s": seen.own_s, "all_s": seen.all_s, "apart": seen.apart,
        "without": seen.without,
    }  # fmt: skip


def count_events(running: Running, seconds: float) -> dict[str, float | None]:
    """Counters of the subject for `seconds`, by event; None if the machine has none."""
    return parse_counters(_run(stat_command(_pids(running), seconds)).stderr)


def count_syscalls(running: Running, seconds: float, directory: Path) -> list[Syscall]:
    output = directory / "strace"
    # An interrupted strace ends as its program would have: its status says nothing.
    _run(strace_command(_pids(running), seconds, str(output)), check=False)
    if not output.exists():
        raise BenchError("strace wrote no table")
    return parse_syscalls(output.read_text())


def sample_stacks(running: Running, seconds: float, directory: Path) -> Stacks:
    recorded = directory / "perf.data"
    _run(record_command(_pids(running), seconds, recorded))
    try:
        return parse_script(_run(script_command(recorded)).stdout.splitlines())
    finally:
        recorded.unlink()


def _pids(running: Running) -> list[int]:
    pids = running.account.pids()
    if not pids:
        raise BenchError(f"{running.subject.name} has no process to look at")
    return pids


def _run(command: Sequence[str], *, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        bound(command), capture_output=True, text=True, timeout=_PATIENCE_S, check=False, errors="replace"
    )
    if check and done.returncode != 0:
        raise BenchError(f"{Path(command[0]).name}: {done.stderr.strip()[-300:] or done.returncode}")
    return done
