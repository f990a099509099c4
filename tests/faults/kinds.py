"""The faults: each begins, lasts for a while, and ends. `KINDS` is what a seed chooses from."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from tests.faults.stage import NAME, UPSTREAM, Stage, run

__all__ = ["KINDS", "Fault"]

Fault = Callable[[Stage, random.Random], AbstractAsyncContextManager[None]]

LOSS = """\
table inet faults {{
    chain input {{
        type filter hook input priority 0;
        tcp dport {{ {ports} }} numgen random mod 100 < {percent} drop
        tcp sport {{ {ports} }} numgen random mod 100 < {percent} drop
    }}
}}
"""


@asynccontextmanager
async def packets_are_lost(_: Stage, choice: random.Random) -> AsyncIterator[None]:
    ports = ", ".join(str(port) for port in choice.sample((UPSTREAM, 7001, 7002, 7003, 7004), 2))
    ruleset = LOSS.format(ports=ports, percent=choice.randint(1, 20))
    await asyncio.to_thread(run, "sh", "-c", f"echo '{ruleset}' | nft -f -")
    yield
    await asyncio.to_thread(run, "nft", "flush", "ruleset")


@asynccontextmanager
async def packets_are_slow(_: Stage, choice: random.Random) -> AsyncIterator[None]:
    rate = f"{choice.randint(5, 50)}mbit"
    words = ("tc", "qdisc", "replace", "dev", "lo", "root", "tbf", "rate", rate, "burst", "64k", "latency", "20ms")
    await asyncio.to_thread(run, *words)
    yield
    await asyncio.to_thread(run, "tc", "qdisc", "del", "dev", "lo", "root")


@asynccontextmanager
async def servers_freeze(stage: Stage, _: random.Random) -> AsyncIterator[None]:
    stage.upstream.send_signal(signal.SIGSTOP)
    yield
    stage.upstream.send_signal(signal.SIGCONT)


@asynccontextmanager
async def servers_are_killed(stage: Stage, _: random.Random) -> AsyncIterator[None]:
    await asyncio.to_thread(stage.restart_upstream)
    yield


@asynccontextmanager
async def names_change(stage: Stage, choice: random.Random) -> AsyncIterator[None]:
    addresses = [f"127.0.0.{number}" for number in choice.sample(range(2, 9), choice.randint(1, 3))]
    stage.names.zone[NAME] = choice.choice((addresses, addresses, 2, 3, []))
    yield
    stage.names.zone[NAME] = ["127.0.0.2"]


@asynccontextmanager
async def names_hang(stage: Stage, _: random.Random) -> AsyncIterator[None]:
    stage.names.speaks.clear()
    yield
    stage.names.speaks.set()


@asynccontextmanager
async def descriptors_are_short(stage: Stage, choice: random.Random) -> AsyncIterator[None]:
    pid, limits = stage.daemon.pid, None
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # it was killed
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        used = len(os.listdir(f"/proc/{pid}/fd"))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + choice.randint(0, 12), hard))
        limits = soft, hard
    yield
    if limits is not None:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)


@asynccontextmanager
async def the_disk_is_full(stage: Stage, _: random.Random) -> AsyncIterator[None]:
    filler = stage.folder / "filler"
    await asyncio.to_thread(run, "sh", "-c", f"cat /dev/zero > {filler} 2>/dev/null || true")
    yield
    filler.unlink()


@asynccontextmanager
async def configurations_change(stage: Stage, choice: random.Random) -> AsyncIterator[None]:
    for _ in range(choice.randint(1, 4)):
        bad = choice.random() < 0.3
        # The disk may be full.
        try:
            stage.write("nonsense\n" if bad else "")
        except OSError:
            continue
        stage.daemon.send_signal(signal.SIGHUP)
        await asyncio.sleep(choice.random() / 5)
    yield
    try:
        stage.write()
    except OSError:
        return
    stage.daemon.send_signal(signal.SIGHUP)


@asynccontextmanager
async def logs_are_opened_again(stage: Stage, _: random.Random) -> AsyncIterator[None]:
    stage.daemon.send_signal(signal.SIGUSR1)
    yield


KINDS: dict[str, Fault] = {
    kind.__name__: kind
    for kind in (
        packets_are_lost,
        packets_are_slow,
        servers_freeze,
        servers_are_killed,
        names_change,
        names_hang,
        descriptors_are_short,
        the_disk_is_full,
        configurations_change,
        logs_are_opened_again,
    )
}
