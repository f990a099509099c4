"""`quick`: a short run of each experiment, and a page of the results: what a newcomer sees after five minutes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from bench.errors import BenchError
from bench.experiment import Experiment, Options, perform
from bench.results import Result

__all__ = ["PLAN", "run_quickly"]

PLAN: dict[str, dict[str, object]] = {
    "throughput": {"seconds": 0.4, "rounds": 2, "extra": {"no_iperf3": True}},
    "latency": {"seconds": 0.4, "rounds": 2},
    "rate": {"seconds": 0.4, "rounds": 2},
    "udp": {
        "seconds": 0.25, "rounds": 1, "subjects": ["direct", "oinetd-native", "oinetd-python", "nginx"],
    },
    "connections": {"rounds": 1},
    "micro": {"rounds": 1},
}  # fmt: skip
"""What each experiment is given, so that all of them together take less than five minutes."""


def run_quickly(options: Options, make: Callable[[str, Options], Experiment], page: Path, console: Console) -> int:
    """Run each, keep the results, write the page; the status is the worst of all."""
    from bench.report import write_page

    status = 0
    results: dict[str, Result] = {}
    begin = time.monotonic()
    for name, changes in PLAN.items():
        console.print(f"{name}, after {time.monotonic() - begin:.0f} s", style="bold", highlight=False)
        try:
            experiment = make(name, replace(options, **changes))  # type: ignore[arg-type]
            result = perform(experiment, console)
        except BenchError as error:
            console.print(f"{name}: {error}", highlight=False, markup=False)
            status = 1
            continue
        if result.samples:
            result.save(options.out)
            results[name] = result
        status = max(status, experiment.show(result, console))
        if result.interrupted:
            break
    if results:
        write_page(results, page)
        console.print(f"after {time.monotonic() - begin:.0f} s, the page: {page}", highlight=False, soft_wrap=True)
    return status if results else 1
