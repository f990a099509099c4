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
from pathlib import Path

from tests.faults.frames import Frames
from tests.faults.stage import NAME, Stage, run
from tests.faults.ways import DATAGRAM_WAYS, HEADED, PLAIN, TCP_PORTS

__all__ = ["KINDS", "Fault", "kinds"]

TCP = Path("/proc/sys/net/ipv4")
YEAR_S = 31_557_600

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
    ports = ", ".join(str(port) for port in choice.sample((PLAIN, HEADED, *TCP_PORTS), 3))
    ruleset = LOSS.format(ports=ports, percent=choice.randint(1, 20))
    await asyncio.to_thread(run, "sh", "-c", f"echo '{ruleset}' | nft -f -")
    yield
    await asyncio.to_thread(run, "nft", "delete", "table", "inet", "faults")


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
    for each in {pid, stage.daemon.pid}:  # a new process has the limits of the old one
        with contextlib.suppress(ProcessLookupError):
            if limits is not None:
                resource.prlimit(each, resource.RLIMIT_NOFILE, limits)


@asynccontextmanager
async def memory_is_short(stage: Stage, choice: random.Random) -> AsyncIterator[None]:
    """The limit of the daemon's control group is what it has, and a little more."""
    assert stage.memory is not None
    stage.memory.limit(choice.choice((0, 1 << 16, 1 << 20, 4 << 20)))
    yield
    stage.memory.lift()


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
async def servers_come_and_go(stage: Stage, choice: random.Random) -> AsyncIterator[None]:
    """The file of a group changes, and is sometimes no list of servers."""
    for _ in range(choice.randint(1, 4)):
        hosts = [f"127.0.0.{number}" for number in choice.sample(range(2, 9), choice.randint(0, 4))]
        with contextlib.suppress(OSError):  # the disk may be full
            stage.write_servers(hosts, "nonsense\n" if choice.random() < 0.2 else "")
        await asyncio.sleep(choice.random() / 3)
    yield
    with contextlib.suppress(OSError):
        stage.write_servers(("127.0.0.3",))


@asynccontextmanager
async def operators_change_servers(stage: Stage, choice: random.Random) -> AsyncIterator[None]:
    server = "web/127.0.0.2:7000"
    words = choice.choice((("drain", server), ("maint", server), ("weight", server, "7")))
    await asyncio.to_thread(stage.ask, *words)
    yield
    await asyncio.to_thread(stage.ask, "ready", server)


@asynccontextmanager
async def sessions_are_killed(stage: Stage, choice: random.Random) -> AsyncIterator[None]:
    for _ in range(choice.randint(1, 3)):
        await asyncio.to_thread(stage.kill_sessions, choice.choice(("0s", "20ms", "1s")))
    yield


@asynccontextmanager
async def logs_are_opened_again(stage: Stage, _: random.Random) -> AsyncIterator[None]:
    stage.daemon.send_signal(signal.SIGUSR1)
    yield


@asynccontextmanager
async def oinetd_is_upgraded(stage: Stage, _: random.Random) -> AsyncIterator[None]:
    await asyncio.to_thread(stage.upgrade)
    yield


@asynccontextmanager
async def the_clock_jumps(stage: Stage, choice: random.Random) -> AsyncIterator[None]:
    assert stage.control is not None
    for _ in range(choice.randint(1, 4)):
        stage.control.set_clock(choice.choice((-56 * YEAR_S, -3600, -1, 1, 86_400, 20 * YEAR_S)))
        await asyncio.sleep(choice.random() / 5)
    yield
    stage.control.set_clock(0)


@asynccontextmanager
async def calls_fail(stage: Stage, choice: random.Random) -> AsyncIterator[None]:
    """System calls and allocations of the reactors: descriptors, pipes and memory are short."""
    assert stage.control is not None
    stage.control.let_fail(choice.choice((200, 2_000, 20_000)))
    yield
    stage.control.let_fail(0)


@asynccontextmanager
async def buffers_are_small(_: Stage, choice: random.Random) -> AsyncIterator[None]:
    """As under the kernel's memory pressure: new sockets hold little, so that everything comes in pieces."""
    kept = {name: (TCP / name).read_text() for name in ("tcp_rmem", "tcp_wmem")}
    for name in kept:
        (TCP / name).write_text(choice.choice(("4096 4096 4096", "4096 16384 16384")))
    await asyncio.to_thread(run, "ip", "link", "set", "lo", "mtu", "1500")
    yield
    await asyncio.to_thread(run, "ip", "link", "set", "lo", "mtu", "65536")
    for name, text in kept.items():
        (TCP / name).write_text(text)


@asynccontextmanager
async def frames_are_forged(_: Stage, choice: random.Random) -> AsyncIterator[None]:
    with contextlib.closing(Frames(choice)) as frames:
        for _times in range(choice.randint(1, 5)):
            frames.send(100, TCP_PORTS, DATAGRAM_WAYS[0].port)
            await asyncio.sleep(choice.random() / 5)
        yield


def kinds(stage: Stage) -> list[str]:
    """The names of the faults that this stage can have."""
    missing = [] if stage.control is not None else [calls_fail, the_clock_jumps]
    missing += [] if stage.memory is not None else [memory_is_short]
    return [name for name in sorted(KINDS) if KINDS[name] not in missing]


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
        memory_is_short,
        the_disk_is_full,
        configurations_change,
        servers_come_and_go,
        operators_change_servers,
        sessions_are_killed,
        logs_are_opened_again,
        oinetd_is_upgraded,
        the_clock_jumps,
        calls_fail,
        buffers_are_small,
        frames_are_forged,
    )
}
