"""What is counted: exact in both lanes, whether each session is told or only sums, and never going back."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from oinetd import AccessRule, Config, Ending, Forwarder, LogSettings, Settings, Verb
from tests.forwarding import Seen, bound, echoes, exchange, forwarding, rule
from tests.peers import dial, until


def refusing() -> tuple[str, int]:
    """An address where nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        host, port = sock.getsockname()
    return host, port


async def knock(address: tuple[str, int]) -> None:
    """Connect to somebody who closes or resets, perhaps before the connection is known to stand."""
    with contextlib.suppress(ConnectionError):
        client = await dial(address)
        try:
            await client.read_all()
        finally:
            client.close()


@pytest.mark.parametrize("told", [False, True], ids=["sums", "each"])
async def test_every_session_is_counted(upstream: tuple[str, int], settings: Settings, told: bool) -> None:
    denied = replace(rule(upstream), access=(AccessRule(Verb.DENY, "127.*"),))
    rules = (rule(upstream), rule(refusing()), denied)
    async with forwarding(*rules, seen=Seen() if told else None, settings=settings) as forwarder:
        stays = await dial(bound(forwarder))
        assert await exchange(stays)
        for turn in range(60):
            assert await echoes(bound(forwarder), bytes(turn + 1))
            await knock(bound(forwarder, 1))
            await knock(bound(forwarder, 2))
        await until(lambda: sum(sum(each.endings.values()) for each in forwarder.stats().rules.values()) == 180)
        stats = forwarder.stats()
        good, failed, refused = (stats.rules[each] for each in forwarder.config.rules)
        sent = sum(range(1, 61)) + 5
        assert (good.live, good.accepted, good.failed, good.refused) == (1, 61, 0, 0)
        assert (good.bytes_up, good.bytes_down, good.endings) == (sent, sent, {Ending.CLIENT_CLOSED: 60})
        assert (failed.live, failed.accepted, failed.failed, failed.refused) == (0, 60, 60, 0)
        assert failed.endings == {Ending.CONNECT_FAILED: 60}
        assert (refused.live, refused.accepted, refused.failed, refused.refused) == (0, 60, 0, 60)
        assert refused.endings == {Ending.DENIED: 60}
        assert (stats.live, stats.accepted, stats.failed, stats.refused) == (1, 181, 60, 60)
        stays.close()
        await forwarder.drain(30)
        assert forwarder.stats().rules[forwarder.config.rules[0]].endings == {Ending.CLIENT_CLOSED: 61}


async def test_the_number_of_accepted_never_goes_back(upstream: tuple[str, int], settings: Settings) -> None:
    async with forwarding(rule(upstream), settings=settings) as forwarder:
        seen = [0]

        async def look() -> None:
            while True:
                seen.append(forwarder.stats().accepted)
                await asyncio.sleep(0)

        looking = asyncio.create_task(look())
        for _ in range(20):
            assert all(await asyncio.gather(*(echoes(bound(forwarder)) for _ in range(10))))
        looking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await looking
        assert seen == sorted(seen)
        assert forwarder.stats().accepted == 200


async def test_a_log_that_comes_and_goes(upstream: tuple[str, int], settings: Settings, tmp_path: Path) -> None:
    """Who is there when it comes has a last line in it; before it goes it has every line."""
    quiet = Config(rules=(rule(upstream),), settings=settings)
    logged = replace(quiet, log=LogSettings(file=str(tmp_path / "log")))
    async with Forwarder(quiet) as forwarder:
        before = await dial(bound(forwarder))
        assert await exchange(before)
        await forwarder.reload(logged)
        for _ in range(20):
            assert await echoes(bound(forwarder))
        after = await dial(bound(forwarder))
        assert await exchange(after)
        before.close()
        await until(lambda: len(forwarder.sessions()) == 1)
        await forwarder.reload(quiet)
        for _ in range(20):
            assert await echoes(bound(forwarder))
        after.close()
        await until(lambda: forwarder.stats().live == 0)
        await until(lambda: sum(forwarder.stats().rules[forwarder.config.rules[0]].endings.values()) == 42)
        assert forwarder.stats().accepted == 42
        lines = (tmp_path / "log").read_text().splitlines()
    assert sum("opened" in line for line in lines) == 21
    assert sum("done-" in line for line in lines) == 21


async def test_counting_looks_at_no_live_session(
    upstream: tuple[str, int], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with forwarding(rule(upstream), settings=settings) as forwarder:
        clients = [await dial(bound(forwarder)) for _ in range(3)]
        assert all([await exchange(client) for client in clients])
        with monkeypatch.context() as patched:
            patched.delattr("oinetd.lanes.native.lane.NativeLane.sessions")
            patched.delattr("oinetd.core.registry.Live.snapshot")
            await until(lambda: forwarder.stats().bytes_down == 15)  # counted after it was sent
            stats = forwarder.stats()
        assert (stats.live, stats.accepted, stats.bytes_up) == (3, 3, 15)
        for client in clients:
            client.close()
