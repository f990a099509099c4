"""The epoll of the Python lane: what comes from outside must not cost a descriptor its one event."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from oinetd.net.poller import READABLE, TURNS, Poller
from tests.peers import tcp_pair, until


@pytest.fixture
async def poller() -> AsyncIterator[Poller]:
    poller = Poller(asyncio.get_running_loop())
    yield poller
    poller.close()


@pytest.fixture
async def faults() -> list[dict[str, Any]]:
    """What the loop is told to be a fault of the program."""
    found: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: found.append(context))
    return found


async def test_what_is_ready_already_is_the_first_event(poller: Poller) -> None:
    near, far = tcp_pair()
    with near, far:
        far.send(b"early")
        events: list[int] = []
        poller.watch(near.fileno(), events.append)
        await until(lambda: events)
        assert events[0] & READABLE
        poller.forget(near.fileno())


async def test_watching_again_tells_it_again(poller: Poller) -> None:
    near, far = tcp_pair()
    with near, far:
        first: list[int] = []
        second: list[int] = []
        poller.watch(near.fileno(), first.append)
        await until(lambda: first)
        poller.watch(near.fileno(), second.append)
        await until(lambda: second)
        poller.forget(near.fileno())
        poller.forget(near.fileno())


async def test_a_handler_that_fails_costs_the_others_nothing(poller: Poller, faults: list[dict[str, Any]]) -> None:
    pairs = [tcp_pair() for _ in range(4)]
    events: list[int] = []

    def fail(_: int) -> None:
        raise MemoryError

    try:
        for number, (near, _) in enumerate(pairs):
            poller.watch(near.fileno(), events.append if number % 2 else fail)
        # All four are ready in one batch, and each edge comes once.
        await until(lambda: len(events) == 2)
        await until(lambda: len(faults) == 2)
    finally:
        for near, far in pairs:
            poller.forget(near.fileno())
            near.close()
            far.close()


async def test_a_turn_that_fails_costs_the_others_nothing(poller: Poller, faults: list[dict[str, Any]]) -> None:
    turns: list[str] = []

    def fail() -> None:
        raise MemoryError

    poller.again(fail)
    poller.again(lambda: turns.append("first"))
    await until(lambda: turns == ["first"])
    assert len(faults) == 1
    poller.again(lambda: turns.append("second"))
    await until(lambda: turns == ["first", "second"])


async def test_many_turns_let_the_loop_look_at_its_sockets(poller: Poller) -> None:
    """However many flows have more to do, a socket that became ready waits for `TURNS` of them at most."""
    near, far = tcp_pair()
    with near, far:
        done: list[int] = []
        seen_at: list[int] = []
        poller.watch(near.fileno(), lambda _: seen_at.append(len(done)))
        await until(lambda: seen_at)
        seen_at.clear()

        def turn() -> None:
            done.append(0)
            if len(done) == 1:
                far.send(b"x")

        for _ in range(20 * TURNS):
            poller.again(turn)
        await until(lambda: len(done) == 20 * TURNS)
        # The batch in which it was sent, and one more, since a loop may take the next batch before it looks.
        assert seen_at[0] <= 2 * TURNS
        poller.forget(near.fileno())


async def test_nothing_is_called_after_the_end(poller: Poller) -> None:
    poller.again(lambda: pytest.fail("called"))
    poller.close()
    poller.close()
    await asyncio.sleep(0)
