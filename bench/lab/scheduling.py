"""Layer 4: who runs when: voluntary and involuntary switches, and how long the service waits for a processor."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from bench.lab.layer import EVERYWHERE, Figures, Layer, Target, percentiles, read_window, window
from bench.lab.perf import Perf, write_script
from bench.lab.script import EVENT_FIELDS, Event, lines_of, read_events
from bench.lab.tracing import available_events

__all__ = ["LAYER", "measure_switches"]

RECORDED = ("sched:sched_switch", "sched:sched_wakeup", "sched:sched_wakeup_new", "sched:sched_migrate_task")
RECORD_MAX_S = 2.0
TOP = 6

_SWITCH = re.compile(r"prev_pid=(\d+) prev_prio=\d+ prev_state=(\S+) ==> next_comm=(.*) next_pid=(\d+) next_prio")
_TASK = re.compile(r"\bpid=(\d+)\b")


def collect(target: Target, directory: Path, seconds: float) -> None:
    recorded = directory / "switches.data"
    perf = Perf.recording(EVERYWHERE, available_events(RECORDED), recorded)
    with window(target, directory, min(seconds, RECORD_MAX_S), [perf]):
        write_script(recorded, EVENT_FIELDS, directory / "switches.txt.gz")


def measure_switches(events: Iterable[Event], tids: set[int]) -> Figures:
    """Of the threads `tids`. A thread that leaves the processor ready to run was put out: an involuntary switch."""
    ready: dict[int, int] = {}
    on: dict[int, int] = {}
    delays_us: list[float] = []
    runs_us: list[float] = []
    voluntary = involuntary = migrations = lost = everybody = 0
    put_out_by: Counter[str] = Counter()
    for event in events:
        lost += event.lost
        if event.name == "sched:sched_switch" and (found := _SWITCH.search(event.text)):
            everybody += 1
            before, state, name, after = int(found.group(1)), found.group(2), found.group(3), int(found.group(4))
            if before in tids:
                if (since := on.pop(before, None)) is not None:
                    runs_us.append((event.time_ns - since) / 1e3)
                if state.startswith("R"):
                    involuntary += 1
                    put_out_by[name] += 1
                    ready[before] = event.time_ns
                else:
                    voluntary += 1
                    ready.pop(before, None)
            if after in tids:
                on[after] = event.time_ns
                if (since := ready.pop(after, None)) is not None:
                    delays_us.append((event.time_ns - since) / 1e3)
        elif event.name in ("sched:sched_wakeup", "sched:sched_wakeup_new"):
            if (found := _TASK.search(event.text)) and (tid := int(found.group(1))) in tids and tid not in on:
                ready.setdefault(tid, event.time_ns)
        elif event.name == "sched:sched_migrate_task" and (found := _TASK.search(event.text)):
            migrations += int(found.group(1)) in tids
    return {
        "lost": lost,
        "system_switches": everybody,
        "voluntary": voluntary,
        "involuntary": involuntary,
        "migrations": migrations,
        "run_us": {**percentiles(runs_us), "total": sum(runs_us)},
        "delay_us": {**percentiles(delays_us), "total": sum(delays_us)},
        "put_out_by": dict(put_out_by.most_common(TOP)),
    }


def derive(directory: Path) -> Figures:
    seen = read_window(directory)
    passed = seen.passed
    figures = measure_switches(read_events(lines_of(directory / "switches.txt.gz")), set(seen.tids))
    for name in ("voluntary", "involuntary", "migrations", "system_switches"):
        figures[name] = seen.each(figures[name], "switches.data")
    # The kernel's own account of the same threads, to compare with.
    figures["kernel"] = {
        "voluntary": passed.voluntary, "involuntary": passed.involuntary,
        "run_us": passed.cpu_s * 1e6, "delay_us": passed.wait_s * 1e6,
    }  # fmt: skip
    return {**figures, "seconds": passed.seconds, "threads": len(seen.tids)}


LAYER = Layer(4, "scheduling", collect, derive, tracepoints=True)
