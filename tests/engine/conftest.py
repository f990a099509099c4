from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.engine.rig import ENGINES, Rig


@pytest.fixture(params=sorted(ENGINES))
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    async with ENGINES[request.param]() as rig:
        yield rig
