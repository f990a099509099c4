"""A run: rounds of load under faults, each followed by quiet in which the invariants are checked."""

from __future__ import annotations

import asyncio
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from oinetd.admin.client import NoInstance
from tests.faults.clients import Clients, Datagrams
from tests.faults.invariants import (
    Broken,
    Holdings,
    check_holdings,
    check_idle,
    check_log,
    check_said,
    holdings,
    port_of,
)
from tests.faults.kinds import KINDS, kinds
from tests.faults.plants import Plant
from tests.faults.stage import Stage
from tests.faults.ways import DATAGRAM_WAYS, PLAIN_WAYS, WAYS, Way
from tests.soak.keyed import SIZES

__all__ = ["Driver"]

CLIENTS_OF_A_WAY: Final = 2
ROUND_S: Final = 3.0
QUIET_S: Final = 60.0
PLANTED_S: Final = 3.0
"""How long the last sessions may take: TCP sends again after a loss, names are asked again."""
RESOLVER_S: Final = 15.0
LOG_BYTES_MAX: Final = 16 << 20
"""Of a log, whose file system is small, and which is read after each round."""
SESSION_BYTES_MAX: Final = max(SIZES) + 8
KILL_SHARE: Final = 0.1
"""Rounds that end with the death of the daemon."""


class Driver:
    """One run on a stage. `events` says what happened, for whoever looks for the reason of a broken invariant."""

    def __init__(self, stage: Stage, seed: int, plant: Plant, only: Sequence[str] = ()) -> None:
        self.stage = stage
        self.choice = random.Random(seed)
        self.load = Clients(self.choice, plant=plant, kills=stage.deaths)
        self.events: list[str] = []
        self.rounds = 0
        self._kinds = [name for name in kinds(stage) if not only or name in only]
        self.datagrams = Datagrams(self.choice, plant)
        self._before = Holdings(0, 0, 0, 0)
        self._uncounted: tuple[Counter[int], Counter[int]] = Counter(), Counter()
        """Bytes of sessions that an upgrade left to the old process: they are in the log, not in the counters."""
        self._put_away: tuple[Counter[int], Counter[int]] = Counter(), Counter()
        """Bytes of logs that are not looked at any more."""
        self.moved = 0
        """Connections that have changed their reactor, at least."""

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
        ways = PLAIN_WAYS if self.load.plant.relays else WAYS
        work = [self._clients(way, end) for way in ways for _ in range(CLIENTS_OF_A_WAY)]
        work += [self.datagrams.come(way, end) for way in DATAGRAM_WAYS]
        faults = [self._fault(name, end) for name in names]
        await asyncio.gather(*work, *faults, *([killing] if killing is not None else []))

    async def _clients(self, way: Way, end: float) -> None:
        address = way.address
        if isinstance(address, str):
            address = address.format(apart=self.stage.folder / "apart")
        while time.monotonic() < end:
            await self.load.come(way, address)

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
        self._uncounted = Counter(), Counter()
        self._put_away = Counter(), Counter()
        self.datagrams.forget()
        await self._round(0.3, ())
        await self._quiet()
        self._before = holdings(self.stage.daemon.pid)

    async def _quiet(self) -> None:
        """Wait until no session is left, and no process that was replaced."""
        end = time.monotonic() + (PLANTED_S if self.load.plant.name == "lasting-session" else QUIET_S)
        while any(process.poll() is None for process in self.stage.old):
            if time.monotonic() > end:
                raise Broken("a process that was replaced does not end")
            await asyncio.sleep(0.05)
        if codes := [process.returncode for process in self.stage.old if process.returncode]:
            raise Broken(f"a process that was replaced ended with {codes}")
        self.stage.old.clear()
        while True:
            try:
                found = self.load.plant.status(await asyncio.to_thread(self.stage.status))
            except NoInstance:
                if (code := self.stage.daemon.poll()) is not None:
                    raise Broken(f"oinetd ended with {code}") from None
                raise
            if not found["live"]:
                self.moved += sum(each["moved"] for each in found["reactors"])
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
        status = self.load.plant.status(await asyncio.to_thread(self.stage.status))
        rules = self.load.plant.rules(await asyncio.to_thread(self.stage.rules))
        check_idle([*rules, *await asyncio.to_thread(self.stage.servers)])
        end = time.monotonic() + (PLANTED_S if self.load.plant.name else QUIET_S)
        while True:  # the log is written a little later, and again when the disk has room
            try:
                _, ups, downs = check_log(self.load.plant.log(self._lines()), self.load.done, whole=True)
                break
            except Broken:
                if time.monotonic() > end:
                    raise
                await asyncio.sleep(0.2)
        ups, downs = ups + self._put_away[0], downs + self._put_away[1]
        self._count(ups, downs, rules)
        for name, logged in (("bytes_up", ups), ("bytes_down", downs)):
            if status[name] != (counted := sum(rule[name] for rule in rules)):
                raise Broken(f"{name} of all is {status[name]}, of the rules {counted}; of the log {logged.total()}")
        self.datagrams.check(ups, downs, DATAGRAM_WAYS[0].port)
        if self.stage.log.stat().st_size > LOG_BYTES_MAX:
            await asyncio.to_thread(self.stage.begin_log)
            self._put_away = ups, downs
            self.load.done.clear()
        await self._given_back()
        check_said(self.load.plant.said(self.stage.said.read_text(errors="replace")))

    async def _given_back(self) -> None:
        """Nothing is held any more; the resolver may still wait for a name server. Raises `Broken`."""
        end = time.monotonic() + (PLANTED_S if self.load.plant.name else RESOLVER_S)
        while True:
            try:
                return check_holdings(self._before, holdings(self.stage.daemon.pid))
            except Broken:
                if time.monotonic() > end:
                    raise
            await asyncio.sleep(0.2)

    def _count(self, ups: Counter[int], downs: Counter[int], rules: Sequence[Mapping[str, Any]]) -> None:
        """The log and the counters of each port agree, but for sessions that stayed behind. Raises `Broken`."""
        most = self.stage.stayed * SESSION_BYTES_MAX
        for name, logged, uncounted in (("up", ups, self._uncounted[0]), ("down", downs, self._uncounted[1])):
            more = Counter(logged)
            for rule in rules:
                more[port_of(rule["bind"])] -= rule[f"bytes_{name}"]
            for port, count in more.items():
                if not 0 <= count - uncounted[port] <= most:
                    told = f"the log of port {port} has {count} bytes {name} more than the counters"
                    raise Broken(f"{told}, and {uncounted[port]} before; {self.stage.stayed} sessions were left")
                uncounted[port] = count
        self.stage.stayed = 0

    def _compare(self) -> None:
        """No stream was wrong, for clients and servers. Raises `Broken`."""
        found = [*self.load.faults, *(self.stage.found.read_text().splitlines() if self.stage.found.exists() else ())]
        if found := [line for line in found if not self.load.is_no_fault(line)]:
            found.sort(key=lambda line: "a FIN after" in line)  # which often follows from the others
            keys = {int(key) for line in found for key in re.findall(r"connection (\d+)", line)}
            ways = {key: self.load.ways[key].name for key in keys if key in self.load.ways}
            raise Broken(f"bytes: {found[:3]}, by way of {ways}")

    def _lines(self) -> list[str]:
        text = self.stage.log.read_text(errors="replace") if self.stage.log.exists() else ""
        return text.splitlines() if text.endswith("\n") else text.splitlines()[:-1]
