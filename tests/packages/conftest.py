"""The distributions, made once for all tests of this folder. They take minutes: `make package-test` runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.packages.building import build, copy_of_the_tree, unpack

ASKED: Final = "OINETD_PACKAGE_TESTS"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.timeout(1200))
            if not os.environ.get(ASKED):
                item.add_marker(pytest.mark.skip(reason="takes minutes: `make package-test` runs it"))


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution of this tree."""
    copy = copy_of_the_tree(tmp_path_factory.mktemp("tree") / "oinetd")
    return build(copy, "--sdist", tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="session")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution."""
    return build(unpack(sdist, tmp_path_factory.mktemp("a")), "--wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """An empty virtual environment."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True, timeout=120)
    return tmp_path / "venv"
