"""The native lane on a machine where everything may fail: descriptors, memory, sockets, pipes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from oinetd.lanes.native.plane import available
from tests.soak.effort import SECONDS, TIMEOUT_S, Effort
from tests.soak.faulty import enough

HERE = Path(__file__).parent


@pytest.mark.timeout(TIMEOUT_S)
def test_calls_that_fail_at_random_do_no_harm(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or available():
        pytest.skip("needs a C compiler and the native extension")
    effort = Effort()
    library = tmp_path / "faults.so"
    # Given by the run under the sanitizers, whose extension calls the library by names of its own.
    given = os.environ.get("FAULTS_LIBRARY")
    if given:
        library = Path(given)
    else:
        subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(HERE / "faults.c")], check=True)
    preload = (
        os.environ["LD_PRELOAD"] if given else " ".join(filter(None, (os.environ.get("LD_PRELOAD"), str(library))))
    )
    environ = {
        **os.environ,
        "LD_PRELOAD": preload,
        "FAULTS_LIBRARY": str(library),
        "SOAK_SEED": str(effort.seed),
        "SOAK_SECONDS": str(SECONDS),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.soak.faulty"],
        cwd=HERE.parents[1],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S - 10,
    )
    print(done.stdout[-5000:])
    assert done.returncode == 0
    counts = json.loads(done.stdout.splitlines()[-1])
    assert enough(counts), counts
