"""Short real runs of the lab, as root."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.lab.collection import derive
from bench.lab.report import render

pytest.importorskip("rich", reason="the bench extra is not installed")

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("perf") is None or "tracefs" not in Path("/proc/filesystems").read_text().split(),
    reason="the lab needs root, perf and a kernel with tracepoints",
)


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *words], capture_output=True, text=True, check=False, timeout=110
    )


@pytest.mark.skipif(not (shutil.which("wrk") and shutil.which("nginx")), reason="wrk or nginx is not installed")
@pytest.mark.timeout(150)
def test_a_scenario(tmp_path: Path) -> None:
    done = bench("lab", "--subject", "python", "--scenario", "S1", "--seconds", "0.3", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    (directory,) = tmp_path.iterdir()
    figures = derive(directory)
    assert json.loads(json.dumps(figures)) == json.loads((directory / "figures.json").read_text())
    assert render(figures) == (directory / "report.md").read_text()
    assert render(figures) in done.stdout
    loaded, idle = figures["windows"]["S1"], figures["windows"]["idle"]
    assert loaded["timed"]["requests"] > 0
    assert loaded["counters"]["window"]["requests"] > 0
    assert loaded["counters"]["service"]["raw_syscalls:sys_enter"]["count"] > 0
    assert loaded["stages"]["counts"]["net:net_dev_queue"]["count"] > 0
    assert loaded["stages"]["syscalls"]["calls"]
    assert loaded["scheduling"]["voluntary"]["count"] + loaded["scheduling"]["involuntary"]["count"] > 0
    assert idle["counters"]["window"]["requests"] == 0
    assert "<svg" in (directory / "S1/2-stacks/service.svg").read_text()
    again = bench("lab", "--again", str(directory))
    assert again.returncode == 0
    assert again.stdout.rstrip().endswith("the same as was kept")
    counts = directory / "S1/1-counters/system.csv"
    counts.write_text(counts.read_text().replace("raw_syscalls", "raw_nothing"))
    assert bench("lab", "--again", str(directory)).returncode == 1


@pytest.fixture
def busy() -> Iterator[int]:
    """A process that makes system calls as long as it lives."""
    with subprocess.Popen([sys.executable, "-c", "import os\nwhile True: os.sched_yield(); os.stat('/')"]) as process:
        yield process.pid
        process.kill()


def test_any_service(tmp_path: Path, busy: int) -> None:
    words = ("--pid", str(busy), "--layer", "1", "--layer", "4", "--seconds", "0.3", "--out", str(tmp_path))
    done = bench("lab", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    (directory,) = tmp_path.iterdir()
    figures = derive(directory)["windows"]["now"]
    assert figures.keys() == {"counters", "scheduling"}
    assert figures["counters"]["service"]["raw_syscalls:sys_enter"]["count"] > 0
    assert figures["counters"]["service"]["raw_syscalls:sys_enter"]["per_request"] is None
    assert figures["counters"]["service"]["syscalls:sys_enter_sched_yield"]["count"] > 0
    assert "system calls a second" in done.stdout
    assert "sched_yield" in done.stdout


def test_without_tracepoints_the_lab_says_what_is_missing(tmp_path: Path, busy: int) -> None:
    hidden = "mount -t tmpfs none /sys/kernel && exec " + shlex.join(
        [sys.executable, "-m", "bench", "lab", "--pid", str(busy), "--seconds", "0.1", "--out", str(tmp_path)]
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", hidden], capture_output=True, text=True, check=False, timeout=110
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "missing: stages, scheduling" in done.stdout
    assert "### Call stacks" in done.stdout


def test_no_such_process(tmp_path: Path) -> None:
    done = bench("lab", "--pid", str(2**22 + 1), "--out", str(tmp_path))
    assert done.returncode == 1
    assert "process" in done.stderr


def test_a_directory_that_is_no_run(tmp_path: Path) -> None:
    done = bench("lab", "--again", str(tmp_path))
    assert done.returncode == 1
    assert "not a lab run" in done.stderr
