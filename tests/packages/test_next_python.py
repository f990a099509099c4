"""The suite with the Python of Debian's next release, in a folder of that release."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.packages.building import copy_of_the_tree
from tests.packages.folders import Debian
from tests.packages.machines import Network
from tests.systemd.guest import build_folder

PARTS = "tests/unit tests/engine tests/daemon tests/preamble tests/upstream tests/addresses"


@pytest.mark.timeout(2400)
def test_the_suite_passes_in_debian_13(tmp_path: Path) -> None:
    base = build_folder("trixie")
    here = tmp_path / "here"
    here.mkdir()
    copy_of_the_tree(here / "oinetd")
    with Network(tmp_path) as network, Debian(base, tmp_path, here) as debian:
        debian.must("make -C oinetd --silent .venv/test-ready")
        assert "3.13" in debian.must("oinetd/.venv/bin/python --version")
        debian.must("oinetd/.venv/bin/python -c 'import oinetd._fastpath'")
        done = debian.run(
            f"cd oinetd && .venv/bin/python -m pytest -q -n 2 {PARTS}", network.machine("p").name, patience_s=2000
        )
        assert done.returncode == 0, done.stdout[-6000:]
