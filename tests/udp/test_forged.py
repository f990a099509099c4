"""Datagrams whose source address cannot be true are dropped and counted."""

from __future__ import annotations

import os
import shutil

import pytest

from oinetd.net.forged import is_forged
from tests.peers import until
from tests.udp.network import FOUR, SIX, own_network
from tests.udp.rig import Party, echo, serving

root = pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="a network of its own needs root")


@pytest.mark.parametrize(
    ("host", "port", "over_four", "forged"),
    [
        ("10.0.0.1", 53, True, False),
        ("10.0.0.1", 53, False, False),  # of an IPv4 socket that is bound to one address
        ("240.0.0.1", 53, True, False),
        ("10.0.0.1", 0, True, True),
        ("0.0.0.0", 68, True, True),
        ("224.0.0.1", 53, True, True),
        ("239.255.255.250", 1900, True, True),
        ("255.255.255.255", 53, True, True),
        ("::ffff:10.0.0.1", 53, True, False),
        ("::ffff:10.0.0.1", 53, False, True),
        ("::ffff:127.0.0.1", 53, False, True),
        ("::ffff:0.0.0.0", 68, True, True),
        ("::ffff:239.1.1.1", 53, True, True),
        ("::", 53, False, True),
        ("ff02::1", 53, False, True),
        ("ff::1", 53, False, False),
        ("fe80::1", 53, False, False),
        ("2001:db8::ffff:1", 53, False, False),
        ("2001:db8::1", 0, False, True),
    ],
)
def test_what_is_no_source(host: str, port: int, over_four: bool, forged: bool) -> None:
    address = (host, port, 0, 0) if ":" in host else (host, port)
    assert is_forged(address, over_four) is forged


SIX_FORGED = [
    ("::ffff:127.0.0.1", 4000),
    ("::ffff:10.9.0.2", 4000),
    ("::ffff:0.0.0.0", 4000),
    ("::", 4000),
    ("fd09::2", 0),
]
FOUR_FORGED = [("10.9.0.2", 0), ("0.0.0.0", 4000)]


@root
@pytest.mark.parametrize("host", ["::", SIX])
async def test_forged_sources_over_ipv6(engine: str, host: str) -> None:
    """The rules let IPv4 clients in: what bears an IPv4 address and came over IPv6 is none of them."""
    with own_network() as cable, Party() as upstream:
        rule = f"{host} 8000/udp 127.0.0.1 {upstream.address[1]}/udp\n"
        async with serving(f"{engine}{rule}allow 127.*\nallow 10.*\nallow fd09::2\n") as served:
            for source in SIX_FORGED:
                cable.send(source, (SIX, 8000), b"forged")
            cable.send(("fd09::2", 4000), (SIX, 8000), b"true")
            assert (await upstream.receive())[0] == b"true"
            await until(lambda: served.forwarder.stats().datagrams_forged == len(SIX_FORGED))
            assert upstream.pending() == []
            stats = served.forwarder.stats()
            assert (stats.datagrams_lost, stats.accepted) == (len(SIX_FORGED), 1)
            (counts,) = stats.rules.values()
            assert counts.datagrams_forged == len(SIX_FORGED)


@root
@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
async def test_forged_sources_over_ipv4(engine: str, host: str) -> None:
    with own_network() as cable, Party() as upstream:
        async with serving(f"{engine}{host} 8000/udp 127.0.0.1 {upstream.address[1]}/udp\n") as served:
            for source in FOUR_FORGED:
                cable.send(source, ("255.255.255.255", 8000), b"forged", broadcast=True)
            cable.send(("10.9.0.2", 4000), (FOUR, 8000), b"true")
            assert (await upstream.receive())[0] == b"true"
            await until(lambda: served.forwarder.stats().datagrams_forged == len(FOUR_FORGED))
            assert upstream.pending() == []
            assert [record.client for record in served.forwarder.sessions()] == ["10.9.0.2"]


@pytest.mark.parametrize("host", ["::", "::ffff:127.0.0.1"])
async def test_ipv4_clients_of_ipv6_sockets_are_served(engine: str, host: str) -> None:
    with echo() as upstream, Party() as client:
        text = f"{engine}{host} 0/udp 127.0.0.1 {upstream.address[1]}/udp\nallow 127.0.0.1\n"
        async with serving(text) as served:
            assert await client.ask(b"x", ("127.0.0.1", served.port)) == b"x"
            assert served.forwarder.stats().datagrams_forged == 0


@root
async def test_a_train_that_is_forged_is_counted_by_its_datagrams(engine: str) -> None:
    """Datagrams of one sender in one message count each."""
    with own_network() as cable, Party() as upstream:
        async with serving(f"{engine}:: 8000/udp 127.0.0.1 {upstream.address[1]}/udp\n") as served:
            for number in range(10):
                cable.send(("::ffff:10.9.0.2", 4000), (SIX, 8000), b"%d" % number)
            await until(lambda: served.forwarder.stats().datagrams_forged == 10)
