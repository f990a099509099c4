"""How long ago something moved in a live session, in every lane."""

from __future__ import annotations

import asyncio

import pytest

from oinetd import Forwarder, SessionRecord, parse_config
from tests.peers import dial, echo, server, until
from tests.udp.rig import Party
from tests.udp.rig import echo as datagram_echo


async def let_in(record: SessionRecord) -> bool:
    return True


async def idles_and_moves(forwarder: Forwarder, move: object) -> None:
    """Its idle time grows with the session's age, and something that moves begins it anew."""

    def idle_s() -> float:
        (record,) = forwarder.sessions()
        assert 0 <= record.idle_s <= record.duration_s + 0.01
        return record.idle_s

    assert callable(move)
    await move()
    await until(lambda: idle_s() > 0.2, "silence")
    await move()
    await until(lambda: idle_s() < 0.2, "a byte that moved")
    await until(lambda: idle_s() > 0.2, "silence again")


@pytest.mark.parametrize(("engine", "hooked"), [("native", False), ("auto", True), ("python", False)])
async def test_of_a_connection(engine: str, hooked: bool) -> None:
    async with server(echo) as upstream:
        config = parse_config(f"engine {engine}\n127.0.0.1 0 {upstream[0]} {upstream[1]}\n")
        async with Forwarder(config, admit=let_in if hooked else None) as forwarder:
            peer = await dial((forwarder.addresses[0].host, forwarder.addresses[0].port))

            async def move() -> None:
                await peer.send(b"x")
                assert await peer.read(1) == b"x"

            try:
                async with asyncio.timeout(30):
                    await idles_and_moves(forwarder, move)
            finally:
                peer.close()


@pytest.mark.parametrize("engine", ["native", "python"])
async def test_of_a_udp_session(engine: str) -> None:
    with datagram_echo() as upstream, Party() as party:
        config = parse_config(f"engine {engine}\n127.0.0.1 0/udp 127.0.0.1 {upstream.address[1]}/udp\n")
        async with Forwarder(config) as forwarder:
            address = forwarder.addresses[0][1:]

            async def move() -> None:
                assert await party.ask(b"x", address) == b"x"

            async with asyncio.timeout(30):
                await idles_and_moves(forwarder, move)
