"""That an address of a destination fails, and that it works again: each is said once, by both lanes alike."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket

import pytest

import oinetd.net.resolver
import oinetd.upstream.address_health
from oinetd import Settings
from oinetd.net.sockets import Address, lookup
from oinetd.upstream.address_health import AddressHealth, words_for
from tests.forwarding import Seen, bound, exchange, forwarding, rule
from tests.peers import dial, echo, free_range, server, until


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [message for message in caplog.messages if message.startswith("destination ")]


async def test_an_address_that_fails_and_works_again(
    settings: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many clients come."""
    caplog.set_level(logging.INFO, "oinetd")
    monkeypatch.setattr(oinetd.upstream.address_health, "PAUSE_S", 0.01)
    port = free_range(1)
    seen = Seen()
    async with forwarding(rule(("127.0.0.1", port)), settings=settings, seen=seen) as forwarder:
        for count in range(1, 6):
            with contextlib.suppress(ConnectionResetError):  # it may come as early as the connect
                client = await dial(bound(forwarder))
                await client.read_to_reset()
                client.close()
            await until(lambda count=count: len(seen.closed) == count)
        await until(lambda: said(caplog))
        async with server(echo, place=("127.0.0.1", port)):
            for _ in range(5):
                client = await dial(bound(forwarder))
                assert await exchange(client)
                client.close()
            await until(lambda: len(said(caplog)) == 2)
    first, second = said(caplog)
    assert first == f"destination 127.0.0.1 {port}: {words_for(errno.ECONNREFUSED)}"
    assert second == f"destination 127.0.0.1 {port}: works again"


async def test_one_address_of_a_name(
    settings: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is named, and how many are left."""
    addresses = tuple(Address(socket.AF_INET, (host, 0)) for host in ("127.0.0.61", "127.0.0.62"))
    monkeypatch.setattr(
        oinetd.net.resolver,
        "lookup",
        lambda host, port=0: addresses if host == "name.example" else lookup(host, port),
    )
    port = free_range(1)
    async with (
        server(echo, place=("127.0.0.62", port)),
        forwarding(rule(("name.example", port)), settings=settings) as forwarder,
    ):
        for _ in range(3):
            client = await dial(bound(forwarder))
            assert await exchange(client)
            client.close()
        await until(lambda: said(caplog))
        (state,) = forwarder.destinations()
        assert state.failing == (("127.0.0.61", port, errno.ECONNREFUSED),)
    words = words_for(errno.ECONNREFUSED)
    assert said(caplog) == [f"destination name.example {port}: 127.0.0.61 {words}; 1 address left"]


async def test_one_that_changes_often_is_told_of_as_it_is_in_the_end(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "oinetd")
    monkeypatch.setattr(oinetd.upstream.address_health, "PAUSE_S", 0.01)
    health = AddressHealth("name.example", lambda: 1)
    for _ in range(100):  # within one turn of the loop
        health.failed("192.0.2.1", 80, errno.EHOSTUNREACH)
        health.worked("192.0.2.1", 80)
    await until(lambda: not health._states)
    health.worked("192.0.2.1", 80)
    assert [message.rpartition(": ")[2] for message in said(caplog)] == [
        f"192.0.2.1 {words_for(errno.EHOSTUNREACH)}; no address left",
        "192.0.2.1 works again",
    ]
    health.stop()


async def test_a_unix_socket_has_no_port(caplog: pytest.LogCaptureFixture) -> None:
    health = AddressHealth("unix:/run/a.sock", lambda: 1)
    health.failed("unix:/run/a.sock", 0, errno.ECONNREFUSED)
    assert said(caplog) == [f"destination unix:/run/a.sock: {words_for(errno.ECONNREFUSED)}"]
    health.stop()


async def test_nothing_is_said_after_the_end(caplog: pytest.LogCaptureFixture) -> None:
    health = AddressHealth("192.0.2.1", lambda: 1)
    health.failed("192.0.2.1", 80, errno.ETIMEDOUT)
    health.worked("192.0.2.1", 80)
    health.stop()
    health.failed("192.0.2.1", 80, errno.ETIMEDOUT)
    await asyncio.sleep(0)
    assert len(said(caplog)) == 1
    assert health.failing == {}
