"""What the machine did while something was measured: stored beside every sample, said if it spoils a figure."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["OTHERS_CORES", "Moment", "ambient_facts", "ambient_texts", "busy_before"]

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
OTHERS_CORES = 0.15
"""Processor time that belongs neither to the subject nor to the load, in cores: from here on a machine is busy.

The kernel's own threads and soft interrupts are in it, which on an idle machine stay below this.
"""
STEAL_SHARE = 0.01
LIMIT_SHARE = 0.95
"""A thread of load that is at work for so much of the time may be what limits the figure."""


@dataclass(frozen=True, slots=True)
class Moment:
    """Processor seconds of the whole machine since boot, at one time."""

    at_s: float
    busy_s: float
    softirq_s: float
    steal_s: float

    @classmethod
    def now(cls) -> Moment:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
        user, nice, system, _idle, _wait, irq, softirq, steal = (int(field) / _TICKS_PER_S for field in fields[:8])
        return cls(time.monotonic(), user + nice + system + irq + softirq, softirq, steal)


def frequency_mhz() -> float | None:
    """The mean of what the processors say of their clocks."""
    with suppress(OSError, ValueError, ZeroDivisionError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        clocks = [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
        return sum(clocks) / len(clocks)
    return None


def ambient_facts(begin: Moment, end: Moment, accounted_s: float | None) -> dict[str, float | None]:
    """`accounted_s` is the processor time of subject and load between the two moments; None if it is not known."""
    seconds = max(end.at_s - begin.at_s, 1e-3)
    # The kernel's account of soft interrupts and of tasks can count a moment twice.
    busy = min(end.busy_s - begin.busy_s, seconds * (os.cpu_count() or 1))
    return {
        "load_average": os.getloadavg()[0],
        "busy_cores": busy / seconds,
        "others_cores": None if accounted_s is None else max(0.0, busy - accounted_s) / seconds,
        "softirq_cores": (end.softirq_s - begin.softirq_s) / seconds,
        "steal_share": (end.steal_s - begin.steal_s) / seconds / (os.cpu_count() or 1),
        "mhz": frequency_mhz(),
    }


def ambient_texts(facts: dict[str, float | None], client_busy: float, server_busy: Sequence[float]) -> list[str]:
    """What a reader has to know of the machine; empty if nothing spoils the figure.

    `client_busy` is the share of time for which the busiest thread of the client was at work.
    """
    texts = []
    others = facts.get("others_cores")
    if others is not None and others > OTHERS_CORES:
        texts.append(f"busy: others used {others:.2f} of {os.cpu_count()} cores")
    steal = facts.get("steal_share")
    if steal is not None and steal > STEAL_SHARE:
        texts.append(f"busy: the hypervisor kept {100 * steal:.0f} % of the time for others")
    if client_busy >= LIMIT_SHARE:
        texts.append(f"the client was the limit: a thread of it was at work for {100 * client_busy:.0f} % of the time")
    if server_busy and max(server_busy) >= LIMIT_SHARE:
        texts.append(
            f"the server was the limit: a thread of it was at work for {100 * max(server_busy):.0f} % of the time"
        )
    return texts


def busy_before(seconds: float = 0.5) -> float:
    """How many cores are in use before anything is measured."""
    begin = Moment.now()
    time.sleep(seconds)
    end = Moment.now()
    return (end.busy_s - begin.busy_s) / (end.at_s - begin.at_s)
