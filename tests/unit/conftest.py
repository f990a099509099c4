"""What tests of the forwarder share: both lanes, and a destination."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from oinetd import EngineChoice, Settings
from oinetd.lanes.native.plane import available
from tests.peers import echo, server

LANES = [EngineChoice.PYTHON] if available() else [EngineChoice.PYTHON, EngineChoice.NATIVE]


@pytest.fixture(params=LANES, ids=lambda choice: choice.value)
def settings(request: pytest.FixtureRequest) -> Settings:
    """Of one lane and then of the other."""
    return Settings(engine=request.param)


@pytest.fixture
async def upstream() -> AsyncIterator[tuple[str, int]]:
    """Where somebody gives back what comes."""
    async with server(echo) as address:
        yield address
