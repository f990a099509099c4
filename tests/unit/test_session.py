"""The life of one session in the Python lane: hooks that hang, refuse or fail, and being ended at any moment."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket

import pytest

import oinetd.lanes.python.client_watch
from oinetd import Config, Ending, Forwarder, SessionRecord, Settings
from oinetd.model import EngineChoice
from tests.forwarding import Seen, bound, exchange, forwarding, rule
from tests.peers import Peer, dial, until

PYTHON = Settings(engine=EngineChoice.PYTHON)


def endings(seen: Seen) -> list[Ending | None]:
    return [record.ending for record in seen.closed]


def accepted_without_a_turn(forwarder: Forwarder, count: int) -> list[Peer]:
    """`count` clients that were just accepted, while no task has had a turn since."""
    clients = [Peer(socket.create_connection(bound(forwarder))) for _ in range(count)]
    for listener in forwarder._listeners.values():
        listener._accept()  # type: ignore[attr-defined]
    return clients


async def test_hooks_are_told_once_of_each(upstream: tuple[str, int]) -> None:
    seen = Seen()
    async with forwarding(rule(upstream), seen=seen, settings=PYTHON) as forwarder:
        client = await dial(bound(forwarder))
        assert await exchange(client)
        (live,) = forwarder.sessions()
        assert [record.id for record in seen.opened] == [live.id]
        assert (live.upstream, live.upstream_port) == upstream
        client.close()
        await until(lambda: seen.closed)
    (record,) = seen.closed
    assert (record.ending, record.bytes_up, record.bytes_down) == (Ending.CLIENT_CLOSED, 5, 5)
    assert record.duration_s >= record.connect_s >= 0


@pytest.mark.parametrize("answer", [False, RuntimeError("no")])
async def test_admit_refuses(
    upstream: tuple[str, int], answer: bool | Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async def admit(record: SessionRecord) -> bool:
        if isinstance(answer, Exception):
            raise answer
        return answer

    seen = Seen()
    async with forwarding(rule(upstream), seen=seen, admit=admit, settings=PYTHON) as forwarder:
        client = await dial(bound(forwarder))
        assert await client.read_all() == b""
        client.close()
        await until(lambda: seen.closed)
        assert forwarder.stats().refused == 1
    assert endings(seen) == [Ending.NOT_ALLOWED]
    assert not seen.opened
    assert any("admit hook failed" in message for message in caplog.messages) == isinstance(answer, Exception)


async def test_a_hook_that_fails_harms_nobody(upstream: tuple[str, int], caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: SessionRecord) -> None:
        raise ZeroDivisionError

    config = Config(rules=(rule(upstream),), settings=PYTHON)
    async with Forwarder(config, on_open=fail, on_close=fail) as forwarder:
        client = await dial(bound(forwarder))
        assert await exchange(client)
        client.close()
        await until(lambda: not forwarder.sessions())
    assert [record.levelno for record in caplog.records if "hook failed" in record.message] == [logging.ERROR] * 2


async def test_an_admit_that_hangs_ends_with_a_kill(upstream: tuple[str, int]) -> None:
    asked = asyncio.Event()

    async def admit(record: SessionRecord) -> bool:
        asked.set()
        await asyncio.Event().wait()
        return True

    seen = Seen()
    async with forwarding(rule(upstream), seen=seen, admit=admit, settings=PYTHON) as forwarder:
        client = await dial(bound(forwarder))
        await asked.wait()
        (live,) = forwarder.sessions()
        assert forwarder.kill(live.id)
        await client.read_to_reset()
        client.close()
        await until(lambda: seen.closed)
        assert not forwarder.kill(live.id)
    assert endings(seen) == [Ending.ABORTED]
    assert [record.id for record in seen.opened] == [live.id], "events come in pairs"


async def test_an_admit_that_hangs_does_not_hold_the_stop(upstream: tuple[str, int]) -> None:
    asked = asyncio.Event()

    async def admit(record: SessionRecord) -> bool:
        asked.set()
        await asyncio.Event().wait()
        return True

    seen = Seen()
    async with forwarding(rule(upstream), seen=seen, admit=admit, settings=PYTHON) as forwarder:
        client = await dial(bound(forwarder))
        await asked.wait()
        assert await forwarder.drain(0) == 1
        client.close()
    assert endings(seen) == [Ending.ABORTED]


@pytest.mark.parametrize("stubborn", [False, True])
async def test_a_client_that_resets_while_admit_waits(upstream: tuple[str, int], stubborn: bool) -> None:
    """The hook is cancelled, and the place is free for the next client."""
    asked: list[int] = []
    cancelled: list[int] = []

    async def admit(record: SessionRecord) -> bool:
        asked.append(record.id)
        if len(asked) > 1:
            return True
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(record.id)
            if not stubborn:
                raise
        return True

    seen = Seen()
    async with forwarding(rule(upstream, options="max-connections=1"), seen=seen, admit=admit) as forwarder:
        first = await dial(bound(forwarder))
        await until(lambda: asked)
        second = await dial(bound(forwarder))
        first.reset()
        await until(lambda: seen.closed)
        assert (seen.closed[0].ending, seen.closed[0].errno) == (Ending.CLIENT_RESET, errno.ECONNRESET)
        assert cancelled == [seen.closed[0].id]
        assert await exchange(second)
        second.close()
        assert await forwarder.drain(30) == 0
    assert [record.id for record in seen.opened] == [record.id for record in seen.closed] == asked


async def test_bytes_and_the_fin_of_a_client_wait_while_admit_does(
    upstream: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = asyncio.Event()
    on_client = oinetd.lanes.python.client_watch.ClientWatch._on_client

    def note(watch: oinetd.lanes.python.client_watch.ClientWatch, events: int) -> None:
        on_client(watch, events)
        watched.set()

    monkeypatch.setattr(oinetd.lanes.python.client_watch.ClientWatch, "_on_client", note)
    go = asyncio.Event()

    async def admit(record: SessionRecord) -> bool:
        await go.wait()
        return True

    async with forwarding(rule(upstream), admit=admit) as forwarder:
        client = await dial(bound(forwarder))
        await client.send(b"early")
        client.half_close()
        await watched.wait()
        go.set()
        assert await client.read_all() == b"early"
        client.close()


async def test_an_admit_that_overlooks_its_cancelling_does_not_revive_the_session(upstream: tuple[str, int]) -> None:
    asked = asyncio.Event()

    async def admit(record: SessionRecord) -> bool:
        asked.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return True

    seen = Seen()
    async with forwarding(rule(upstream), seen=seen, admit=admit, settings=PYTHON) as forwarder:
        client = await dial(bound(forwarder))
        await asked.wait()
        assert forwarder.kill(forwarder.sessions()[0].id)
        await client.read_to_reset()
        client.close()
        await until(lambda: seen.closed)
    assert endings(seen) == [Ending.ABORTED]
    assert len(seen.opened) == 1, "events come in pairs"


async def test_killed_by_its_own_hook(upstream: tuple[str, int]) -> None:
    closed: list[SessionRecord] = []
    forwarder = Forwarder(
        Config(rules=(rule(upstream),), settings=PYTHON),
        on_open=lambda record: forwarder.kill(record.id),
        on_close=closed.append,
    )
    async with forwarder:
        client = await dial(bound(forwarder))
        await client.read_to_reset()
        client.close()
        await until(lambda: closed)
    assert [record.ending for record in closed] == [Ending.ABORTED]


async def test_killed_before_its_first_step(upstream: tuple[str, int]) -> None:
    """A task that is cancelled before it has run never runs; the session must be accounted for all the same."""
    seen = Seen()
    async with forwarding(rule(upstream), seen=seen, settings=PYTHON) as forwarder:
        clients = accepted_without_a_turn(forwarder, 20)
        for record in forwarder.sessions():
            forwarder.kill(record.id)
        for client in clients:
            await client.read_to_reset()
            client.close()
        await until(lambda: len(seen.closed) == 20)
    assert endings(seen) == [Ending.ABORTED] * 20


async def test_a_program_that_cancels_all_its_tasks(upstream: tuple[str, int]) -> None:
    """What programs do at their end: it reaches our sessions too, before their first step as well as in the middle."""
    seen = Seen()
    async with forwarding(rule(upstream), seen=seen, settings=PYTHON) as forwarder:
        clients = [await dial(bound(forwarder)) for _ in range(3)]
        assert await exchange(clients[0])
        await until(lambda: len(forwarder.sessions()) == 3)
        clients += accepted_without_a_turn(forwarder, 3)
        assert len(forwarder.sessions()) == 6
        for task in forwarder._lanes.python.tasks:
            task.cancel()
        await until(lambda: len(seen.closed) == 6)
        assert forwarder.stats().live == 0
        for client in clients:
            client.close()
    assert set(endings(seen)) == {Ending.ABORTED}
    assert len({record.id for record in seen.closed}) == len(seen.closed)
