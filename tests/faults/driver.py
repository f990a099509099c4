"""A run: rounds of load under faults, each followed by quiet in which the invariants are checked."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from tests.faults.invariants import Broken, Done, Holdings, check_holdings, check_log, check_said, holdings
from tests.faults.kinds import KINDS, kinds
from tests.faults.plants import Plant
from tests.faults.stage import DATAGRAMS, RULES, Stage
from tests.peers import Peer, dial
from tests.soak.keyed import SIZES, Load, Mixture, talk
from tests.udp.rig import Party

__all__ = ["Driver"]

CLIENTS: Final = 12
ROUND_S: Final = 3.0
QUIET_S: Final = 60.0
"""How long the last sessions may take: TCP sends again after a loss, names are asked again."""
CLIENT_S: Final = 15.0
RESOLVER_S: Final = 15.0
SESSION_BYTES_MAX: Final = max(SIZES) + 8
KILL_SHARE: Final = 0.1
"""Rounds that end with the death of the daemon."""


@dataclass
class Clients(Load):
    """Clients that remember what went well."""

    done: list[Done] = field(default_factory=list)
    plant: Plant = field(default_factory=Plant)
    kills: Callable[[], int] = lambda: 0
    ways: dict[int, int] = field(default_factory=dict)
    """The port of the rule of each connection."""
    why: Counter[str] = field(default_factory=Counter)
    """For which reasons connections broke: `ConnectionAbortedError` is a reset by the client itself."""

    async def client(self, address: tuple[str, int]) -> None:
        """One connection; what its closing line has to say is kept if it ended well."""
        key, kills = next(self._keys), self.kills()
        self.ways[key] = address[1]
        try:
            peer = await asyncio.wait_for(dial(self.plant.way(address)), CLIENT_S)
        except OSError as error:
            self._broke(error)
            if isinstance(error, ConnectionRefusedError) and kills == self.kills():
                self.faults.append(f"connection {key} was refused")
            return
        port = peer.sock.getsockname()[1]
        try:
            await asyncio.wait_for(self._talk(peer, key), CLIENT_S)
            up, down = (random.Random(4 * key + way).choice(SIZES) for way in (True, False))
            if kills != self.kills():
                self._broke(None)
            else:
                self.done.append(Done(port, up + 8, down))
                self.ended += 1
        except ConnectionError as error:
            self._broke(error)
        except TimeoutError as error:
            self._broke(error)
            peer.reset()  # a FIN in the middle would be this client's
        except Mixture:
            pass  # it is in `faults`
        finally:
            peer.close()
            if kills != self.kills():  # the kernel ends the connections of a dead process
                self.faults[:] = [each for each in self.faults if not each.startswith(f"connection {key}, down: a FIN")]

    def _broke(self, error: OSError | None) -> None:
        self.broken += 1
        self.why["a process died" if error is None else type(error).__name__] += 1

    async def _talk(self, peer: Peer, key: int) -> None:
        await peer.send(key.to_bytes(8, "big"))
        await talk(self, peer, key, up=True)


class Driver:
    """One run on a stage. `events` says what happened, for whoever looks for the reason of a broken invariant."""

    def __init__(self, stage: Stage, seed: int, plant: Plant, only: Sequence[str] = ()) -> None:
        self.stage = stage
        self.choice = random.Random(seed)
        self.load = Clients(self.choice, plant=plant, kills=stage.deaths)
        self.events: list[str] = []
        self.rounds = 0
        self._kinds = [name for name in kinds(stage) if not only or name in only]
        self.sessions = 0
        self._asked: dict[int, set[bytes]] = defaultdict(set)
        """What was sent from each port over UDP."""
        self._before = Holdings(0, 0, 0, 0)
        self._uncounted = 0, 0
        """Bytes of sessions that an upgrade left to the old process: they are in the log, not in the counters."""

    async def run(self, seconds: float, round_s: float = ROUND_S) -> None:
        """Rounds for this time, at least one. Raises `Broken`."""
        end = time.monotonic() + seconds
        await self._round(0.3, ())  # what is made once is made
        await self._quiet()
        self._before = holdings(self.stage.daemon.pid)
        while not self.rounds or time.monotonic() < end:
            # What is planted has to be found for itself.
            planted = bool(self.load.plant.name)
            names = () if planted else self.choice.sample(self._kinds, min(len(self._kinds), self.choice.randint(1, 3)))
            kills = not planted and self.choice.random() < KILL_SHARE
            killing = self._kill(round_s * self.choice.random()) if kills else None
            sure, deaths, troubles = len(self.load.done), self.stage.kills, self.stage.troubles
            await self._round(round_s, names, killing)
            if killing is None:
                if deaths != self.stage.kills:
                    # A client that has sent everything and read everything has ended; the server that died had not.
                    del self.load.done[sure:]
                await self._quiet()
                if troubles != self.stage.troubles:
                    self.load.done[sure:] = [replace(each, whole=False) for each in self.load.done[sure:]]
                await self._check()
            else:
                await self._begin_anew()
            self.rounds += 1

    async def _round(
        self, seconds: float, names: Sequence[str], killing: Coroutine[None, None, None] | None = None
    ) -> None:
        self.events.append(f"round {self.rounds}: {', '.join(names)}")
        end = time.monotonic() + seconds
        work = [self._clients(port, end) for port in RULES for _ in range(CLIENTS // len(RULES))]
        faults = [self._fault(name, end) for name in names]
        await asyncio.gather(*work, self._datagrams(end), *faults, *([killing] if killing is not None else []))

    async def _clients(self, port: int, end: float) -> None:
        while time.monotonic() < end:
            await self.load.client(("127.0.0.1", port))

    async def _datagrams(self, end: float) -> None:
        """Datagrams may be lost; one of another client must not come.

        A client is an address and a port. The kernel gives a port of a socket that was closed to the next one at once
        (net/ipv4/udp.c, udp_lib_get_port, looks for sockets that are open, and UDP has no TIME_WAIT): an answer that is
        late comes to the new owner. So what comes must have been sent from this port, and come from oinetd.
        """
        oinetd = ("127.0.0.1", DATAGRAMS)
        while time.monotonic() < end:
            with Party() as party:
                data = self.choice.randbytes(self.choice.randint(1, 1400))
                port = party.address[1]
                self._asked[port].add(data)
                with contextlib.suppress(OSError):
                    party.send(data, oinetd)
                    await asyncio.sleep(0.02)
                    while True:  # until nothing is left
                        answer, sender = party.sock.recvfrom(65536)
                        if sender == oinetd and answer not in self._asked[port]:
                            owners = [each for each, sent in self._asked.items() if answer in sent]
                            raise Broken(f"a datagram of another client: {len(answer)} bytes to {port}, of {owners}")

    async def _fault(self, name: str, end: float) -> None:
        while (left := end - time.monotonic()) > 0.1:
            await asyncio.sleep(self.choice.random() * left / 2)
            async with KINDS[name](self.stage, self.choice):
                self.events.append(f"  {name}")
                await asyncio.sleep(min(self.choice.random() * left, 1.5))

    async def _kill(self, after_s: float) -> None:
        """The daemon dies in the middle of everything; what its log says until then is true, and it starts again."""
        await asyncio.sleep(after_s)
        self.events.append("  oinetd is killed")
        check_log(self._lines(), (), whole=False)
        number = self.choice.choice((signal.SIGKILL, signal.SIGTERM))
        await asyncio.to_thread(self.stage.restart_daemon, number)

    async def _begin_anew(self) -> None:
        """After a kill: what belongs to the old process is forgotten; a byte of another connection is not."""
        found = self.stage.found.read_text().splitlines() if self.stage.found.exists() else []
        if wrong := [each for each in (*self.load.faults, *found) if "a FIN after" not in each]:
            raise Broken(f"bytes: {wrong[:3]}")
        self.load.faults.clear()
        self.stage.found.unlink(missing_ok=True)
        await asyncio.to_thread(self.stage.restart_daemon, signal.SIGTERM)
        self.load.done.clear()
        self._uncounted = 0, 0
        await self._round(0.3, ())
        await self._quiet()
        self._before = holdings(self.stage.daemon.pid)

    async def _quiet(self) -> None:
        """Wait until no session is left, and no process that was replaced."""
        end = time.monotonic() + QUIET_S
        while any(process.poll() is None for process in self.stage.old):
            if time.monotonic() > end:
                raise Broken("a process that was replaced does not end")
            await asyncio.sleep(0.05)
        if codes := [process.returncode for process in self.stage.old if process.returncode]:
            raise Broken(f"a process that was replaced ended with {codes}")
        self.stage.old.clear()
        while True:
            found = await asyncio.to_thread(self.stage.status)
            if not found["live"]:
                return
            if time.monotonic() > end:
                raise Broken(f"{found['live']} sessions do not end")
            await asyncio.sleep(0.1)

    async def _check(self) -> None:
        """All invariants. Raises `Broken`."""
        if self.stage.daemon.poll() is not None:
            raise Broken(f"oinetd ended with {self.stage.daemon.returncode}")
        self._compare()
        await self._quiet()
        self._compare()
        status = await asyncio.to_thread(self.stage.status)
        end = time.monotonic() + QUIET_S
        while True:  # the log is written a little later, and again when the disk has room
            try:
                sessions, ups, downs = check_log(self.load.plant.log(self._lines()), self.load.done, whole=True)
                break
            except Broken:
                if time.monotonic() > end or self.load.plant.name:
                    raise
                await asyncio.sleep(0.2)
        self._count(ups - status["bytes_up"], downs - status["bytes_down"])
        self.sessions = sessions
        await self._given_back()
        check_said(self.stage.said.read_text(errors="replace"))

    async def _given_back(self) -> None:
        """Nothing is held any more; the resolver may still wait for a name server. Raises `Broken`."""
        end = time.monotonic() + (0 if self.load.plant.name else RESOLVER_S)
        while True:
            try:
                return check_holdings(self._before, holdings(self.stage.daemon.pid))
            except Broken:
                if time.monotonic() > end:
                    raise
            await asyncio.sleep(0.2)

    def _count(self, up: int, down: int) -> None:
        """The log has so many more bytes than the counters. Raises `Broken`."""
        more = up - self._uncounted[0], down - self._uncounted[1]
        if not all(0 <= each <= self.stage.stayed * SESSION_BYTES_MAX for each in more):
            raise Broken(f"the log has {more} bytes more than the counters; {self.stage.stayed} sessions were left")
        self._uncounted, self.stage.stayed = (up, down), 0

    def _compare(self) -> None:
        """No stream was wrong, for clients and servers. Raises `Broken`."""
        found = [*self.load.faults, *(self.stage.found.read_text().splitlines() if self.stage.found.exists() else ())]
        if found:
            ways = {
                key: self.load.ways.get(key)
                for line in found
                for key in map(int, re.findall(r"connection (\d+)", line))
            }
            raise Broken(f"bytes: {found[:3]}, by way of {ways}")

    def _lines(self) -> list[str]:
        text = self.stage.log.read_text(errors="replace") if self.stage.log.exists() else ""
        return text.splitlines() if text.endswith("\n") else text.splitlines()[:-1]
