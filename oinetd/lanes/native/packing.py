"""How many reactors serve, and when connections move between them: as few as the load needs, as even as they need.

64-byte round trips on 64 connections, client and server on the same two cores: 13.8 us of processor time each with two
reactors, 11.3 us with one, which finds more events at each wake. So one reactor serves as long as its load allows.
Another one joins only if the machine has an idle core for it: if all cores are busy, more reactors only cost.
Connections then move to it, busiest first, and back when two reactors could be one.

`decide` is the rule, a pure function of what was measured. `Packer` measures and does what it says. It has no timer as
long as one reactor serves below its threshold: the reactor wakes it by a record.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from oinetd import _fastpath

__all__ = ["Move", "Packer", "Plan", "decide", "idle_cores"]

LOAD_HIGH: Final = 0.7
"""Of a core: a reactor above it is too full for more; `LOAD_HIGH` of `_fastpath/state/load.pxd`."""
LOAD_MERGED: Final = 0.5
"""Of a core: reactors are given up only if those that stay remain below it."""
IDLE_CORE: Final = 0.5
"""Another reactor joins if this much of the allowed cores, added up, is idle."""
UNEVEN: Final = 1.15
"""Busiest by mean, above which connections move."""
UNEVEN_LEAST: Final = 0.1
"""Of a core: a smaller difference between busiest and least busy is left alone."""
WINDOW_S: Final = 0.1
CALM_WINDOWS: Final = 10
"""Windows in a row in which fewer reactors would do, before one is given up."""
SETTLE_WINDOWS: Final = 2
"""Windows after a move before the next: the loads have to show it first."""
SHORTEST_S: Final = 0.001
"""A shorter time between two measurements says nothing."""
WHOLE: Final = 1000
"""All the work of a reactor, in thousandths."""


@dataclass(frozen=True, slots=True)
class Move:
    """Connections that do `share` thousandths of the work of reactor `source` move to reactor `to`."""

    source: int
    to: int
    share: int


@dataclass(frozen=True, slots=True)
class Plan:
    """How many reactors serve from now on, the first ones, and what moves between them."""

    serving: int
    moves: tuple[Move, ...] = ()


def decide(loads: Sequence[float], serving: int, most: int, idle: float, calm_windows: int) -> Plan:
    """What to do, by the load of each reactor and what is idle of the cores, both in cores.

    `calm_windows` is how long fewer reactors would have done already. Raises nothing.
    """
    serving = min(serving, most)
    in_service = range(serving)
    busiest = max(in_service, key=lambda at: loads[at])
    least = min(in_service, key=lambda at: loads[at])
    if serving > 1 and sum(loads) <= (serving - 1) * LOAD_MERGED:
        if calm_windows < CALM_WINDOWS:
            return Plan(serving)
        last = serving - 1
        if fits := [at for at in range(last) if loads[at] + loads[last] <= LOAD_MERGED]:
            return Plan(last, (Move(last, max(fits, key=lambda at: loads[at]), WHOLE),))
    if loads[busiest] >= LOAD_HIGH and loads[least] >= LOAD_HIGH - UNEVEN_LEAST:
        if serving < most and idle >= IDLE_CORE:
            return Plan(serving + 1, (Move(busiest, serving, WHOLE // 2),))
        return Plan(serving)
    mean = sum(loads[at] for at in in_service) / serving
    difference = loads[busiest] - loads[least]
    if loads[busiest] > UNEVEN * mean and difference >= UNEVEN_LEAST:
        return Plan(serving, (Move(busiest, least, round(difference / 2 / loads[busiest] * WHOLE)),))
    return Plan(serving)


def idle_cores(before: dict[int, tuple[int, int]], now: dict[int, tuple[int, int]]) -> float:
    """How much of the cores was idle between two readings of `core_times`, in cores."""
    idle = 0.0
    for core, (idle_ticks, all_ticks) in now.items():
        if core in before and all_ticks > before[core][1]:
            idle += (idle_ticks - before[core][0]) / (all_ticks - before[core][1])
    return idle


def core_times(path: Path = Path("/proc/stat")) -> dict[int, tuple[int, int]]:
    """For each core that the process may use: ticks idle, and all ticks; empty if the kernel does not say."""
    allowed = os.sched_getaffinity(0)
    times = {}
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    for line in lines[1:]:
        name, *fields = line.split()
        if not name.startswith("cpu"):
            break
        if (core := int(name[3:])) in allowed:
            ticks = [int(each) for each in fields[:8]]  # without guest time, which is in user time, too
            times[core] = ticks[3] + ticks[4], sum(ticks)
    return times


@dataclass(slots=True)
class Packer:
    """Lets as many reactors of `hub` serve as its load needs, at most `most`, and moves connections between them."""

    hub: _fastpath.Hub
    loop: asyncio.AbstractEventLoop
    most: int
    _timer: asyncio.TimerHandle | None = None
    _cpu_s: list[float] = field(default_factory=list)
    _cores: dict[int, tuple[int, int]] = field(default_factory=dict)
    _measured_s: float = 0.0
    _calm_windows: int = 0
    _settle_windows: int = 0
    _closed: bool = False

    def limit(self, most: int) -> None:
        """Let at most this many serve; what lives in others moves. Raises `OSError` if one more cannot be had."""
        self.hub.set_most(most)
        self.most = most
        self.wake()

    def wake(self) -> None:
        """A reactor is over its threshold: look at the next window."""
        if self._timer is None and not self._closed:
            self._measure()
            self._timer = self.loop.call_later(WINDOW_S, self._look)

    def close(self) -> None:
        """Stop looking."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _measure(self) -> tuple[list[float], float]:
        """Load of each reactor and idle cores since the last call."""
        now_s, cpu_s, cores = self.loop.time(), self.hub.cpu_seconds(), core_times()
        passed_s = max(now_s - self._measured_s, SHORTEST_S)
        loads = [(now - before) / passed_s for before, now in zip(self._cpu_s, cpu_s, strict=False)]
        loads += [0.0] * (len(cpu_s) - len(loads))
        idle = idle_cores(self._cores, cores)
        self._cpu_s, self._cores, self._measured_s = cpu_s, cores, now_s
        return loads, idle

    def _look(self) -> None:
        """A window is over: decide, and look again while there is something to look after."""
        self._timer = None
        loads, idle = self._measure()
        self.hub.set_loads([round(load * 1000) for load in loads])
        serving = self.hub.threads
        spare = serving > 1 and sum(loads) <= (serving - 1) * LOAD_MERGED
        self._calm_windows = self._calm_windows + 1 if spare else 0
        self._settle_windows = max(0, self._settle_windows - 1)
        if not self._settle_windows:
            self._do(decide(loads, serving, self.most, idle, self._calm_windows))
        retired = self._empty_retired()
        if self.hub.threads > 1 or retired or max(loads) >= LOAD_HIGH:
            self._timer = self.loop.call_later(WINDOW_S, self._look)

    def _do(self, plan: Plan) -> None:
        if plan.serving != self.hub.threads:
            try:
                self.hub.set_threads(plan.serving)
            except OSError:  # no descriptor for it, or no memory: the others go on
                return
            self._calm_windows = 0
        for move in plan.moves:
            self.hub.shed(move.source, move.to, move.share)
            self._settle_windows = SETTLE_WINDOWS

    def _empty_retired(self) -> bool:
        """Move what lives in reactors that do not serve; whether there is something left."""
        live = [connections for _, connections, *_ in self.hub.reactor_counts()]
        retired = [at for at in range(self.hub.threads, len(live)) if live[at]]
        for at in retired:
            self.hub.shed(at, 0, WHOLE)
        return bool(retired)
