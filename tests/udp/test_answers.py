"""Answers leave from an address that the client can take them from, whatever kind of address it wrote to."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.udp.network import FOUR, SIX, own_network
from tests.udp.rig import echo, serving

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None, reason="a network of its own needs root"
)

FAR4, FAR6 = ("10.9.0.2", 4000), ("fd09::2", 4000)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
@pytest.mark.parametrize(
    ("written_to", "source"),
    [
        (FOUR, FOUR),
        ("10.9.0.255", FOUR),  # the broadcast address of the network
        ("255.255.255.255", FOUR),
        ("224.0.0.1", FOUR),  # all hosts: every interface has joined it
        ("10.77.1.2", "10.77.1.2"),  # ours by a route
    ],
)
async def test_over_ipv4(engine: str, host: str, written_to: str, source: str) -> None:
    if (host, written_to) == ("::", "224.0.0.1"):
        pytest.skip("Linux gives IPv4 multicast to no IPv6 socket that has not joined the group")
    with own_network() as cable, echo() as upstream:
        cable.run("route add local 10.77.0.0/16 dev lo")
        async with serving(f"{engine}{host} 8000/udp 127.0.0.1 {upstream.address[1]}/udp\n") as served:
            broadcast = written_to not in (FOUR, "10.77.1.2")
            for _ in range(2):
                cable.send(FAR4, (written_to, 8000), b"anybody there?", broadcast=broadcast)
                assert await cable.heard() == ((source, 8000), FAR4, b"anybody there?")
            assert served.forwarder.stats().datagrams_lost == 0


@pytest.mark.parametrize(("written_to", "source"), [(SIX, SIX), ("ff02::1", SIX), ("fd77::9", "fd77::9")])
async def test_over_ipv6(engine: str, written_to: str, source: str) -> None:
    with own_network() as cable, echo() as upstream:
        cable.run("-6 route add local fd77::/64 dev lo")
        async with serving(f"{engine}:: 8000/udp 127.0.0.1 {upstream.address[1]}/udp\n") as served:
            for _ in range(2):
                cable.send(FAR6, (written_to, 8000), b"anybody there?", broadcast=written_to.startswith("ff"))
                assert await cable.heard() == ((source, 8000), FAR6, b"anybody there?")
            assert served.forwarder.stats().datagrams_lost == 0
