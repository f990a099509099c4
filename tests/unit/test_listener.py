"""Accepting in the Python lane: in batches, within limits, through shortages."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import oinetd.admin.listener
import oinetd.lanes.python.listener
from oinetd import Ending, EngineChoice, SessionRecord, Settings
from oinetd.admin.listener import AdminListener
from oinetd.admin.message import Request, Response
from oinetd.lanes.native.plane import available
from oinetd.lanes.python.listener import ACCEPT_BATCH, StreamListener
from oinetd.net.poller import Poller
from tests.forwarding import Seen, bound, echoes, exchange, forwarding, rule
from tests.peers import Peer, dial, until

PYTHON = Settings(engine=EngineChoice.PYTHON)


def knock(address: tuple[str, int], count: int) -> list[Peer]:
    """Clients that the kernel has let in, while the loop had no turn."""
    return [Peer(socket.create_connection(address)) for _ in range(count)]


async def test_more_than_a_batch(upstream: tuple[str, int]) -> None:
    async with forwarding(rule(upstream), settings=PYTHON) as forwarder:
        clients = knock(bound(forwarder), 2 * ACCEPT_BATCH + 1)
        for client in clients:
            assert await exchange(client)
            client.close()


async def test_one_batch_leaves_the_rest_to_the_next(upstream: tuple[str, int]) -> None:
    async with forwarding(rule(upstream), settings=PYTHON) as forwarder:
        clients = knock(bound(forwarder), ACCEPT_BATCH + 10)
        (listener,) = forwarder._listeners.values()
        assert isinstance(listener, StreamListener)
        listener._accept()
        assert len(forwarder.sessions()) == ACCEPT_BATCH
        for client in clients:
            assert await exchange(client)
            client.close()


@pytest.mark.parametrize("where", ["process", "rule"])
async def test_at_the_limit_clients_wait_and_lose_nothing(upstream: tuple[str, int], where: str) -> None:
    limit = 3
    options = f"max-connections={limit}" if where == "rule" else ""
    process = limit if where == "process" else 0
    seen = Seen()
    async with forwarding(
        rule(upstream, options=options), seen=seen, settings=PYTHON, max_connections=process
    ) as forwarder:
        clients = knock(bound(forwarder), 10)
        for client in clients:
            await client.send(b"hello")
        live: list[int] = []
        for client in clients:
            # Who came first is served first, and never more than the limit at once.
            assert await client.read(5) == b"hello"
            live.append(len(forwarder.sessions()))
            client.close()
        await until(lambda: len(seen.closed) == 10)
    assert max(live) <= limit
    assert [record.ending for record in seen.closed] == [Ending.CLIENT_CLOSED] * 10


async def test_a_rule_at_its_limit_does_not_hold_up_another(upstream: tuple[str, int]) -> None:
    rules = (rule(upstream, options="max-connections=1"), rule(upstream))
    async with forwarding(*rules, settings=PYTHON) as forwarder:
        first, second = await dial(bound(forwarder, 0)), await dial(bound(forwarder, 0))
        assert await exchange(first)
        await second.send(b"later")
        for _ in range(5):
            assert await echoes(bound(forwarder, 1))
        first.close()
        assert await second.read(5) == b"later"
        second.close()


async def test_limits_of_a_source_refuse_who_comes_after(upstream: tuple[str, int]) -> None:
    seen = Seen()
    async with forwarding(rule(upstream), seen=seen, settings=PYTHON, max_connections_per_source=2) as forwarder:
        clients = knock(bound(forwarder), 5)  # in one batch
        assert [await exchange(client) for client in clients] == [True, True, False, False, False]
        other = await dial(bound(forwarder), source="127.0.0.9")
        assert await exchange(other)
        for client in (*clients, other):
            client.close()
        await until(lambda: len(seen.closed) == 6)
        assert await echoes(bound(forwarder))
        assert forwarder.stats().refused == 3


@pytest.fixture
def descriptors() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.usefixtures("descriptors")
async def test_no_descriptor_pauses_and_recovers(
    upstream: tuple[str, int], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oinetd.lanes.python.listener, "PAUSE_S", 0.01)
    monkeypatch.setattr(oinetd.lanes.python.listener, "PAUSE_MAX_S", 0.02)
    monkeypatch.setattr(oinetd.lanes.python.listener, "CALM_S", 0.5)
    caplog.set_level(logging.INFO, "oinetd")
    async with forwarding(rule(upstream), settings=PYTHON) as forwarder:
        old = await dial(bound(forwarder))
        assert await exchange(old)
        (listener,) = forwarder._listeners.values()
        assert isinstance(listener, StreamListener)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        for _ in range(3):
            clients = knock(bound(forwarder), 5)
            free = os.dup(0)
            os.close(free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
            await until(lambda: listener._pause_s == 0.02)
            assert await exchange(old)
            assert len(forwarder.sessions()) == 1
            # The places that were taken for nothing were given back.
            assert forwarder._registry.gate.live == 1
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for client in clients:
                assert await exchange(client)
                client.close()
            await until(lambda: len(forwarder.sessions()) == 1)
        await until(lambda: any("accepts again" in message for message in caplog.messages))
        old.close()
    assert sum("cannot accept" in message for message in caplog.messages) == 1
    assert sum("accepts again" in message for message in caplog.messages) == 1


class OfNoSockets:
    """A loop whose own readers are not used: libuv ends the process if the kernel has no memory for a watch."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def __getattr__(self, name: str) -> Any:
        assert name != "add_reader"
        return getattr(self._loop, name)


def short(poller: Poller, times: int) -> None:
    """The poller has no memory to watch a socket, `times` times."""
    left, watch = [None] * times, poller.watch

    def watch_if_possible(*words: Any) -> None:
        if left:
            left.pop()
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        watch(*words)

    poller.watch = watch_if_possible  # type: ignore[method-assign]


async def test_a_pause_ends_although_there_is_no_memory_at_its_end(
    upstream: tuple[str, int], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oinetd.lanes.python.listener, "PAUSE_S", 0.01)
    async with forwarding(rule(upstream), settings=PYTHON) as forwarder:
        (listener,) = forwarder._listeners.values()
        assert isinstance(listener, StreamListener)
        listener._back_off(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
        loop: Any = OfNoSockets()
        listener._loop = loop
        short(listener.service.dialer.poller, 3)
        client = await dial(bound(forwarder))
        assert await exchange(client)
        client.close()
    assert sum("cannot accept" in message for message in caplog.messages) == 1


async def test_a_listener_that_is_released_does_not_accept_by_an_earlier_timer(upstream: tuple[str, int]) -> None:
    """In an upgrade it would let clients in beside the process that replaces this one."""
    async with forwarding(rule(upstream), settings=PYTHON) as forwarder:
        (listener,) = forwarder._listeners.values()
        assert isinstance(listener, StreamListener)
        listener._pause()
        listener._look_later()
        earlier = listener._timer
        assert earlier is not None
        short(listener.service.dialer.poller, 1)
        listener._start_again()
        listener.release()
        assert earlier.cancelled()


async def test_the_admin_socket_is_watched_again_although_memory_was_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oinetd.admin.listener, "RETRY_S", 0.01)
    answered = asyncio.Event()

    async def answer(_: Request) -> Response:
        answered.set()
        return Response()

    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "s"))
        sock.listen()
        listener = AdminListener(sock, answer)
        listener.start()
        loop: Any = OfNoSockets()
        listener._loop = loop
        short(listener._poller, 3)
        listener._pause(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "s"))
            client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            await asyncio.wait_for(answered.wait(), 20)
        await listener.close()


async def test_an_error_nobody_foresaw_pauses_too(upstream: tuple[str, int], caplog: pytest.LogCaptureFixture) -> None:
    """A listening socket that was shut down is ready for ever and answers EINVAL: it must not burn the processor."""
    async with forwarding(rule(upstream), settings=PYTHON) as forwarder:
        (listener,) = forwarder._listeners.values()
        assert isinstance(listener, StreamListener)
        listener.sock.shutdown(socket.SHUT_RDWR)
        await until(lambda: any("cannot accept" in message for message in caplog.messages))
        assert not listener._reading
        assert forwarder._registry.gate.live == 0


async def test_a_client_that_has_gone_from_the_queue(upstream: tuple[str, int]) -> None:
    seen = Seen()
    async with forwarding(rule(upstream), seen=seen, settings=PYTHON) as forwarder:
        gone = knock(bound(forwarder), 5)
        for client in gone:
            client.reset()
        assert await echoes(bound(forwarder))
        await until(lambda: len(seen.closed) == 6)


@pytest.mark.skipif(bool(available()), reason=available() or "")
async def test_the_python_lane_with_the_native_engine_uses_descriptors_again(upstream: tuple[str, int]) -> None:
    """The engine closes descriptors in its own threads; their numbers come back and must be as good as new."""

    async def admit(record: SessionRecord) -> bool:
        return True

    seen = Seen()
    async with forwarding(rule(upstream), seen=seen, admit=admit) as forwarder:
        for _ in range(10):
            clients = knock(bound(forwarder), 10)
            for client in clients:
                assert await exchange(client)
            for client in clients:
                client.close()
            await until(lambda: not forwarder.sessions())
        assert {record.engine for record in seen.closed} == {"native"}
        (listener,) = forwarder._listeners.values()
        assert forwarder._lanes.poller._handlers.keys() == {listener.sock.fileno()}
