"""A real resolver and a real name server, in a namespace where both are ours."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.daemon.process import ROOT

CASES = Path(__file__).with_name("name_server_cases.py")


def test_names_that_a_name_server_is_asked_for(tmp_path: Path) -> None:
    """Its failures, its silence, and more addresses than are used: see the cases."""
    if os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("a network and a mount namespace need root, unshare and ip")
    conf = tmp_path / "resolv.conf"
    conf.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:2\n")
    prelude = f'ip link set lo up && mount --bind {conf} /etc/resolv.conf && exec "$@"'
    pytest_itself = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(CASES)]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    ran = subprocess.run(
        ["unshare", "--net", "--mount", "sh", "-c", prelude, "sh", *pytest_itself, "--basetemp", str(tmp_path / "t")],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode == 1 and "unshare" in ran.stderr:
        pytest.skip(f"no namespace can be made here: {ran.stderr.strip()}")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "passed" in ran.stdout
    assert "skipped" not in ran.stdout
