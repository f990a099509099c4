"""A forwarder of the native lane whose system calls and allocations fail at random; a program of its own.

It has to be started with the library made from `faults.c` preloaded. Peers may see resets and silence, and reloads may
fail, as on a machine that is short of everything. What must not happen is a fault of memory, an assertion, a byte in
the wrong connection, or an account that does not add up. When the faults end, everything has to be served again.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import random
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from oinetd import Forwarder, SessionRecord, _fastpath, parse_config
from tests.peers import server, until
from tests.soak.effort import SECONDS, Effort
from tests.soak.keyed import Load
from tests.udp.rig import Party, echo

KINDS = (
    *("malloc", "calloc", "realloc", "socket", "accept4", "epoll_ctl", "splice", "pipe2", "connect", "bind", "fcntl"),
    *("recv", "send", "recvmmsg", "sendmmsg", "setsockopt", "eventfd", "epoll_create1", "pthread_create"),
)
"""As in `faults.c`, in this order."""

WANTED = ({"malloc", "calloc", "realloc"}, {"socket"}, {"accept4"}, {"epoll_ctl"}, {"pipe2", "splice"})
"""One of each set has to have failed in the run. (Without a pipe nothing is spliced.)"""

LONGER_S = 60.0
"""How much longer than asked a run may last until the wanted calls have failed: a busy machine does little in two
seconds."""

RATE = 20_000
"""Of a million calls."""

CLIENTS = 20
RULES = ("relay=auto", "relay=copy", "relay=splice", "accept-proxy")
OPENINGS = {"accept-proxy": b"PROXY TCP4 192.0.2.7 198.51.100.9 40000 443\r\n"}
"""What clients say before their streams."""


def enough(counts: Mapping[str, int]) -> bool:
    """Whether every kind of call that matters has failed."""
    return all(any(counts[kind] for kind in kinds) for kinds in WANTED)


class Faults:
    """The library that makes calls of the extension fail."""

    def __init__(self, seed: int) -> None:
        self._library = ctypes.CDLL(os.environ["FAULTS_LIBRARY"])
        self._library.faults_arm.argtypes = (ctypes.c_size_t, ctypes.c_size_t, *[ctypes.c_uint64] * 3)
        self._library.faults_failed.restype = ctypes.c_uint64
        self._seed = seed
        chosen = os.environ.get("FAULTS_KINDS", "").split() or KINDS
        self._mask = sum(1 << KINDS.index(kind) for kind in chosen)
        name = os.path.realpath(_fastpath.__file__)
        lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
        spans = [line[0].split("-") for line in lines if line[-1] == name]
        self._begin, self._end = int(spans[0][0], 16), int(spans[-1][1], 16)

    def arm(self, rate: int) -> None:
        self._library.faults_arm(self._begin, self._end, self._seed, rate, self._mask)

    def counts(self) -> dict[str, int]:
        """How many calls of each kind have failed."""
        return {kind: self._library.faults_failed(number) for number, kind in enumerate(KINDS)}


class Run:
    """The load, and what the forwarder told."""

    def __init__(self, effort: Effort, faults: Faults) -> None:
        self.effort, self.faults = effort, faults
        self.load = Load(effort.random)
        self.opened: set[int] = set()
        self.ended = 0
        self._longest = time.monotonic() + SECONDS + LONGER_S
        self.answers = 0

    @property
    def left(self) -> bool:
        """Whether the run goes on: for the time asked, and until enough has failed."""
        if self.effort.left:
            return True
        return time.monotonic() < self._longest and not enough(self.faults.counts())

    def on_open(self, record: SessionRecord) -> None:
        assert record.id not in self.opened, "opened twice"
        self.opened.add(record.id)

    def on_close(self, record: SessionRecord) -> None:
        assert record.ending is not None
        self.opened.discard(record.id)
        self.ended += 1

    async def clients(self, address: tuple[str, int], opening: bytes) -> None:
        while self.left:
            with contextlib.suppress(TimeoutError):
                # A client that the listener was too poor to accept waits in its queue.
                await asyncio.wait_for(self.load.client(address, opening), 2)

    async def datagrams(self, address: tuple[str, int]) -> None:
        choice = random.Random(self.effort.seed)
        by_port: dict[int, set[bytes]] = {}
        """A port is soon another party's, and a late answer to the one before comes to it."""
        while self.left:
            parties = [Party() for _ in range(30)]
            sent = [choice.randbytes(choice.randint(1, 1400)) for _ in parties]
            for party, data in zip(parties, sent, strict=True):
                party.send(data, address)
                by_port.setdefault(party.address[1], set()).add(data)
            await asyncio.sleep(0.02)
            for party in parties:
                answers = party.pending()
                assert set(answers) <= by_port[party.address[1]], "a datagram of another client"
                self.answers += len(answers)
                party.close()

    async def reloads(self, forwarder: Forwarder, text: str) -> int:
        """Reloads all the time; those that fail leave everything as it was."""
        failed = 0
        while self.left:
            try:
                await forwarder.reload(parse_config(text))
            except (OSError, MemoryError, RuntimeError) as error:
                failed += 1
                print(f"reload: {error!r}", flush=True)
            await asyncio.sleep(0.05)
        return failed

    async def works(self, addresses: list[tuple[str, int]]) -> None:
        """Everything is served as if nothing had been."""
        before = self.load.ended
        for address, options in zip(addresses, RULES, strict=False):
            for _ in range(20):
                await asyncio.wait_for(self.load.client(address, OPENINGS.get(options, b"")), 30)
        assert self.load.ended > before, "no connection was served"
        with Party() as party:
            assert await party.ask(b"hello", addresses[-1]) == b"hello"


async def main() -> None:
    effort = Effort()
    faults = Faults(effort.seed)
    run = Run(effort, faults)
    with echo() as datagrams:
        async with server(run.load.serve) as upstream:
            text = "engine native\nthreads 2\npipesize 16K\nbuffersize 8K\nconnect-timeout 1s\n"
            text += (
                "".join(f"127.0.0.1 0 {upstream[0]} {upstream[1]} [{options}]\n" for options in RULES)
                + "trust 127.0.0.1\n"
            )
            text += f"127.0.0.1 0/udp 127.0.0.1 {datagrams.address[1]}/udp [timeout=1]\n"
            forwarder = Forwarder(parse_config(text), on_open=run.on_open, on_close=run.on_close)
            await forwarder.start()
            addresses = [(host, port) for _, host, port in forwarder.addresses]
            faults.arm(RATE)
            work = [
                run.clients(address, OPENINGS.get(options, b""))
                for address, options in zip(addresses, RULES, strict=False)
                for _ in range(CLIENTS)
            ]
            await asyncio.gather(run.reloads(forwarder, text), run.datagrams(addresses[-1]), *work)
            faults.arm(0)
            addresses = [(host, port) for _, host, port in forwarder.addresses]
            await run.works(addresses)
            await until(lambda: not forwarder.sessions(), "the end of all sessions")
            await until(lambda: not run.opened, "the records of all sessions")
            stats = forwarder.stats()
            await forwarder.stop()
    assert not run.load.faults, run.load.faults
    assert stats.accepted == run.ended, (stats, run.ended)
    print(f"{run.load.ended} connections ended, {run.load.broken} broke, {run.answers} datagrams came back")
    print(json.dumps(faults.counts()))


if __name__ == "__main__":
    asyncio.run(main())
    sys.exit(0)
