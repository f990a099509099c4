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
    """Connections, one after the other."""
    peers = []
    for _ in range(count):
        peers.append(await dial(bound(forwarder)))
        assert await exchange(peers[-1])
    return peers


def live(forwarder: Forwarder) -> list[int]:
    plane = forwarder._lanes.native.hub
    assert plane is not None
    return list(plane.stats()["live"])


async def spread(forwarder: Forwarder, wanted: list[int]) -> None:
    """Wait until this number of connections is with each reactor."""
    await until(lambda: live(forwarder) == wanted)


async def test_a_light_load_is_served_by_one_reactor(upstream: tuple[str, int]) -> None:
    async with forwarding(rule(upstream), settings=NATIVE, threads=3) as forwarder:
        peers = await come(forwarder, 12)
        assert [await exchange(peer) for peer in peers] == [True] * 12
        assert live(forwarder) == [12, 0, 0]
        for peer in peers:
            peer.close()
        await spread(forwarder, [0, 0, 0])


async def test_connections_move_when_fewer_reactors_are_allowed(
    upstream: tuple[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "oinetd")
    seen = Seen()
    async with forwarding(rule(upstream), seen=seen, settings=NATIVE, threads=1, max_connections=18) as forwarder:
        peers = await come(forwarder, 18)
        await change(forwarder, threads=3)
        assert "threads: at most 3, before at most 1" in caplog.messages
        plane = forwarder._lanes.native.hub
        assert plane is not None

        def gone() -> bool:  # one whose record has not been read stays
            plane.shed(0, 1, 1000)
            return live(forwarder) == [0, 18, 0]

        await until(gone)
        assert [await exchange(peer) for peer in peers] == [True] * 18
        await change(forwarder, threads=1)
        await spread(forwarder, [18, 0, 0])
        assert [await exchange(peer) for peer in peers] == [True] * 18
        late = await dial(bound(forwarder))  # waits in the queue for a place, which one that moved leaves
        await late.send(b"later")
        peers.pop().close()
        assert await late.read(5) == b"later"
        for peer in (*peers, late):
            peer.close()
        await spread(forwarder, [0, 0, 0])
        await until(lambda: len(seen.closed) == 19)


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
        plane = forwarder._lanes.native.hub
        assert plane is not None
        assert plane.spin_us == 0
        await change(forwarder, busy_poll_us=70)
        assert plane.spin_us == 70
        assert await echoes(bound(forwarder))
