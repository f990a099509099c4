"""Numbers that the data plane and Python share: both sources are read, so that they cannot drift apart."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from oinetd.bounds import ADDRESSES_MAX
from oinetd.core.histogram import CONNECT_BOUNDS_S, DURATION_BOUNDS_S
from oinetd.core.pattern import Kind
from oinetd.lanes.native import plane
from oinetd.lanes.python.udp import leg, listener, table
from oinetd.model import RelayMode
from oinetd.net import datagrams, sockets

SOURCES = Path(__file__).parents[2] / "_fastpath"


def numbers(path: str, prefix: str = "") -> dict[str, int]:
    """The members of the enumerations in a file whose names begin with `prefix`, without it."""
    found = re.findall(rf"^    {prefix}([A-Z][A-Z_]*) = (\d+)", (SOURCES / path).read_text(), re.MULTILINE)
    return {name: int(value) for name, value in found}


def test_endings_are_numbered_as_the_data_plane_does() -> None:
    assert numbers("shared/ending.pxd", "ENDING_") == {ending.name: at for at, ending in enumerate(plane.ENDINGS)}


def test_bounds_of_histograms() -> None:
    text = (SOURCES / "shared" / "histogram.pxd").read_text()
    for name, bounds in (("duration", DURATION_BOUNDS_S), ("connect", CONNECT_BOUNDS_S)):
        numbers = text[text.index(f"oi_{name}_bounds[OI_BOUNDS]") :].partition("{")[2].partition("}")[0]
        assert [int(each) for each in numbers.split(",") if each.strip()] == [round(each * 1e6) for each in bounds]


def test_kinds_of_records() -> None:
    names = {"ACCEPT_TROUBLE": "TROUBLE", "ACCEPT_RESUMED": "RESUMED"}
    for name, number in numbers("shared/ring.pxd", "RECORD_").items():
        assert getattr(plane, names.get(name, name)) == number, name


def test_relay_modes() -> None:
    found = numbers("shared/policy.pxd", "RELAY_")
    assert {RelayMode[name]: number for name, number in found.items()} == plane._RELAY_MODES


def test_kinds_of_patterns() -> None:
    source = (SOURCES / "_fastpath.pyx").read_text()
    assert f"if kind == {int(Kind.GLOB)}:" in source
    assert f"elif kind == {int(Kind.NET4)}:" in source


@pytest.mark.parametrize(
    ("path", "name", "number"),
    [
        ("shared/target.pxd", "ADDRESSES_MAX", ADDRESSES_MAX),
        ("state/datagram.pxd", "MESSAGES_MAX", datagrams.MESSAGES_MAX),
        ("state/udp_told.pxd", "TOLD_MAX", listener.TOLD_MAX),
        ("udp/dial.pxd", "QUEUE_BYTES", sockets.UPSTREAM_QUEUE_BYTES),
        ("udp/end.pxd", "ANSWER_MS", round(1000 * table.ANSWER_S)),
        ("udp/session.pxd", "LAST_READS_MAX", leg.LAST_READS_MAX),
    ],
)
def test_limits(path: str, name: str, number: int) -> None:
    assert numbers(path)[name] == number
