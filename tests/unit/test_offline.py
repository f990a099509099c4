"""Only a missing network is taken for one: what pip and apt say of it, and of names that do not exist."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.offline import OFFLINE, without_network

SOURCES = "deb [trusted=yes] http://deb.debian.org/debian trixie main\n"
PIP = ("-m", "pip", "--isolated", "--disable-pip-version-check", "download", "--retries=1")


def said(*words: str) -> str:
    """What a command says that fails, or that warns."""
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False)
    return done.stdout


def apt(folder: Path) -> list[str]:
    """apt-get with lists and caches of its own, all empty."""
    if shutil.which("apt-get") is None:
        pytest.skip("apt-get is missing")
    (folder / "lists" / "partial").mkdir(parents=True)
    (folder / "archives" / "partial").mkdir(parents=True)
    (folder / "sources.list").write_text(SOURCES)
    settings = {
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": folder / "lists",
        "Dir::Cache": folder,
        "Debug::NoLocking": 1,
        "APT::Sandbox::User": "root",
        "Acquire::Retries": 0,
    }
    return ["apt-get", "-q", *(f"--option={name}={value}" for name, value in settings.items())]


def test_pip_without_a_network(tmp_path: Path) -> None:
    assert OFFLINE.search(said(*without_network(), sys.executable, *PIP, f"--dest={tmp_path}", "uvloop"))


def test_pip_with_a_misspelled_name(tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    index = f"--index-url=file://{tmp_path}/index"
    text = said(sys.executable, *PIP, index, f"--dest={tmp_path}", "uvlop")
    assert "No matching distribution found for uvlop" in text
    assert not OFFLINE.search(text)


def test_apt_without_a_network(tmp_path: Path) -> None:
    assert OFFLINE.search(said(*without_network(), *apt(tmp_path), "update"))


def test_apt_with_a_misspelled_name(tmp_path: Path) -> None:
    text = said(*apt(tmp_path), "download", "no-such-package-anywhere")
    assert "no-such-package-anywhere" in text
    assert not OFFLINE.search(text)
