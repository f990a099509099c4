"""`quick` and `full`: measurements one after the other, each as a command of its own, and a page of the results.

A step is a command line of the bench: whoever wants one part alone, or once more, runs that line.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.commands.arguments import Commands
from bench.commands.measurements import add_measurements, experiment, options
from bench.errors import BenchError, Interrupted
from bench.experiment import Experiment, planned_s
from bench.machine import describe
from bench.programs import ROOT
from bench.results import Result, load_results, newest

__all__ = ["FULL", "INTERVALS", "QUICK", "Settings", "about_s", "run_plan", "unfinished"]

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
_SIZES = ";".join(f"len(payload)={size}" for size in (1, 2048, 64 << 10, 256 << 10))
INTERVALS = (
    "throughput --seconds 0.3 --no-iperf3 --softirq --buffers 8K,16K,64K,256K "
    f"--subjects floor,native-auto,native-splice,native-copy,python,haproxy-splice,haproxy-splice-trixie,{_PEERS}",
    f"latency --seconds 0.5 --cases '64B × 1;64B × 64' --subjects floor,native-auto,python,{_COPYING}",
    "rate --seconds 0.4 --no-check --idle 2000 --cases 'connect/close × 16;connect/close × 64;* idle' "
    f"--subjects native-auto,python,{_COPYING}",
    "mixed --seconds 0.4 --idle 1000 --no-check --subjects direct,native-auto,haproxy-trixie",
    "udp --seconds 0.3 --rate 50000 --cases '64B × 1, *;64B × 100, one under way each' "
    "--subjects direct,oinetd-native,oinetd-python,nginx,rinetd",
    "connections --scale 0.05 --rounds 6 --no-check "
    "--subjects direct,native-splice,native-copy,python,haproxy-splice,nginx",
    f"micro --seconds 0.15 --no-check --cases '{_SIZES}' --subjects native-copy,native-splice,python",
)
"""Six rounds each: what a second run is compared with. What `--softirq` adds has no interval."""
FULL = (
    *INTERVALS,
    "failover --seconds 0.5 --rounds 1 --cases 'killed, connect/close' "
    "--subjects oinetd-native,haproxy-trixie,nginx-trixie",
    "scaling --seconds 0.5 --rounds 1 --no-check --cases '64B × 1000;connect/close × 100' "
    "--subjects oinetd,haproxy-trixie,nginx-trixie",
    "moves --quick --seconds 1.5 --no-check --subjects oinetd,haproxy-trixie",
    "upgrade --quick --cases mixed* --subjects oinetd-native,haproxy-trixie,nginx-trixie",
    "lab --scenario S1 --seconds 1",
    "capture --quick",
)
"""What states intervals, and a single round of what states none. Of the peers rinetd passes no half-close on: the
status is 1 with it.
"""

_KEPT = ("lab", "capture")
"""Steps that are no experiments: their results are folders."""
_KEPT_S = 30.0
"""About how long they take."""
_PATIENCE, _LEAST_PATIENCE_S = 4.0, 120.0
"""A step that takes so many times as long as planned, and this besides, has come to a halt."""
_END_S = 30.0

_TRIAL = {
    "udp": "oinetd-native,nginx", "failover": "oinetd-native", "upgrade": "oinetd-native", "scaling": "native-auto",
    "moves": "oinetd",
}  # fmt: skip
_TRIAL_SUBJECTS = "native-auto,haproxy"


@dataclass(frozen=True, slots=True)
class Settings:
    """How a plan is run. `resume`: steps whose results are in `out` already, of this commit, are left out. `trial`: two
    subjects and very short loads, to see that every step works.
    """

    out: Path
    topology: str = "auto"
    resume: bool = False
    trial: bool = False

    def words(self, step: str) -> list[str]:
        """The command line of a step."""
        words = [*shlex.split(step), "--out", str(self.out)]
        if self.topology != "auto":
            words += ["--topology", self.topology]
        name = words[0]
        if self.trial and name not in _KEPT:
            words += ["--seconds", "0.05", "--subjects", _TRIAL.get(name, _TRIAL_SUBJECTS)]
        return words


def run_plan(steps: Sequence[str], settings: Settings, page: Path, console: Console) -> int:
    """Run each step, keep the results in `settings.out`, write the page of what there is then.

    The status is the worst of the steps. It goes on after a step that failed or came to a halt, not when interrupted.
    """
    begin = time.monotonic()
    started = 0.0 if settings.resume else time.time()
    table = Table(title="what was measured", title_justify="left")
    for title in ("command", "seconds", "status"):
        table.add_column(title, justify="left" if title == "command" else "right")
    left = unfinished(steps, settings.out) if settings.resume else list(steps)
    worst, interrupted = 0, False
    for step in steps:
        if step not in left:
            table.add_row(step, "–", "done before")
            continue
        console.print(f"python -m bench {step}", style="bold", highlight=False, soft_wrap=True)
        at = time.monotonic()
        try:
            status = _run(settings.words(step), _patience_s(step))
        except Interrupted:
            status, interrupted = 130, True
        table.add_row(step, f"{time.monotonic() - at:.0f}", _word(status))
        worst = max(worst, int(status != 0))
        if interrupted:
            break
    results = _since(settings.out, started)
    if results:
        _write_page(results, started, settings.out, page)
    console.print(table)
    missing = [] if interrupted else unfinished(steps, settings.out, started)
    for step in missing:
        console.print(f"no complete result of: {step.split()[0]}; --resume measures what is missing", style="bold red")
    console.print(f"after {time.monotonic() - begin:.0f} s, the page: {page}", highlight=False, soft_wrap=True)
    if interrupted:
        console.print("interrupted: the same command with --resume goes on", highlight=False)
    return 1 if missing or interrupted or not results else worst


def unfinished(steps: Sequence[str], out: Path, started: float = 0.0) -> list[str]:
    """The steps without a complete result in `out` that began at `started` or later, of the commit that is here."""
    from bench.report.kept import newest_kept

    commit = describe(())["commit"]
    done = {
        (each.experiment, each.quick)
        for each in _since(out, started)
        if not each.interrupted and each.measured() and each.machine["commit"] == commit
    }
    for name, each in newest_kept([out]).items():
        machine = each.facts["meta"]["machine"] if name == "lab" else each.facts["machine"]
        if each.started >= started and machine["commit"] == commit:
            done |= {(name, True), (name, False)}
    return [step for step in steps if (step.split()[0], "--quick" in step) not in done]


def about_s(step: str) -> float:
    """About how long a step takes."""
    name = step.split()[0]
    if name in _KEPT:
        return _KEPT_S
    chosen = _experiment(step)
    return planned_s(chosen, chosen.chosen(), chosen.chosen_cases())


def _patience_s(step: str) -> float:
    try:
        return _LEAST_PATIENCE_S + _PATIENCE * about_s(step)
    except BenchError:  # the step itself will say it
        return _LEAST_PATIENCE_S


def _experiment(step: str) -> Experiment:
    words = shlex.split(step)
    parser = argparse.ArgumentParser()
    add_measurements(Commands(parser))
    return experiment(words[0], options(parser.parse_args(words)))


def _write_page(results: list[Result], started: float, out: Path, page: Path) -> None:
    from bench.report import newest_kept, write_page

    kept = {name: run for name, run in newest_kept([out]).items() if run.started >= started}
    write_page(newest(results), page, kept)


def _word(status: int) -> str:
    return "came to a halt" if status == _HALTED else str(status)


_HALTED = 124


def _run(words: Sequence[str], patience_s: float) -> int:
    """The status of a step, `_HALTED` of one that had to be ended."""
    sys.stdout.flush()
    with subprocess.Popen([sys.executable, "-m", "bench", *words], cwd=ROOT) as step:
        try:
            return step.wait(patience_s)
        except subprocess.TimeoutExpired:
            _end(step)
            return _HALTED
        except BaseException:
            _end(step)
            raise


def _end(step: subprocess.Popen[bytes]) -> None:
    """It keeps what it has measured, and takes down what it made; if it cannot, the next step does that."""
    step.terminate()
    try:
        step.wait(_END_S)
    except subprocess.TimeoutExpired:
        step.kill()
        step.wait()


def _since(out: Path, started: float) -> list[Result]:
    """The results of this run."""
    try:
        return [result for result in load_results([out]) if result.started >= started]
    except BenchError:
        return []
