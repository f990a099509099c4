"""What tests of sockets' addresses share: both lanes, and a folder with short paths."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from oinetd import EngineChoice, Settings
from oinetd.lanes.native.plane import available

LANES = [EngineChoice.PYTHON] if available() else [EngineChoice.PYTHON, EngineChoice.NATIVE]


@pytest.fixture(params=LANES, ids=lambda choice: choice.value)
def settings(request: pytest.FixtureRequest) -> Settings:
    """Of one lane and then of the other."""
    return Settings(engine=request.param)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder of this test; its path is short, because that of a unix socket has to be."""
    path = Path(tempfile.mkdtemp(prefix="oi", dir="/tmp"))
    yield path
    shutil.rmtree(path)
