from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.engine.native.plane import Plane

MODES = {
    "auto": {"relay": 0},
    "copy": {"relay": 1},
    "splice": {"relay": 2},
    "flip": {"relay": 0, "flip_bytes": 7},
    "flip-page": {"relay": 0, "flip_bytes": 5000},
}


@pytest.fixture(params=sorted(MODES))
def plane(request: pytest.FixtureRequest) -> Iterator[Plane]:
    """One reactor in each relay mode."""
    plane = Plane(**MODES[request.param])
    yield plane
    plane.close()


@pytest.fixture
def make_plane() -> Iterator[Callable[..., Plane]]:
    """A maker of data planes."""
    made: list[Plane] = []

    def make(**said: Any) -> Plane:
        made.append(Plane(**said))
        return made[-1]

    yield make
    for plane in made:
        plane.close()
