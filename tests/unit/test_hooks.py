"""What a program's hooks do: raise whatever they like, or leave something to be awaited; no record is lost by it."""

from __future__ import annotations

import asyncio
import logging
import socket

import pytest

import oinetd.core.hooks
from oinetd import Config, Ending, Forwarder, SessionRecord, Settings
from oinetd.config import parse_rule
from tests.forwarding import bound, exchange, rule
from tests.peers import Peer, dial, until
from tests.udp.rig import Party, echo


class Odd(BaseException):
    """What nobody expects."""


@pytest.mark.parametrize("error", [asyncio.CancelledError, GeneratorExit, Odd])
async def test_a_hook_that_raises_anything_loses_no_record(
    upstream: tuple[str, int], settings: Settings, error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[int] = []

    def fail(record: SessionRecord) -> None:
        heard.append(record.id)
        raise error

    async with Forwarder(Config(rules=(rule(upstream),), settings=settings), on_open=fail, on_close=fail) as forwarder:
        clients = [await dial(bound(forwarder)) for _ in range(20)]
        for client in clients:
            assert await exchange(client)
            client.close()
        assert await forwarder.drain(30) == 0
        assert sum(forwarder.stats().rules.popitem()[1].endings.values()) == 20
    assert len(heard) == 40
    assert len([each for each in caplog.records if "hook failed" in each.getMessage()]) == 40


def test_an_interrupt_reaches_the_program_and_loses_no_record(settings: Settings) -> None:
    heard: list[Ending | None] = []

    def interrupted(record: SessionRecord) -> None:
        heard.append(record.ending)
        if len(heard) == 1:
            raise KeyboardInterrupt

    forwarder = Forwarder(
        Config(rules=(rule(("127.0.0.1", 1)),), settings=settings), on_close=interrupted
    )  # nobody listens there

    async def serve() -> None:
        async with forwarder:
            clients = [Peer(socket.create_connection(bound(forwarder))) for _ in range(5)]
            try:
                await forwarder.serve_forever()
            finally:
                for client in clients:
                    client.close()

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(serve())
    assert len(heard) == forwarder.stats().accepted > 0


@pytest.mark.parametrize("error", [asyncio.CancelledError, Odd])
async def test_an_admit_that_raises_anything_refuses(
    upstream: tuple[str, int], error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    async def admit(record: SessionRecord) -> bool:
        raise error

    closed: list[SessionRecord] = []
    async with Forwarder(Config(rules=(rule(upstream),)), admit=admit, on_close=closed.append) as forwarder:
        client = await dial(bound(forwarder))
        assert await client.read_all() == b""
        client.close()
        await until(lambda: closed)
        assert await forwarder.drain(30) == 0
    assert [record.ending for record in closed] == [Ending.NOT_ALLOWED]
    assert any("admit hook failed" in message for message in caplog.messages)


async def test_an_admit_that_raises_anything_refuses_datagrams(caplog: pytest.LogCaptureFixture) -> None:
    async def admit(record: SessionRecord) -> bool:
        raise asyncio.CancelledError

    closed: list[SessionRecord] = []
    with echo() as upstream, Party() as client:
        there = rule(upstream.address, "127.0.0.1 0/udp", "")
        there = parse_rule(f"127.0.0.1 0/udp {upstream.address[0]} {upstream.address[1]}/udp")
        async with Forwarder(Config(rules=(there,)), admit=admit, on_close=closed.append) as forwarder:
            client.send(b"let me in", bound(forwarder))
            await until(lambda: closed)
            assert await forwarder.drain(30) == 0
    assert [record.ending for record in closed] == [Ending.NOT_ALLOWED]
    assert any("admit hook failed" in message for message in caplog.messages)


async def test_hooks_that_are_coroutines_are_awaited_in_order(upstream: tuple[str, int], settings: Settings) -> None:
    told: list[tuple[str, int]] = []
    gate = asyncio.Event()

    async def opened(record: SessionRecord) -> None:
        await gate.wait()
        told.append(("opened", record.id))

    async def closed(record: SessionRecord) -> None:
        told.append(("closed", record.id))

    config = Config(rules=(rule(upstream),), settings=settings)
    async with Forwarder(config, on_open=opened, on_close=closed) as forwarder:
        for _ in range(3):
            client = await dial(bound(forwarder))
            assert await exchange(client)
            client.close()
        await until(lambda: sum(forwarder.stats().rules.popitem()[1].endings.values()) == 3)
        assert not told
        gate.set()
        assert await forwarder.drain(30) == 0
        assert len(told) == 6, "a drain waits for the hooks"
    for number in {number for _, number in told}:
        assert [word for word, each in told if each == number] == ["opened", "closed"]


async def test_a_stop_waits_for_the_last_hooks(upstream: tuple[str, int], settings: Settings) -> None:
    told: list[Ending | None] = []

    async def closed(record: SessionRecord) -> None:
        await asyncio.sleep(0)
        told.append(record.ending)

    async with Forwarder(Config(rules=(rule(upstream),), settings=settings), on_close=closed) as forwarder:
        client = await dial(bound(forwarder))
        assert await exchange(client)
    assert told == [Ending.ABORTED]
    client.close()


async def test_a_hook_that_never_ends_is_cancelled(
    upstream: tuple[str, int], settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(oinetd.core.hooks, "LAST_HOOKS_S", 0.05)
    cancelled: list[int] = []

    async def closed(record: SessionRecord) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(record.id)
            raise

    async with Forwarder(Config(rules=(rule(upstream),), settings=settings), on_close=closed) as forwarder:
        client = await dial(bound(forwarder))
        assert await exchange(client)
        client.close()
        await until(lambda: forwarder.stats().rules.popitem()[1].endings)
        assert await forwarder.drain(0.01) == 0
    assert len(cancelled) == 1
    assert any("1 hooks have not ended" in message for message in caplog.messages)


async def test_a_coroutine_that_fails_is_logged(
    upstream: tuple[str, int], settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    async def closed(record: SessionRecord) -> None:
        raise asyncio.CancelledError

    async with Forwarder(Config(rules=(rule(upstream),), settings=settings), on_close=closed) as forwarder:
        client = await dial(bound(forwarder))
        assert await exchange(client)
        client.close()
        assert await forwarder.drain(30) == 0
    assert [each.levelno for each in caplog.records if "hook failed" in each.getMessage()] == [logging.ERROR]


async def test_a_coroutine_may_stop_the_forwarder(upstream: tuple[str, int], settings: Settings) -> None:
    async def closed(record: SessionRecord) -> None:
        await forwarder.stop()

    forwarder = Forwarder(Config(rules=(rule(upstream),), settings=settings), on_close=closed)
    await forwarder.start()
    client = await dial(bound(forwarder))
    assert await exchange(client)
    client.close()
    async with asyncio.timeout(30):
        await forwarder.serve_forever()
    await forwarder.stop()
    assert isinstance(client, Peer)
