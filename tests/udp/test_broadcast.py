"""A destination that is a broadcast address: wake-on-LAN through a forwarder."""

from __future__ import annotations

import os
import shutil

import pytest

from oinetd import Ending
from tests.udp.network import FOUR, own_network
from tests.udp.rig import Party, name_service, serving

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None, reason="a network of its own needs root"
)

WAKE = b"\xff" * 6 + b"\x02\x00\x00\x00\x00\x01" * 16


@pytest.mark.parametrize("to", ["10.9.0.255", "255.255.255.255"])
async def test_wake_on_lan(engine: str, to: str) -> None:
    with own_network() as cable, Party() as client:
        cable.run("route add default dev near")
        async with serving(f"{engine}127.0.0.1 0/udp {to} 9/udp\n") as served:
            client.send(WAKE, served.address)
            heard = await cable.heard()
            assert (heard.source[0], heard.destination, heard.data) == (FOUR, (to, 9), WAKE)


async def test_a_name_does_not_lead_to_a_broadcast_address(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who answers for a name must not make clients write to a whole network."""

    name_service(monkeypatch, "10.9.0.255")
    with own_network(), Party() as client:
        async with serving(f"{engine}127.0.0.1 0/udp wake.example 9/udp\n") as served:
            client.send(WAKE, served.address)
            await served.has_told(closed=1)
            assert (served.closed[0].ending, served.closed[0].errno) == (Ending.CONNECT_FAILED, 13)
