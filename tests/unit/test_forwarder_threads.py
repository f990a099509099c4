"""A reload that changes the number of reactors, and how long they poll."""

from __future__ import annotations

import asyncio
import dataclasses
import logging

import pytest

from oinetd import EngineChoice, Forwarder, Settings
from oinetd.config import parse_rule
from oinetd.lanes.native.plane import available
from tests.forwarding import Seen, bound, echoes, exchange, forwarding, rule
from tests.peers import Peer, dial, until
from tests.udp.rig import Party
from tests.udp.rig import echo as udp_echo

pytestmark = pytest.mark.skipif(bool(available()), reason=available())

NATIVE = Settings(engine=EngineChoice.NATIVE)


async def change(forwarder: Forwarder, **said: int) -> None:
    await forwarder.reload(dataclasses.replace(forwarder.config, **said))


async def come(forwarder: Forwarder, count: int) -> list[Peer]:
    """Connections, one after the other, so that each goes to the reactor that has the fewest."""
    peers = []
    for _ in range(count):
        peers.append(await dial(bound(forwarder)))
        assert await exchange(peers[-1])
    return peers


def live(forwarder: Forwarder) -> list[int]:
    plane = forwarder._lanes._hub
    assert plane is not None
    return list(plane.stats()["live"])


async def test_connections_live_on_and_new_ones_go_where_they_should(
    upstream: tuple[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "oinetd")
    async with forwarding(rule(upstream), settings=NATIVE, threads=1) as forwarder:
        peers = await come(forwarder, 6)
        assert [await exchange(peer) for peer in peers] == [True] * 6
        assert live(forwarder) == [6]
        await change(forwarder, threads=3)
        assert "threads: 3 get new connections, before it were 1" in caplog.messages
        peers += await come(forwarder, 12)
        assert [await exchange(peer) for peer in peers] == [True] * 18
        spread = live(forwarder)
        assert len(spread) == 3
        assert all(spread)
        await change(forwarder, threads=1)
        peers += await come(forwarder, 6)
        assert [await exchange(peer) for peer in peers] == [True] * 24
        assert live(forwarder)[1:] == spread[1:]  # those that are retired got none
        await change(forwarder, threads=2)
        peers += await come(forwarder, 30)
        assert [await exchange(peer) for peer in peers] == [True] * 54
        assert live(forwarder)[1] > spread[1]
        assert live(forwarder)[2] == spread[2]
        for peer in peers:
            peer.close()
        await until(lambda: sum(live(forwarder)) == 0)
        assert await echoes(bound(forwarder))


async def test_room_that_a_retired_reactor_makes_is_for_the_others(upstream: tuple[str, int]) -> None:
    async with forwarding(rule(upstream), settings=NATIVE, threads=2, max_connections=8) as forwarder:
        peers = await come(forwarder, 8)
        assert [await exchange(peer) for peer in peers] == [True] * 8
        await change(forwarder, threads=1)
        for _ in range(8):  # in the course of it each connection of the retired one ends, and one that waits comes in
            late = await dial(bound(forwarder))
            await late.send(b"later")
            peers.pop(0).close()
            assert await late.read(5) == b"later"
            peers.append(late)
        assert live(forwarder) == [8, 0]
        for peer in peers:
            peer.close()


async def test_nothing_is_lost_while_the_number_changes(upstream: tuple[str, int]) -> None:
    seen = Seen()
    over = False
    async with forwarding(rule(upstream), seen=seen, settings=NATIVE, threads=1) as forwarder:

        async def come_and_go() -> int:
            served = 0
            while not over:
                assert await echoes(bound(forwarder))
                served += 1
            return served

        crowd = [asyncio.ensure_future(come_and_go()) for _ in range(4)]
        for number in range(20):
            await change(forwarder, threads=1 + number % 4)
            await until(lambda due=10 * number: len(seen.closed) > due)
        over = True
        served = sum(await asyncio.gather(*crowd))
        await until(lambda: len(seen.closed) == len(seen.opened) == served)


async def test_udp_sessions_stay_with_their_reactor() -> None:
    with udp_echo() as upstream, Party() as client, Party() as newcomer:
        one = parse_rule(f"127.0.0.1 0/udp 127.0.0.1 {upstream.address[1]}/udp")
        other = parse_rule(f"127.0.0.2 0/udp 127.0.0.1 {upstream.address[1]}/udp")
        seen = Seen()
        async with forwarding(one, other, seen=seen, settings=NATIVE, threads=2) as forwarder:
            for number in range(2):
                assert await client.ask(b"x", bound(forwarder, number)) == b"x"
            await change(forwarder, threads=1)
            for number in range(2):
                assert await client.ask(b"x", bound(forwarder, number)) == b"x"
                assert await newcomer.ask(b"x", bound(forwarder, number)) == b"x"
            assert not seen.closed


async def test_polling_changes_as_well(upstream: tuple[str, int]) -> None:
    async with forwarding(rule(upstream), settings=NATIVE, busy_poll_us=0) as forwarder:
        plane = forwarder._lanes._hub
        assert plane is not None
        assert plane.spin_us == 0
        await change(forwarder, busy_poll_us=70)
        assert plane.spin_us == 70
        assert await echoes(bound(forwarder))
