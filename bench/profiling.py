"""Runs apart: a subject under load with perf or strace beside it, never timed."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from bench.counters import parse_counters, stat_command
from bench.errors import BenchError
from bench.programs import bound
from bench.stacks import Stacks, parse_script, record_command, script_command
from bench.stand import Running
from bench.syscalls import Syscall, parse_syscalls, strace_command

__all__ = ["count_events", "count_syscalls", "sample_stacks"]

_PATIENCE_S = 60.0


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
