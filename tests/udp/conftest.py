"""What serves UDP: the Python lane with both kinds of batch, and the reactors."""

from __future__ import annotations

import pytest

from oinetd.errors import EngineUnavailable
from oinetd.lanes.native.lane import NativeLane
from oinetd.lanes.native.plane import available

LANES = ["python", "batches", "native"]


@pytest.fixture(params=LANES)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A directive that chooses the lane; rules between UDP and TCP are the Python lane's in any case."""
    if request.param == "python":
        return "engine python\n"
    if available():
        pytest.skip(f"the extension: {available()}")
    if request.param == "batches":
        keep_reactors_away(monkeypatch)
    return "engine auto\n"


def keep_reactors_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the Python lane serve, with the extension's batches, as where no reactor can be started."""

    def none(*_: object) -> None:
        raise EngineUnavailable("no reactor in this test")

    monkeypatch.setattr(NativeLane, "start", none)
