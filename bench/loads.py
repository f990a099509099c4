"""The bench's own loads: run against a subject, judged by what client and server have counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bench.ambient import ambient_texts
from bench.meter import Spent, run_client
from bench.results import Sample
from bench.stand import Counts, FarEnd, Running, Stand
from bench.validity import (
    bulk_faults,
    drift_fault,
    exchange_faults,
    idle_operations_fault,
    idle_work_fault,
    short_faults,
    stream_fault,
)  # fmt: skip

__all__ = ["Load", "bulk_load", "exchange_load", "settled", "short_load"]

_SETTLE_S = 1.0
"""How long bytes that are still on their way may take until the count of the server is final."""
_GIGA = 1e9
_LATE_SHARE, _LATE_S = 0.1, 0.02
"""How much longer or shorter than the load the time may be for which its processor time is counted."""

Judge = Callable[[Mapping[str, Any], Mapping[str, int]], list[str]]


@dataclass
class Load:
    """What one load has shown."""

    figures: dict[str, Any]
    spent: Spent
    invalid: list[str]
    ambient: list[str]

    @property
    def busy(self) -> bool:
        return any(text.startswith("busy") for text in self.ambient)

    def sample(self, case: str, values: dict[str, float | None], **detail: Any) -> Sample:
        """A sample of this load, with what is wrong with it and what the machine did."""
        return Sample(
            "", case, 0, values, detail=detail, invalid=list(self.invalid), ambient=list(self.ambient),
            machine=dict(self.spent.machine),
        )  # fmt: skip


def _run(stand: Stand, running: Running, far: FarEnd, what: str, judge: Judge, seconds: float, **options: Any) -> Load:
    options = {"seconds": seconds, "warm_up": stand.warm_up_s, "threads": stand.cores.loads, **options}
    before = far.counts()
    figures, spent = run_client(stand, running, what, **options)
    invalid, after = settled(far, before, lambda counted: judge(figures, counted))
    invalid += spent.elsewhere
    ambient = ambient_texts(spent.machine, figures["busy"], after.busy_since(before))
    if abs(spent.seconds - figures["elapsed_s"]) > _LATE_SHARE * figures["elapsed_s"] + _LATE_S:
        # On a machine without time for the bench itself its two looks at the clocks are not those of the load.
        ambient.append(
            f"busy: the load took {figures['elapsed_s']:.2f} s and was looked at for {spent.seconds:.2f} s; CPU unknown"
        )
        spent.cpu_s = spent.total_cpu_s = None
    return Load(figures, spent, invalid, ambient)


def settled(far: FarEnd, before: Counts, judge: Callable[[dict[str, int]], list[str]]) -> tuple[list[str], Counts]:
    """What is wrong by the counts of the server when the last bytes have arrived, or nothing more comes."""
    counts = far.counts()
    invalid = judge(counts.since(before))
    deadline = time.monotonic() + _SETTLE_S
    while invalid and time.monotonic() < deadline:
        time.sleep(0.05)
        later = far.counts()
        invalid = judge(later.since(before))
        if later.numbers == counts.numbers:
            return invalid, later
        counts = later
    return invalid, counts


def exchange_load(
    stand: Stand, running: Running, far: FarEnd, *, connections: int, up: int, down: int, seconds: float,
    rate: float = 0.0, warm_up: float | None = None,
) -> Load:  # fmt: skip
    """Requests and answers on connections that stay; at a `rate` a second, or as fast as they are answered."""
    warm_up = stand.warm_up_s if warm_up is None else warm_up
    load = _run(
        stand, running, far, "exchange", exchange_faults, seconds,
        connections=connections, up=up, down=down, rate=rate, warm_up=warm_up,
    )  # fmt: skip
    load.invalid += idle_operations_fault(load.spent.cpu_s, load.figures["operations"])
    if not rate:
        load.invalid += stream_fault(load.figures["streams"], busy=load.busy)
        load.invalid += drift_fault(load.figures["slices"], load.figures["slice_s"], warm_up, seconds, busy=load.busy)
    return load


def short_load(stand: Stand, running: Running, far: FarEnd, *, connections: int, seconds: float) -> Load:
    """Connections that are opened, ask once and are closed; `connections` at a time."""
    load = _run(stand, running, far, "short", short_faults, seconds, connections=connections)
    load.invalid += idle_operations_fault(load.spent.cpu_s, load.figures["operations"])
    load.invalid += _drift(stand, load, seconds)
    return load


def bulk_load(
    stand: Stand, running: Running, far: FarEnd, *, connections: int, up: bool, seconds: float = 0.0, blocks: int = 0,
    warm_up: float | None = None,
) -> Load:  # fmt: skip
    """Streams, up or down, for some seconds or of so many blocks.

    With a `warm_up` of its own the load is one whose rate is not even, and no drift is looked for.
    """

    def judge(figures: Mapping[str, Any], server: Mapping[str, int]) -> list[str]:
        return bulk_faults(figures, server, up=up)

    what = "upload" if up else "download"
    timed = {"warm_up": 0.0} if blocks else {} if warm_up is None else {"warm_up": warm_up}
    load = _run(
        stand, running, far, what, judge, seconds, connections=connections, blocks=blocks, **timed
    )  # fmt: skip
    moved = sum(load.figures["streams"])
    load.invalid += idle_work_fault(load.spent.cpu_s, moved / _GIGA)
    if not blocks:
        load.invalid += stream_fault(load.figures["streams"], busy=load.busy)
        load.invalid += _drift(stand, load, seconds) if warm_up is None else []
    return load


def _drift(stand: Stand, load: Load, seconds: float) -> list[str]:
    figures = load.figures
    return drift_fault(figures["slices"], figures["slice_s"], stand.warm_up_s, seconds, busy=load.busy)
