"""What `python -m bench lab` takes; needs no library but Python's own."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.results import RESULTS_DIR

__all__ = ["DESCRIPTION", "EPILOG", "add_arguments"]

DESCRIPTION = """
wrk through oinetd to nginx, in namespaces: S1 a small file on many connections, S2 1 MiB, S3 8 MiB. Looked at in four
layers: 1 counters, 2 call stacks, 3 tracepoints of each stage and system calls, 4 scheduling; the same without load
for contrast. Writes a report with a summary, for each GB and for each request, and keeps the raw files.

With --pid it looks at any service that runs, as it is. Needs root and perf.
"""

EPILOG = """
examples:
  sudo python -m bench lab --quick
  sudo python -m bench lab --pid $(pidof -s oinetd) --layer 1 --layer 4
  python -m bench lab --again bench/results/lab-20260102-030405
"""

SCENARIOS = ("S1", "S2", "S3")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pid", type=int, default=0, metavar="PID", help="a service that runs, with its children")
    parser.add_argument("--layer", type=int, action="append", default=[], choices=range(1, 5), dest="layers",
                        help="only this one; may be given several times")  # fmt: skip
    parser.add_argument("--scenario", action="append", default=[], choices=SCENARIOS,
                        dest="scenarios", help="only this one; may be given several times")  # fmt: skip
    parser.add_argument("--subject", default="", metavar="NAME", help="the forwarder; default: oinetd as it comes")
    parser.add_argument("--seconds", type=float, default=0.0, metavar="S", help="of each window; default 5, quick 1")
    parser.add_argument("--dwarf", action="store_true", help="unwind stacks by debugging information: costs more")
    parser.add_argument("--quick", action="store_true", help="short windows")
    parser.add_argument("--topology", choices=("auto", "netns", "loopback"), default="auto")
    parser.add_argument("--out", type=Path, default=RESULTS_DIR, metavar="DIR", help="where the result is kept")
    parser.add_argument("--again", type=Path, metavar="DIR", help="read the figures of this run again, and compare")
