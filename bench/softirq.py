"""Soft interrupts: how long processors spend in them, and on whose account.

The kernel does much of the work of receiving in soft interrupts, on top of whatever runs on that core. Without
CONFIG_IRQ_TIME_ACCOUNTING that time is charged to the task that was interrupted, so a forwarder's processor time holds
some work for client and server. With it, nobody is charged. Here it is measured apart: by the tracepoints of entry and
exit on each core, with the task that was interrupted; without them /proc/stat has the sum of all cores.
"""

from __future__ import annotations

import gzip
import platform
import re
import subprocess
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bench.account import Account
from bench.ambient import Moment
from bench.errors import BenchError
from bench.lab.perf import Perf
from bench.lab.script import EVENT_FIELDS, Event, read_events
from bench.lab.tracing import out_of_reach, with_tracefs
from bench.programs import bound
from bench.tools import need

__all__ = ["Softirq", "accounted_apart", "look", "times_of"]

EVENTS = ("irq:softirq_entry", "irq:softirq_exit")
_VECTOR = re.compile(r"\bvec=(\d+)")
_CONFIG = re.compile(r"^CONFIG_IRQ_TIME_ACCOUNTING=y$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Softirq:
    """Of one window. `cpu_s` is the subject's processor time as the kernel charges it."""

    seconds: float
    cpu_s: float
    all_s: float
    """In soft interrupts, on all cores."""
    own_s: float | None
    """Of that, on top of the subject's own tasks; None where the tracepoints are out of reach."""
    apart: bool
    """Whether the kernel keeps it out of what it charges."""
    without: str = ""
    """Why there are no tracepoints."""


def accounted_apart(config: str | None = None) -> bool:
    """Whether this kernel has CONFIG_IRQ_TIME_ACCOUNTING; `config` is the text of its configuration."""
    if config is None:
        config = ""
        with suppress(OSError):
            config = gzip.decompress(Path("/proc/config.gz").read_bytes()).decode()
        if not config:
            with suppress(OSError):
                config = Path(f"/boot/config-{platform.release()}").read_text()
    return _CONFIG.search(config) is not None


def times_of(events: Iterable[Event], pids: Collection[int], begin_ns: int, end_ns: int) -> tuple[float, float]:
    """Seconds in soft interrupts between two times on all cores, and those on top of a task of the processes `pids`."""
    entered: dict[tuple[int, str], Event] = {}
    whole = own = 0
    for event in events:
        found = _VECTOR.search(event.text)
        if found is None:
            continue
        place = event.cpu, found.group(1)
        if event.name == "irq:softirq_entry":
            entered[place] = event
        elif (begin := entered.pop(place, None)) is not None:
            length = max(0, min(event.time_ns, end_ns) - max(begin.time_ns, begin_ns))
            whole += length
            if begin.pid in pids:
                own += length
    return whole / 1e9, own / 1e9


def look(account: Account, seconds: float, directory: Path) -> Softirq:
    """Watch a window of `seconds` while a load runs; without tracepoints, with the reason in what is returned."""
    apart = accounted_apart()
    without = out_of_reach()
    if not without:
        try:
            need("perf")
            return _traced(account, seconds, directory / "softirq.data", apart)
        except BenchError as error:
            without = str(error)
    begin, used = Moment.now(), account.cpu_times().total_s
    time.sleep(seconds)
    end, used = Moment.now(), account.cpu_times().total_s - used
    return Softirq(end.at_s - begin.at_s, used, end.softirq_s - begin.softirq_s, None, apart, without)


def _traced(account: Account, seconds: float, recorded: Path, apart: bool) -> Softirq:
    # With the clock that this process reads, so that the window is cut to what its processor time is of.
    perf = Perf.recording(["-a", "-k", "mono"], EVENTS, recorded, wrapped=with_tracefs)
    try:
        perf.control("enable")
        begin_ns, begin = time.monotonic_ns(), account.cpu_times().total_s
        time.sleep(seconds)
        end_ns, used = time.monotonic_ns(), account.cpu_times().total_s - begin
        perf.control("disable")
        pids = frozenset(account.pids())
        perf.finish()
        whole, own = times_of(_events(recorded), pids, begin_ns, end_ns)
    finally:
        perf.stop()
        recorded.unlink(missing_ok=True)
    return Softirq((end_ns - begin_ns) / 1e9, used, whole, own, apart)


def _events(recorded: Path) -> Iterator[Event]:
    words = [need("perf"), "script", "-i", str(recorded), "--ns", "--show-lost-events", "-F", EVENT_FIELDS]
    command = bound(with_tracefs(words))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as script:
        assert script.stdout is not None
        assert script.stderr is not None
        yield from read_events(script.stdout)
        said = script.stderr.read()
    if script.returncode != 0:
        raise BenchError(f"perf script: {said.strip()[-300:]}")
