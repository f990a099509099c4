"""`python -m bench lab`: the scenarios in namespaces, a service that runs, or figures read out of files again."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
from rich.console import Console

from bench.ambient import OTHERS_CORES, busy_before
from bench.capture.command import forwarder_named
from bench.errors import BenchError
from bench.lab.collection import LAYER_S, LAYERS, collect_layers, derive, loaded, timed
from bench.lab.layer import Figures, Layer, Target
from bench.lab.report import render
from bench.lab.scenario import SCENARIOS, Scenario, nginx
from bench.lab.tracing import mount_tracefs
from bench.machine import describe, summary_line
from bench.plan import Plan
from bench.stand import Stand
from bench.tools import need, need_libraries

__all__ = ["run"]


def run(arguments: argparse.Namespace, console: Console) -> int:
    if arguments.again is not None:
        return _again(arguments.again, console)
    need_libraries("psutil")
    need("perf")
    if os.geteuid() != 0:
        raise BenchError("perf looks into the kernel only for root: use sudo")
    layers = [layer for layer in LAYERS if not arguments.layers or layer.number in arguments.layers]
    missing = []
    if without := mount_tracefs():
        missing = [
            f"Without tracepoints ({without}) missing: {', '.join(each.name for each in layers if each.tracepoints)}"
        ]
        layers = [layer for layer in layers if not layer.tracepoints]
    remarks = {"missing": missing, "ambient": _ambient()}
    seconds = arguments.seconds or (1.0 if arguments.quick else 5.0)
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    directory = arguments.out / f"lab-{stamp}{'-quick' if arguments.quick else ''}"
    directory.mkdir(parents=True)
    if arguments.pid:
        _service(arguments, directory, layers, seconds, remarks, console)
    else:
        chosen = [each for each in SCENARIOS if not arguments.scenarios or each.name in arguments.scenarios]
        _scenarios(arguments, directory, chosen, layers, seconds, remarks, console)
    figures = derive(directory)
    (directory / "figures.json").write_text(_text(figures))
    report = render(figures)
    (directory / "report.md").write_text(report)
    console.print(report, markup=False, highlight=False, soft_wrap=True)
    console.print(f"kept in {directory}", highlight=False, soft_wrap=True)
    return 0


def _text(figures: Figures) -> str:
    return json.dumps(figures, indent=1, ensure_ascii=False) + "\n"


def _again(directory: Path, console: Console) -> int:
    """Print the report from the raw files; 1 if it is not what was kept."""
    try:
        figures = derive(directory)
        kept = json.loads((directory / "figures.json").read_text()), (directory / "report.md").read_text()
    except (OSError, ValueError, KeyError) as error:
        raise BenchError(f"{directory} is not a lab run that came to its end: {error!r}") from None
    report = render(figures)
    console.print(report, markup=False, highlight=False, soft_wrap=True)
    # Through JSON, as the kept ones went.
    same = (json.loads(_text(figures)), report) == kept
    console.print("the same as was kept" if same else "NOT the same as was kept", highlight=False)
    return 0 if same else 1


def _ambient() -> list[str]:
    """What is to be known of the machine before anything is measured."""
    cores = busy_before()
    if cores <= OTHERS_CORES:
        return []
    return [
        f"The machine was busy before the first load: {cores:.2f} of {os.cpu_count()} cores. So is its idle window."
    ]


def _meta(
    directory: Path, target: str, windows: dict[str, str], topology: dict[str, str], seconds: float,
    remarks: dict[str, list[str]],
) -> None:  # fmt: skip
    machine = describe(("perf", "wrk", "nginx"))
    meta = {
        "target": target, "windows": windows, "topology": topology, "seconds": seconds, "machine": machine,
        "machine_line": f"{summary_line(machine)}; {topology.get('name', 'as it runs')}; windows of {seconds:g} s.",
        "started": time.time(), **remarks,
    }  # fmt: skip
    (directory / "meta.json").write_text(json.dumps(meta, indent=1, ensure_ascii=False) + "\n")


def _family(pid: int) -> list[int]:
    try:
        process = psutil.Process(pid)
        return [pid, *(child.pid for child in process.children(recursive=True))]
    except psutil.Error as error:
        raise BenchError(f"process {pid}: {error}") from None


def _service(
    arguments: argparse.Namespace, directory: Path, layers: Sequence[Layer], seconds: float,
    remarks: dict[str, list[str]], console: Console,
) -> None:  # fmt: skip
    pid = arguments.pid
    _family(pid)
    name = psutil.Process(pid).name()
    target = Target(name, lambda: _family(pid), dwarf=arguments.dwarf)
    _meta(directory, name, {"now": f"process {pid} as it runs"}, {}, seconds, remarks)
    with Plan(console, len(layers) * (seconds + LAYER_S)) as plan:
        collect_layers(target, directory / "now", layers, seconds, plan)


def _scenarios(
    arguments: argparse.Namespace, directory: Path, scenarios: Sequence[Scenario], layers: Sequence[Layer],
    seconds: float, remarks: dict[str, list[str]], console: Console,
) -> None:  # fmt: skip
    for program in ("wrk", "nginx"):
        need(program)
    planned_s = (len(scenarios) + 1) * len(layers) * (seconds + LAYER_S) + len(scenarios) * (seconds + 2)
    with Stand(arguments.topology) as stand, Plan(console, planned_s) as plan:
        subject = forwarder_named(arguments.subject, stand.topology)
        port = stand.free_port()
        cores = os.cpu_count() or 1
        titles = {
            each.name: f"{each.title}; wrk -t{each.scaled(cores)[0]} -c{each.scaled(cores)[1]}" for each in scenarios
        }
        windows = {"idle": "no load", **titles}
        _meta(directory, subject.name, windows, {"name": stand.topology.name, **stand.topology.facts}, seconds, remarks)
        with nginx(stand, port) as status_socket, stand.subject(subject, port) as running:
            target = Target(subject.name, running.account.pids, status_socket, arguments.dwarf)
            collect_layers(target, directory / "idle", layers, seconds, plan)
            for scenario in scenarios:
                place = directory / scenario.name
                plan.now(f"{scenario.name}: the load alone")
                timed(stand, running, target, scenario, place, seconds)
                plan.did(seconds + 2)
                with loaded(stand, running, scenario, place):
                    collect_layers(target, place, layers, seconds, plan)
