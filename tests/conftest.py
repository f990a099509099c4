"""What holds for every test: both event loops, and nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest
import uvloop

# How long an example takes says something of the machine only.
hypothesis.settings.register_profile("oinetd", deadline=None)
hypothesis.settings.load_profile("oinetd")

LEAK_PATIENCE_S = 5.0
"""How long a thread or a child that is on its way out may take; nothing waits this long unless it leaks."""


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


# libuv makes one pipe for the signals of all its loops and keeps it as long as the process lives.
uvloop.new_event_loop().close()


@dataclass(frozen=True)
class Belongings:
    """What a process can leave behind."""

    descriptors: Counter[str]
    threads: frozenset[str]
    children: frozenset[str]

    @classmethod
    def now(cls) -> Belongings:
        descriptors: Counter[str] = Counter()
        for entry in os.listdir("/proc/self/fd"):
            try:
                target = os.readlink(f"/proc/self/fd/{entry}")
            except FileNotFoundError:  # the descriptor that lists the folder
                continue
            # The number behind a socket or pipe is its inode; what counts is how many there are.
            descriptors[target.partition(":")[0] if ":[" in target else target] += 1
        children: set[str] = set()
        for task in Path("/proc/self/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
                children.update((task / "children").read_text().split())
        return cls(descriptors, frozenset(str(t) for t in threading.enumerate()), frozenset(children))

    def with_more(self, more: Belongings) -> Belongings:
        return Belongings(
            self.descriptors + more.descriptors, self.threads | more.threads, self.children | more.children
        )

    def without(self, less: Belongings) -> Belongings:
        return Belongings(
            self.descriptors - less.descriptors, self.threads - less.threads, self.children - less.children
        )

    def missing_from(self, before: Belongings) -> list[str]:
        """What is here now and was not there before."""
        more = [f"descriptor {name} x{count}" for name, count in (self.descriptors - before.descriptors).items()]
        more += [f"thread {name}" for name in self.threads - before.threads]
        more += [f"child process {pid}" for pid in self.children - before.children]
        return more


def pytest_collection_finish(session: pytest.Session) -> None:
    # 150 ms for each look at what pytest and its thousands of tests hold, 5 ms without: half the time of the suite.
    gc.collect()
    gc.freeze()


_before: dict[str, Belongings] = {}
_running = ""
_shared: dict[int, Belongings] = {}
"""What a fixture holds that several tests share, from its setup to its end: it is not for a test to give back."""
_begun: set[Path] = set()


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object]) -> Generator[None, object, object]:
    if fixturedef.scope == "function":
        return (yield)
    before = Belongings.now()
    result = yield
    _shared[id(fixturedef)] = Belongings.now().without(before)
    _before[_running] = _before[_running].with_more(_shared[id(fixturedef)])
    return result


def pytest_fixture_post_finalizer(fixturedef: pytest.FixtureDef[object]) -> None:
    if held := _shared.pop(id(fixturedef), None):
        _before[_running] = _before[_running].without(held)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    global _running
    gc.collect()
    if item.path not in _begun:
        _begun.add(item.path)
        gc.freeze()  # what other files have left alive stays, and need not be looked at for each test of this one
    _before[item.nodeid] = Belongings.now()
    _running = item.nodeid
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    result = yield
    before = _before.pop(item.nodeid)
    deadline = time.monotonic() + LEAK_PATIENCE_S
    while left := Belongings.now().missing_from(before):
        gc.collect()
        if time.monotonic() > deadline:
            pytest.fail("the test left behind: " + ", ".join(left), pytrace=False)
        time.sleep(0.01)  # threads and children end by themselves; there is no event to wait for
    return result
