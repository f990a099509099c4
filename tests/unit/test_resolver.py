"""Lookups: in threads of their own, a bounded number, a slow one in nobody's way."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections import Counter
from collections.abc import Iterator

import pytest

import oinetd.net.resolver
from oinetd.net.resolver import Resolver, is_temporary
from oinetd.net.sockets import Address
from tests.peers import until

HERE = Address(socket.AF_INET, ("127.0.0.1", 0))


class Names:
    """A name server in this process: names that begin with `silent` are not answered until `answer` is set."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.answer = threading.Event()
        self.at_once = 0
        self.most_at_once = 0
        self._lock = threading.Lock()

    def __call__(self, host: str, port: int = 0) -> tuple[Address, ...]:
        with self._lock:
            self.asked[host] += 1
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if host.startswith("silent"):
                self.answer.wait(30)
            if host.startswith("broken"):
                raise ValueError(host)
            if host.startswith("unknown"):
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            return (HERE,)
        finally:
            with self._lock:
                self.at_once -= 1


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    names = Names()
    monkeypatch.setattr(oinetd.net.resolver, "lookup", names)
    yield names
    names.answer.set()


@pytest.fixture
def resolver() -> Resolver:
    return Resolver()


async def test_an_address_asks_nobody(resolver: Resolver) -> None:
    before = threading.enumerate()
    assert await resolver.resolve("127.0.0.1") == (HERE,)
    assert threading.enumerate() == before


async def test_who_asks_for_the_same_name_waits_for_the_same_answer(names: Names, resolver: Resolver) -> None:
    asking = [asyncio.create_task(resolver.resolve("silent.example")) for _ in range(20)]
    await until(lambda: names.asked["silent.example"])
    asking[0].cancel()  # of no matter for the others
    names.answer.set()
    assert await asyncio.gather(*asking[1:]) == [(HERE,)] * 19
    assert names.asked == {"silent.example": 1}


async def test_silent_names_delay_no_other(names: Names, resolver: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than there may be lookups at a time."""
    monkeypatch.setattr(oinetd.net.resolver, "THREADS_MAX", 4)
    monkeypatch.setattr(oinetd.net.resolver, "SLOW_S", 0.05)
    monkeypatch.setattr(oinetd.net.resolver, "LOOK_S", 0.02)
    silent = [asyncio.create_task(resolver.resolve(f"silent-{number}.example")) for number in range(30)]
    assert await resolver.resolve("quick.example") == (HERE,)
    assert not any(each.done() for each in silent)
    names.answer.set()
    assert await asyncio.gather(*silent) == [(HERE,)] * 30


async def test_the_threads_are_bounded(names: Names, resolver: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oinetd.net.resolver, "THREADS_TOTAL_MAX", 6)
    monkeypatch.setattr(oinetd.net.resolver, "THREADS_MAX", 3)
    monkeypatch.setattr(oinetd.net.resolver, "SLOW_S", 0.0)
    monkeypatch.setattr(oinetd.net.resolver, "LOOK_S", 0.01)
    asking = [asyncio.create_task(resolver.resolve(f"silent-{number}.example")) for number in range(30)]
    await until(lambda: names.at_once == 6)
    names.answer.set()
    assert await asyncio.gather(*asking) == [(HERE,)] * 30
    assert names.most_at_once == 6


async def test_no_answer_in_time_is_a_temporary_failure(names: Names, resolver: Resolver) -> None:
    with pytest.raises(socket.gaierror, match="no answer") as failure:
        await resolver.resolve("silent.example", 0.05)
    assert is_temporary(failure.value)
    # The lookup goes on, and serves who asks next.
    again = asyncio.create_task(resolver.resolve("silent.example"))
    await asyncio.sleep(0)
    names.answer.set()
    assert await again == (HERE,)
    assert names.asked == {"silent.example": 1}


async def test_a_queued_lookup_that_nobody_wants_any_more_is_dropped(
    names: Names, resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oinetd.net.resolver, "THREADS_MAX", 1)
    first = asyncio.create_task(resolver.resolve("silent.example"))
    await until(lambda: names.asked["silent.example"])
    second = asyncio.create_task(resolver.resolve("second.example"))
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    names.answer.set()
    await first
    await until(lambda: not resolver._running)
    assert names.asked == {"silent.example": 1}


@pytest.mark.parametrize("host", ["broken.example", "unknown.example"])
async def test_what_a_lookup_raises_is_an_os_error(names: Names, resolver: Resolver, host: str) -> None:
    with pytest.raises(OSError, match=r"broken\.example|not known"):
        await resolver.resolve(host)


async def test_no_thread_for_a_lookup(names: Names, resolver: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(OSError, match="cannot start a thread") as failure:
        await resolver.resolve("quick.example")
    assert is_temporary(failure.value)


def test_the_end_of_a_loop_waits_for_no_lookup(names: Names, resolver: Resolver) -> None:
    async def ask() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await resolver.resolve("silent.example")

    asyncio.run(ask())  # with the default executor this would wait for the answer
    assert not names.answer.is_set()
    names.answer.set()


async def test_lookups_leave_the_default_executor_to_the_program(names: Names, resolver: Resolver) -> None:
    asking = [asyncio.create_task(resolver.resolve(f"silent-{number}.example")) for number in range(40)]
    await until(lambda: names.at_once >= 30)
    assert await asyncio.to_thread(lambda: 7) == 7
    names.answer.set()
    await asyncio.gather(*asking)


def test_a_child_process_asks_for_itself(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread of a lookup that was under way at the fork exists in the parent only."""

    async def ask() -> int:
        asking = asyncio.create_task(oinetd.net.resolver.resolve("silent.example"))
        await until(lambda: names.asked["silent.example"])
        child = os.fork()
        if child == 0:
            os._exit(0 if not oinetd.net.resolver._resolver._current else 1)
        names.answer.set()
        await asking
        return child

    child = asyncio.run(ask())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    ("code", "temporary"),
    [(socket.EAI_AGAIN, True), (socket.EAI_MEMORY, True), (socket.EAI_SYSTEM, True), (socket.EAI_NONAME, False),
     (socket.EAI_NODATA, False), (socket.EAI_FAIL, False)],
)  # fmt: skip
def test_which_failures_may_pass(code: int, temporary: bool) -> None:
    assert is_temporary(socket.gaierror(code, "")) is temporary
    assert is_temporary(OSError(0, "no thread"))
