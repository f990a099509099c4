"""What `python -m bench capture` takes; needs no library but Python's own."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.results import RESULTS_DIR

__all__ = ["DESCRIPTION", "EPILOG", "add_arguments"]

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
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
    group.add_argument("--ring", type=int, default=0, metavar="KIB", help="default 2048; live 16384")
