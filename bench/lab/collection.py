"""A lab run: raw files of every window, and the figures read out of them again."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.lab import counters, hotspots, scheduling, stages
from bench.lab.layer import Figures, Layer, Target, read_window
from bench.lab.scenario import Scenario, parse_wrk, wrk_command
from bench.lab.snapshot import take_snapshot
from bench.plan import Plan
from bench.programs import wait_until
from bench.stand import Running, Stand

__all__ = ["LAYERS", "LAYER_S", "TIMED", "collect_layers", "derive", "loaded", "timed"]

LAYERS: tuple[Layer, ...] = (counters.LAYER, hotspots.LAYER, stages.LAYER, scheduling.LAYER)
TIMED = "0-timed"
WARM_UP_S = 0.5
LAYER_S = 4.0
"""What a window takes besides itself: perf starts, and its recording is written out as text."""
LOAD_MAX_S = 3600
"""wrk is stopped at the end of the windows."""


def collect_layers(target: Target, directory: Path, layers: Sequence[Layer], seconds: float, plan: Plan) -> None:
    """A window for each layer, one after the other."""
    for layer in layers:
        plan.now(f"{directory.name}: {layer.name}")
        path = directory / layer.directory
        path.mkdir(parents=True)
        layer.collect(target, path, seconds)
        plan.did(seconds + LAYER_S)


def timed(stand: Stand, running: Running, target: Target, scenario: Scenario, directory: Path, seconds: float) -> None:
    """The load without any measurement: with the layers' measurements it is slower."""
    path = directory / TIMED
    path.mkdir(parents=True)
    warm = wrk_command(stand, scenario, running.host, running.port, 1)
    with stand.client(warm) as program:
        program.read_rest()
    take_snapshot(path / "before", target.pids(), target.status_socket)
    with stand.client(wrk_command(stand, scenario, running.host, running.port, seconds)) as program:
        said = program.read_rest()
    take_snapshot(path / "after", target.pids(), target.status_socket)
    (path / "pids.json").write_text(json.dumps(list(target.pids())) + "\n")
    (path / "wrk.txt").write_text(said)


@contextlib.contextmanager
def loaded(stand: Stand, running: Running, scenario: Scenario, directory: Path) -> Iterator[None]:
    """The load goes on within the block; what wrk says of it is kept, too."""
    used = running.account.cpu_times().total_s
    with stand.client(wrk_command(stand, scenario, running.host, running.port, LOAD_MAX_S)) as program:
        wait_until(lambda: running.account.cpu_times().total_s > used + 0.02, 10.0, "the load does not begin")
        time.sleep(WARM_UP_S)
        yield
        if not program.running:
            raise BenchError(program.failure())
        program.process.send_signal(signal.SIGINT)
        (directory / "wrk-observed.txt").write_text(program.read_rest())


def derive(run: Path) -> Figures:
    """All figures of a run, from its files alone."""
    meta = json.loads((run / "meta.json").read_text())
    windows: dict[str, Any] = {}
    for name in meta["windows"]:
        figures: dict[str, Any] = {}
        if (run / name / TIMED).is_dir():
            figures["timed"] = _timed(run / name / TIMED)
        for layer in LAYERS:
            if (run / name / layer.directory).is_dir():
                figures[layer.name] = layer.derive(run / name / layer.directory)
        windows[name] = figures
    return {"meta": meta, "windows": windows}


def _timed(path: Path) -> Figures:
    wrk = parse_wrk((path / "wrk.txt").read_text())
    passed = read_window(path).passed
    seconds, gigabytes, requests = wrk["duration_us"] / 1e6, wrk["bytes"] / 1e9, wrk["requests"]
    return {
        **wrk,
        "requests_per_s": requests / seconds if seconds else None,
        "gbit_s": gigabytes * 8 / seconds if seconds else None,
        "cpu_s": passed.cpu_s,
        "cpu_s_per_gb": passed.cpu_s / gigabytes if gigabytes else None,
        "cpu_us_per_request": passed.cpu_s * 1e6 / requests if requests else None,
        "cpu_share": passed.cpu_s / passed.seconds,
        "busiest_threads": [
            [thread.name, thread.run_ns / 1e9]
            for thread in sorted(passed.threads.values(), key=lambda thread: -thread.run_ns)[:4]
        ],
    }
