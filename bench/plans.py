"""`quick` and `full`: measurements one after the other, each as a command of its own, and a page of the results.

A step is a command line of the bench: whoever wants one part alone, or once more, runs that line.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.errors import BenchError
from bench.programs import ROOT
from bench.results import Result, load_results, newest

__all__ = ["FULL", "QUICK", "run_plan"]

QUICK = (
    "throughput --quick --seconds 0.4 --no-iperf3 --softirq",
    "latency --quick --seconds 0.4 --no-check --cases '64B × 1;64B × 64'",
    "rate --quick --seconds 0.4 --rounds 1 --no-check",
    "mixed --quick --rounds 1 --seconds 0.5 --no-check",
    "udp --quick --seconds 0.25 --rounds 1 --subjects direct,oinetd-native,oinetd-python,nginx",
    "connections --quick --rounds 1 --no-check",
    "micro --quick --rounds 1 --no-check",
    "lab --quick --scenario S1",
    "capture --quick --payloads 1024,0",
)
"""No subject that is invalid by its nature: rinetd passes no half-close on, and would end the run with status 1."""

_PEERS = "nginx,nginx-trixie,rinetd"
_COPYING = f"haproxy,haproxy-trixie,{_PEERS}"
_SIZES = ";".join(f"len(payload)={size}" for size in (1, 64, 2048, 16 << 10, 64 << 10, 256 << 10))
FULL = (
    "throughput --seconds 0.4 --no-iperf3 --softirq --buffers 8K,16K,64K,256K "
    f"--subjects floor,native-auto,native-splice,native-copy,python,haproxy-splice,haproxy-splice-trixie,{_PEERS}",
    f"latency --seconds 0.6 --softirq --cases '64B × 1;64B × 64' --subjects floor,native-auto,python,{_COPYING}",
    "rate --seconds 0.5 --softirq --cases 'connect/close × 16;connect/close × 64;* idle' "
    f"--subjects native-auto,python,{_COPYING}",
    "mixed --seconds 0.5 --idle 2000 --subjects direct,native-auto,python,haproxy",
    "failover --seconds 0.5 --rounds 1 --cases '*, connect/close'",
    "udp --seconds 0.3 --rate 50000 --cases '64B*;1400B × 1, 32 under way' "
    "--subjects direct,oinetd-native,oinetd-python,nginx,rinetd",
    "connections --scale 0.1 --rounds 6 "
    "--subjects direct,native-splice,native-copy,python,haproxy-splice,nginx,reference",
    f"micro --seconds 0.2 --cases '{_SIZES}' --subjects native-copy,native-splice,python",
    "lab --scenario S1 --seconds 1",
    "capture --quick",
)
"""Six rounds of what has an interval. Of the peers rinetd passes no half-close on: the status is 1 with it."""


def run_plan(steps: Sequence[str], out: Path, page: Path, more: Sequence[str], console: Console) -> int:
    """Run each step with the words `more` behind it, keep the results in `out`, write the page of what was measured.

    The status is the worst of the steps. It goes on after a step that failed, not after one that was interrupted.
    """
    from bench.report import newest_kept, write_page

    started, begin = time.time(), time.monotonic()
    table = Table(title="what was measured", title_justify="left")
    for title in ("command", "seconds", "status"):
        table.add_column(title, justify="left" if title == "command" else "right")
    worst = 0
    for step in steps:
        words = [*shlex.split(step), *more, "--out", str(out)]
        console.print(f"python -m bench {step}", style="bold", highlight=False, soft_wrap=True)
        at = time.monotonic()
        status = _run(words)
        table.add_row(step, f"{time.monotonic() - at:.0f}", str(status))
        worst = max(worst, int(status != 0))
        if any(result.interrupted for result in _since(out, started)):
            break
    results = newest(_since(out, started))
    if results:
        kept = {name: run for name, run in newest_kept([out]).items() if run.started >= started}
        write_page(results, page, kept)
    console.print(table)
    console.print(f"after {time.monotonic() - begin:.0f} s, the page: {page}", highlight=False, soft_wrap=True)
    return worst if results else 1


def _run(words: Sequence[str]) -> int:
    sys.stdout.flush()
    with subprocess.Popen([sys.executable, "-m", "bench", *words], cwd=ROOT) as step:
        try:
            return step.wait()
        except BaseException:
            step.terminate()  # it keeps what it has measured, and takes down what it made
            step.wait()
            raise


def _since(out: Path, started: float) -> list[Result]:
    """The results of this run."""
    try:
        return [result for result in load_results([out]) if result.started >= started]
    except BenchError:
        return []
