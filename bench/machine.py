"""What a figure was measured on: recorded beside every result, so that nobody compares what cannot be compared."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path

import psutil

from bench.tools import version

__all__ = ["describe", "summary_line"]

_ROOT = Path(__file__).resolve().parent.parent


def describe(tools: Iterable[str]) -> dict[str, str]:
    """Names and values, both for readers; `tools` are the programs whose versions count."""
    facts = {
        "kernel": platform.release(),
        "cpu": _cpu_model(),
        "cores": str(os.cpu_count()),
        "cores usable": str(len(os.sched_getaffinity(0))),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "n/a",
        "hypervisor": "yes" if " hypervisor " in f"{_cpu_field('flags')} " else "no",
        "memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        "python": platform.python_version(),
        "commit": _commit(),
        "load average": " ".join(f"{load:.2f}" for load in os.getloadavg()),
    }
    with suppress(PackageNotFoundError):
        facts["uvloop"] = package_version("uvloop")
    facts.update({tool: number for tool in tools if (number := version(tool))})
    return facts


def summary_line(facts: dict[str, str]) -> str:
    return f"{facts['cpu']}, {facts['cores usable']} cores, Linux {facts['kernel']}, Python {facts['python']}"


def _read(path: str) -> str:
    with suppress(OSError):
        return Path(path).read_text().strip()
    return ""


def _cpu_field(name: str) -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _cpu_model() -> str:
    return _cpu_field("model name") or platform.processor() or platform.machine()


def _commit() -> str:
    """The commit of the source tree, with a plus where files differ from it."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(_ROOT), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        changed = git(
            "status", "--porcelain", "--untracked-files=no", "--", "oinetd", "_fastpath", "bench/*.py", "bench/native"
        )
    except FileNotFoundError:
        return "n/a"
    return f"{commit or 'n/a'}{'+' if changed else ''}"
