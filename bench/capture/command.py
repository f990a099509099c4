"""`python -m bench capture`: the trial, or `--live` on a forwarder that runs."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator

from rich.console import Console

from bench.capture.output import TINY, print_rows, verdicts, write_csv, write_plot
from bench.capture.trial import IPERF, MODES, PAYLOADS, Load, Row, Trial, TrialSettings
from bench.capture.watch import Watched, routes_of_config, routes_of_rules, watch
from bench.errors import BenchError
from bench.extension import native
from bench.machine import describe
from bench.plan import Plan
from bench.stand import Stand
from bench.subjects import Subject, choose
from bench.tools import need, need_libraries
from bench.topology import Topology

__all__ = ["forwarder_named", "run"]

RING_BYTES = 2 << 20
"""What tcpdump takes by itself."""
LIVE_RING_BYTES = 16 << 20
"""A reader that gets no processor for a fifth of a second loses nothing of 400 000 packets a second."""

RUN_S = 2.6
"""What a run takes besides its load: a forwarder and captures come and go, tcpdump's last block is waited for."""


def forwarder_named(name: str, topology: Topology) -> Subject:
    """The subject that was asked for; else oinetd's native engine where it is built, else its Python lane."""
    reason: str | None = None
    for candidate in [name] if name else ["native-auto", "python"]:
        (subject, *_others) = choose([candidate], [], [])
        reason = "there is no process to look at" if subject.family == "floor" else subject.unavailable(topology)
        if reason is None:
            return subject
    raise BenchError(f"{candidate}: {reason}")


def run(arguments: argparse.Namespace, console: Console) -> int:
    need_libraries("psutil")
    native()
    if arguments.live:
        ring_bytes = (arguments.ring << 10) or LIVE_RING_BYTES
        return watch(_watched(arguments), arguments.seconds, ring_bytes, arguments.pcap, arguments.json, console)
    return _trial(arguments, console)


def _watched(arguments: argparse.Namespace) -> Watched:
    if arguments.rules:
        return Watched(routes_of_rules(arguments.rules), arguments.pid)
    if arguments.config:
        return Watched(routes_of_config(arguments.config), arguments.pid)
    if arguments.pid:
        return Watched.of_pid(arguments.pid)
    raise BenchError("--live needs --pid, --config or --rule")


def _loads(arguments: argparse.Namespace) -> list[Load]:
    words = [word for word in arguments.payloads.split(",") if word]
    if not all(word.isdigit() and int(word) <= 1 << 20 for word in words):
        raise BenchError("--payloads: numbers of bytes, up to 1048576")
    payloads = [int(word) for word in words] or [*(PAYLOADS[::5] if arguments.quick else PAYLOADS), 0]
    return [Load.of_payload(payload) if payload else IPERF for payload in payloads]


def _trial(arguments: argparse.Namespace, console: Console) -> int:
    need_libraries("matplotlib")
    need("tcpdump")
    loads = _loads(arguments)
    if IPERF in loads:
        need("iperf3")
    seconds = arguments.seconds or (0.5 if arguments.quick else 2.0)
    rounds = arguments.rounds or (1 if arguments.quick else 3)
    settings = TrialSettings(seconds, arguments.connections, (arguments.ring << 10) or RING_BYTES)
    planned_s = (rounds * len(loads) * len(MODES) + 1) * (seconds + RUN_S)
    started = time.time()
    rows: list[Row] = []
    with Stand(arguments.topology) as stand:
        trial = Trial(stand, forwarder_named(arguments.subject, stand.topology), settings)
        with Plan(console, planned_s) as plan:
            for number, load, mode in _schedule(loads, rounds):
                plan.now(f"{load.name}, watched by {mode}")
                rows += trial.run(load, mode, number)
                plan.did(seconds + RUN_S)
            plan.now("tiny ring")
            rows += trial.run(Load.of_payload(1024), "ring", 0, tiny=True)
        facts = {
            "started": started, "machine": describe(("tcpdump", "iperf3")), "subject": trial.subject.name,
            "topology": {"name": stand.topology.name, **stand.topology.facts},
            "settings": {"seconds": seconds, "rounds": rounds, "connections": settings.connections,
                         "ring_bytes": settings.ring_bytes},
        }  # fmt: skip
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(started))
    directory = arguments.out / f"capture-{stamp}{'-quick' if arguments.quick else ''}"
    directory.mkdir(parents=True)
    write_csv(rows, directory / "capture.csv")
    write_plot(rows, trial.sequences, directory / "capture.svg")
    lines = verdicts(rows)
    (directory / "capture.json").write_text(
        json.dumps({**facts, "verdicts": lines, "sequences": trial.sequences}, indent=1, ensure_ascii=False) + "\n"
    )
    print_rows(rows, console)
    for line in lines:
        console.print(f"{line[0].upper()}{line[1:]}.", highlight=False)
    console.print(f"kept in {directory}", highlight=False, soft_wrap=True)
    proved = any(row.mode == TINY and row.missed_bytes and row.drops for row in rows)
    return 0 if proved else 1


def _schedule(loads: list[Load], rounds: int) -> Iterator[tuple[int, Load, str]]:
    """Every other round with the modes in reverse, so that what the machine does meanwhile falls on all alike."""
    for number in range(rounds):
        for load in loads:
            for mode in list(MODES) if number % 2 == 0 else reversed(MODES):
                yield number, load, mode
