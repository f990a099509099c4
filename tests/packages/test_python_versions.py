"""The suite, both lanes, with each Python that oinetd is for and that can be had here."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.packages.building import copy_of_the_tree, run
from tests.packages.folders import Debian
from tests.packages.interpreters import folder_with_python, python_of_the_machine
from tests.packages.machines import Network

PARTS = "tests/unit tests/engine tests/daemon tests/preamble tests/upstream tests/addresses"
SUITE = f".venv/bin/python -m pytest -q -n 2 {PARTS}"
PATIENCE_S = 2400.0

WHEEL = """\
{python} -m venv .venv
.venv/bin/python -m pip wheel --quiet --no-deps --wheel-dir dist .
.venv/bin/python -m pip install --quiet --prefer-binary "$(ls dist/*.whl)[test]" {more}
cd build
../.venv/bin/python -c '
import sys, sysconfig
gil = not sysconfig.get_config_var("Py_GIL_DISABLED")
import oinetd, oinetd._fastpath, uvloop
assert "/site-packages/" in oinetd._fastpath.__file__, oinetd._fastpath.__file__
assert gil or not sys._is_gil_enabled(), "an import has put the GIL on"
print(sys.version, "with" if gil else "without", "GIL")'
../.venv/bin/oinetd --version
../.venv/bin/python -m zipfile -e ../dist/*.whl wheel
cp wheel/oinetd/*.so ../oinetd
cd ..
"""
"""A wheel of the tree, installed: it has the native extension, and a Python without a GIL goes on without.

The suite runs on the tree, with the extension of the wheel: bench, which needs more, is not installed.
"""

OLDER = "'mypy<1.19'"
"""Newer ones need a compiler of Rust where there is no wheel of what they use."""


@pytest.mark.timeout(PATIENCE_S + 1200)
@pytest.mark.parametrize("version", ["3.13", "3.14", "3.13t"])
def test_the_suite_passes_in_a_debian(version: str, tmp_path: Path) -> None:
    base, python = folder_with_python(version)
    here = tmp_path / "here"
    here.mkdir()
    copy_of_the_tree(here / "oinetd")
    with Network(tmp_path) as network, Debian(base, tmp_path, here) as debian:
        said = debian.must(f"cd oinetd; {WHEEL.format(python=python, more=OLDER if version.endswith('t') else '')}")
        assert f"\n{version.rstrip('t')}." in said
        done = debian.run(f"cd oinetd && {SUITE}", network.machine("p").name, PATIENCE_S)
        assert done.returncode == 0, done.stdout[-6000:]


@pytest.mark.timeout(PATIENCE_S + 1200)
@pytest.mark.parametrize("version", ["3.12"])
def test_the_suite_passes_with_a_python_of_this_machine(version: str, tmp_path: Path) -> None:
    python = python_of_the_machine(version)
    tree = copy_of_the_tree(tmp_path / "oinetd")
    run("sh", "-euc", f"cd {tree}; {WHEEL.format(python=python, more='')}", PYTHONPATH="")
    with Network(tmp_path) as network:
        namespace = f"--net=/run/netns/{network.machine('p').name}"
        run("nsenter", namespace, "sh", "-euc", f"cd {tree}; {SUITE}", patience_s=PATIENCE_S)
