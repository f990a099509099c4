"""Signals in the event loop: each is answered once, also if the interpreter could not tell the loop of it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Iterator

import pytest

from oinetd.process.signals import TURNS, handle_signals
from tests.peers import until


@pytest.fixture
def handlers() -> Iterator[None]:
    kept = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


async def turns(count: int = 5 * TURNS) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.usefixtures("handlers")
async def test_a_signal_is_answered_once() -> None:
    told: list[str] = []
    handle_signals({signal.SIGUSR1: lambda: told.append("1"), signal.SIGUSR2: lambda: told.append("2")})
    for number, expected in ((signal.SIGUSR1, "1"), (signal.SIGUSR2, "2"), (signal.SIGUSR1, "1")):
        os.kill(os.getpid(), number)
        await until(lambda: bool(told))
        await turns()
        assert told == [expected]
        told.clear()


@pytest.mark.usefixtures("handlers")
async def test_a_signal_is_answered_although_its_byte_was_lost() -> None:
    """As if the kernel had no memory for it."""
    told: list[str] = []
    handle_signals({signal.SIGUSR1: lambda: told.append("1")})
    nowhere, other = socket.socketpair()
    with nowhere, other:
        nowhere.setblocking(False)
        kept = signal.set_wakeup_fd(nowhere.fileno())
        try:
            os.kill(os.getpid(), signal.SIGUSR1)
            await until(lambda: bool(told))
            await turns()
            assert told == ["1"]
        finally:
            signal.set_wakeup_fd(kept)
    os.kill(os.getpid(), signal.SIGUSR1)
    await until(lambda: len(told) == 2)
    await turns()
    assert told == ["1", "1"]
