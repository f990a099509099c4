"""What the Makefile installs, builds with, and says where it cannot."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

from tests.offline import without_network

ROOT = Path(__file__).parents[2]
OUTER = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "VIRTUAL_ENV")}


@pytest.fixture
def make() -> str:
    found = shutil.which("make")
    if found is None:
        pytest.skip("make is missing (Debian: apt install make)")
    return found


def test_the_installed_command_is_isolated(make: str, tmp_path: Path) -> None:
    words = [f"DESTDIR={tmp_path}", "PREFIX=/opt/x", f"INSTALLED_PYTHON={sys.executable}"]
    subprocess.run([make, "--silent", "install-files", *words], cwd=ROOT, env=OUTER, check=True, timeout=60)
    command = tmp_path / "opt/x/bin/oinetd"
    assert command.read_text().splitlines()[0] == f"#!{sys.executable} -I"
    # A module in front of the standard library's would end the process.
    (tmp_path / "argparse.py").write_text("raise SystemExit('not isolated')\n")
    answer = subprocess.run(
        [str(command), "--version"],
        cwd=tmp_path,
        env={**OUTER, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert answer.stdout.startswith("oinetd ") or "No module named 'oinetd'" in answer.stderr
    assert "not isolated" not in answer.stderr
    unit = (tmp_path / "opt/x/lib/systemd/system/oinetd.service").read_text()
    assert "ExecStart=/opt/x/bin/oinetd -f -p /run/oinetd/oinetd.pid\n" in unit
    assert "/usr/bin/oinetd" not in unit


def test_the_interpreter_is_that_of_the_installed_package(make: str, tmp_path: Path) -> None:
    words = [f"DESTDIR={tmp_path}", "PREFIX=/opt/x"]
    subprocess.run([make, "--silent", "install-files", *words], cwd=ROOT, env=OUTER, check=True, timeout=60)
    assert (tmp_path / "opt/x/bin/oinetd").read_text().splitlines()[0] == "#!/opt/x/lib/oinetd/bin/python -I"


def test_what_a_wheel_is_built_with_is_pinned_by_hash() -> None:
    text = (ROOT / "constraints-build.txt").read_text().replace("\\\n", " ")
    pinned = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([\w-]+)==([\d.]+)\s+((?:--hash=sha256:[0-9a-f]{64}\s*)+)", line)
            assert match is not None, line
            pinned[match[1]] = tuple(map(int, match[2].split(".")))
    for wanted in tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]:
        name, least = wanted.split(">=")
        assert pinned[name] >= tuple(map(int, least.split("."))), name


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What oinetd is built from, with an environment in which only pip is installed: making one takes seconds."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / ".venv")], check=True, timeout=60)
    (packages,) = (tmp_path / ".venv").glob("lib/*/site-packages")
    (packages / "pip").symlink_to(Path(sysconfig.get_path("purelib")) / "pip")
    for name in ("Makefile", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("oinetd", "_fastpath"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "*.c", "__pycache__"))
    return tmp_path


def errors_of_make_run(make: str, tree: Path, *before: str, **pip: str) -> list[str]:
    """What `make run` says of its failure; the settings of this machine's pip are not in force."""
    kept = {name: value for name, value in OUTER.items() if not name.startswith("PIP_")}
    answer = subprocess.run(
        [*before, make, "run", f"PYTHON={sys.executable}"],
        cwd=tree,
        env={**kept, "PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1", "PIP_RETRIES": "1", **pip},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert answer.returncode != 0
    return [line for line in answer.stderr.splitlines() if not line.startswith("make")]


def test_without_a_network_there_is_one_sentence(make: str, tree: Path) -> None:
    assert errors_of_make_run(make, tree, *without_network()) == [
        "oinetd is not built: the package index cannot be reached: connect to the network, or set PIP_INDEX_URL to one "
        "that can be"
    ]


def test_a_dependency_that_does_not_exist_is_named(make: str, tree: Path) -> None:
    (tree / "index").mkdir()
    said = "\n".join(errors_of_make_run(make, tree, PIP_INDEX_URL=f"file://{tree}/index"))
    assert "cannot be reached" not in said
    assert "No matching distribution found for" in said
