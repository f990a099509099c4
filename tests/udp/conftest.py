"""Both kinds of batch: that of the extension, where it is built, and that in Python."""

from __future__ import annotations

import pytest

from oinetd.engine.native import available


@pytest.fixture(params=["python", "auto"])
def engine(request: pytest.FixtureRequest) -> str:
    """A directive that chooses the batch."""
    if request.param == "auto" and available():
        pytest.skip(f"the extension: {available()}")
    return f"engine {request.param}\n"
