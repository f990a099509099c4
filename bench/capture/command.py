"""`python -m bench capture`: the trial, or `--live` on a forwarder that runs."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from bench.capture.output import TINY, print_rows, verdicts, write_csv, write_plot
from bench.capture.trial import IPERF, MODES, PAYLOADS, Load, Row, Trial, TrialSettings
from bench.capture.watch import Watched, routes_of_config, routes_of_rules, watch
from bench.errors import BenchError
from bench.fastpath import native
from bench.machine import describe
from bench.plan import Plan
from bench.stand import Stand
from bench.subjects import Subject, choose
from bench.tools import need, need_libraries

__all__ = ["add_arguments", "default_subject", "run"]

DESCRIPTION = """
A packet ring of the bench's own (TPACKET_V3) beside tcpdump, on both legs of a forwarder, on the same traffic: together
and each alone, payloads of 64 B to 64 KiB and iperf3. What was sent is known from the senders, by sequence numbers.
A run with a ring made tiny proves that loss is seen. Writes a table, a CSV file and a plot.

With --live it watches a forwarder that runs, in its namespace: for each session the bytes on the client leg and on the
upstream leg, and whether they agree. Needs root.
"""

EPILOG = """
examples:
  sudo python -m bench capture --quick
  sudo python -m bench capture --live --pid $(pidof -s oinetd) --seconds 60
  sudo python -m bench capture --live --rule '0.0.0.0 8080 10.0.0.2 80' --pcap both-legs.pcap
"""

RUN_S = 2.6
"""What a run takes besides its load: a forwarder and captures come and go, tcpdump's last block is waited for."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from bench.results import RESULTS_DIR

    group = parser.add_argument_group("the trial")
    group.add_argument("--subject", default="", metavar="NAME", help="the forwarder; default: oinetd as it comes")
    group.add_argument("--quick", action="store_true", help="about a minute: fewer payloads, half a second each")
    group.add_argument("--payloads", default="", metavar="BYTES,…", help="default 64 to 65536; 0 is iperf3")
    group.add_argument("--connections", type=int, default=4, metavar="N")
    group.add_argument("--rounds", type=int, default=0, metavar="N", help="default 3; with --quick 1")
    group.add_argument("--topology", choices=("auto", "netns", "loopback"), default="auto")
    group.add_argument("--out", type=Path, default=RESULTS_DIR, metavar="DIR", help="where the result is kept")
    group = parser.add_argument_group("a forwarder that runs")
    group.add_argument("--live", action="store_true", help="watch it instead")
    group.add_argument("--pid", type=int, default=0, metavar="PID", help="its process, whose namespace is entered")
    group.add_argument("--config", type=Path, metavar="FILE", help="its rules; default: as PID was started")
    group.add_argument("--rule", action="append", default=[], metavar="'HOST PORT HOST PORT'", dest="rules")
    group.add_argument("--pcap", type=Path, metavar="FILE", help="keep the packets; tcpdump and wireshark read it")
    group.add_argument("--json", type=Path, metavar="FILE", help="keep all sessions")
    group = parser.add_argument_group("both")
    group.add_argument("--seconds", type=float, default=0.0, metavar="S", help="of one load; live: until Ctrl-C")
    group.add_argument("--ring", type=int, default=2 << 10, metavar="KIB", help="of each capture; default 2048")


def default_subject(name: str) -> Subject:
    """The subject that was asked for; else oinetd's native engine where it is built, else its Python lane."""
    for candidate in [name] if name else ["native-auto", "python"]:
        (subject, *_more) = choose([candidate], [], [])
        from bench.topology import Loopback

        if name or subject.unavailable(Loopback.__new__(Loopback)) is None:
            return subject
    raise BenchError("no oinetd to look at: pip install -e .")


def run(arguments: argparse.Namespace, console: Console) -> int:
    need_libraries("psutil", "matplotlib")
    native()
    if arguments.ring < 4:
        raise BenchError("--ring: a ring has at least 4 KiB")
    if arguments.live:
        return watch(
            _watched(arguments), arguments.seconds, arguments.ring << 10, arguments.pcap, arguments.json, console
        )
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
    need("tcpdump")
    loads = _loads(arguments)
    if IPERF in loads:
        need("iperf3")
    seconds = arguments.seconds or (0.5 if arguments.quick else 2.0)
    rounds = arguments.rounds or (1 if arguments.quick else 3)
    settings = TrialSettings(seconds, arguments.connections, arguments.ring << 10)
    planned_s = (rounds * len(loads) * len(MODES) + 1) * (seconds + RUN_S)
    started = time.time()
    rows: list[Row] = []
    with Stand(arguments.topology) as stand:
        trial = Trial(stand, default_subject(arguments.subject), settings)
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
