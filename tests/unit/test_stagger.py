"""Several addresses of one destination, in both lanes: a second one is tried beside a silent first one, the first that
takes the connection is used, and nothing is left of the others."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import random
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import oinetd.net.resolver
from oinetd import Ending, Forwarder, SessionRecord, Settings
from oinetd.core.record import Try
from oinetd.net.sockets import Address, lookup
from tests.forwarding import Seen, bound, exchange, forwarding, rule
from tests.peers import dial, echo, free_range, server, until

SYN_SENT = "02"
BOTH_SHORT = "connect-timeout=0.4"
"""Long enough for every address to be tried, short enough to be waited for."""


@dataclass
class Network:
    """Addresses of this machine that share a port: some take connections, some refuse, some are silent."""

    port: int
    names: dict[str, tuple[Address, ...]] = field(default_factory=dict)
    _silent: set[str] = field(default_factory=set)
    _fillers: set[int] = field(default_factory=set)

    def host(self, fate: str, nth: int = 1) -> str:
        """An address of this fate: `a`live, `r`efusing or `s`ilent."""
        return f"127.0.{'ars'.index(fate) + 71}.{nth}"

    def name(self, fates: str) -> str:
        """A name with one address of each fate, in this order."""
        name = f"{fates}.name.example"
        places = [self.host(fate, nth) for nth, fate in enumerate(fates, 1)]
        self.names[name] = tuple(Address(socket.AF_INET, (place, 0)) for place in places)
        return name

    def lookup(self, host: str, port: int = 0) -> tuple[Address, ...]:
        """In the place of the resolver's."""
        return tuple(each.at(port) for each in self.names[host]) if host in self.names else lookup(host, port)

    def under_way(self) -> int:
        """How many connects to silent addresses there are, but for those that make them silent."""
        lines = Path("/proc/self/net/tcp").read_text().splitlines()[1:]
        found = [line.split()[1:4] for line in lines]
        wanted = {f"{int.from_bytes(socket.inet_aton(host), 'little'):08X}:{self.port:04X}" for host in self._silent}
        return sum(
            place in wanted and state == SYN_SENT and int(local.partition(":")[2], 16) not in self._fillers
            for local, place, state in found
        )

    @contextlib.contextmanager
    def silence(self, hosts: list[str]) -> Iterator[None]:
        """Let hosts be silent: their queue is full, and the kernel drops who knocks."""
        with contextlib.ExitStack() as held:
            for host in hosts:
                sock = held.enter_context(socket.socket())
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind((host, self.port))
                sock.listen(0)
                for _ in range(4):
                    filler = held.enter_context(socket.socket())
                    filler.setblocking(False)
                    filler.connect_ex((host, self.port))
                    self._fillers.add(filler.getsockname()[1])
            self._silent.update(hosts)
            yield


@pytest.fixture
async def network(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Network]:
    """Three addresses of each fate."""
    network = Network(free_range(1))
    monkeypatch.setattr(oinetd.net.resolver, "lookup", network.lookup)
    async with contextlib.AsyncExitStack() as serving:
        serving.enter_context(network.silence([network.host("s", nth) for nth in (1, 2, 3)]))
        for nth in (1, 2, 3):
            await serving.enter_async_context(server(echo, place=(network.host("a", nth), network.port)))
        yield network
        await until(lambda: network.under_way() == 0, "the end of every connect")


@contextlib.asynccontextmanager
async def served(
    network: Network, fates: str, settings: Settings, options: str = ""
) -> AsyncIterator[tuple[Forwarder, Seen]]:
    """A forwarder to a name with addresses of these fates; what it took of the budget is back at the end."""
    seen = Seen()
    destination = network.name(fates), network.port
    async with forwarding(rule(destination, options=options), settings=settings, seen=seen) as forwarder:
        yield forwarder, seen
        await until(lambda: forwarder._limits.descriptors.budget.used == 0, "the budget to be given back")


def tries(network: Network, *told: tuple[str, int, int]) -> tuple[Try, ...]:
    """Fate and number of an address, and the errno."""
    return tuple(Try(network.host(fate, nth), network.port, code) for fate, nth, code in told)


async def closed(seen: Seen, count: int = 1) -> SessionRecord:
    await until(lambda: len(seen.closed) >= count, "the record")
    return seen.closed[count - 1]


async def test_the_first_is_silent_the_second_serves(network: Network, settings: Settings) -> None:
    async with served(network, "sa", settings) as (forwarder, seen):
        client = await dial(bound(forwarder))
        await client.send(b"early")  # it waits in the kernel
        assert await client.read(5) == b"early"
        (live,) = forwarder.sessions()
        assert live.tries == tries(network, ("s", 1, errno.EINPROGRESS))
        assert network.under_way() == 0
        assert await exchange(client, b"x" * 100_000)
        client.half_close()
        assert await client.read_all() == b""
        record = await closed(seen)
        assert (record.ending, record.upstream) == (Ending.CLIENT_CLOSED, network.host("a", 2))
        assert record.tries == tries(network, ("s", 1, errno.EINPROGRESS))
        client.close()


async def test_the_first_refuses_the_second_serves(network: Network, settings: Settings) -> None:
    async with served(network, "ra", settings) as (forwarder, seen):
        client = await dial(bound(forwarder))
        assert await exchange(client)
        client.close()
        record = await closed(seen)
        assert (record.ending, record.upstream) == (Ending.CLIENT_CLOSED, network.host("a", 2))
        assert record.tries == tries(network, ("r", 1, errno.ECONNREFUSED))


async def test_the_first_serves_and_no_other_is_tried(network: Network, settings: Settings) -> None:
    async with served(network, "as", settings) as (forwarder, seen):
        client = await dial(bound(forwarder))
        assert await exchange(client)
        client.close()
        assert (await closed(seen)).tries == ()


async def test_nobody_answers(network: Network, settings: Settings) -> None:
    async with served(network, "sss", settings, BOTH_SHORT) as (forwarder, seen):
        client = await dial(bound(forwarder))
        await client.read_to_reset()
        record = await closed(seen)
        assert (record.ending, record.errno, record.upstream) == (Ending.CONNECT_TIMEOUT, errno.ETIMEDOUT, "")
        assert record.tries == tries(network, *(("s", nth, errno.ETIMEDOUT) for nth in (1, 2, 3)))
        client.close()


async def test_one_that_fails_beside_a_silent_one_is_followed_by_the_next(network: Network, settings: Settings) -> None:
    async with served(network, "sra", settings) as (forwarder, seen):
        client = await dial(bound(forwarder))
        assert await exchange(client)
        client.close()
        record = await closed(seen)
        assert record.upstream == network.host("a", 3)
        assert record.tries == tries(network, ("s", 1, errno.EINPROGRESS), ("r", 2, errno.ECONNREFUSED))


async def test_the_client_gives_up(network: Network, settings: Settings) -> None:
    async with served(network, "ss", settings, "connect-timeout=0") as (forwarder, seen):
        client = await dial(bound(forwarder))
        await until(lambda: network.under_way() == 2, "two connects")
        assert forwarder._limits.descriptors.budget.used == 3
        client.half_close()  # that is legal
        assert network.under_way() == 2
        client.reset()
        record = await closed(seen)
        assert record.ending is Ending.CLIENT_RESET
        assert record.tries == tries(network, ("s", 1, errno.EINPROGRESS), ("s", 2, errno.EINPROGRESS))
        assert network.under_way() == 0


async def test_killed(network: Network, settings: Settings) -> None:
    async with served(network, "ss", settings, "connect-timeout=0") as (forwarder, seen):
        client = await dial(bound(forwarder))
        await until(lambda: network.under_way() == 2, "two connects")
        assert forwarder.kill(forwarder.sessions()[0].id)
        await client.read_to_reset()
        record = await closed(seen)
        assert record.ending is Ending.ABORTED
        assert record.tries == tries(network, ("s", 1, errno.EINPROGRESS), ("s", 2, errno.EINPROGRESS))
        client.close()


async def test_stopped(network: Network, settings: Settings) -> None:
    async with served(network, "ss", settings, "connect-timeout=0") as (forwarder, seen):
        clients = [await dial(bound(forwarder)) for _ in range(5)]
        await until(lambda: network.under_way() == 10, "two connects for each")
        await forwarder.stop()
        assert [record.ending for record in seen.closed] == [Ending.ABORTED] * 5
        assert {len(record.tries) for record in seen.closed} == {2}
        assert network.under_way() == 0
        for client in clients:
            await client.read_to_reset()
            client.close()


async def test_without_a_descriptor_no_other_is_tried_beside(network: Network, settings: Settings) -> None:
    async with served(network, "sa", settings, BOTH_SHORT) as (forwarder, seen):
        forwarder._limits.descriptors.budget.total = 4
        client = await dial(bound(forwarder))
        await client.read_to_reset()
        record = await closed(seen)
        assert record.ending is Ending.CONNECT_TIMEOUT
        assert record.tries == tries(network, ("s", 1, errno.ETIMEDOUT))
        client.close()
        # The next client has the other address: the first one counts as failed.
        client = await dial(bound(forwarder))
        assert await exchange(client)
        client.close()
        assert (await closed(seen, 2)).tries == ()


async def test_a_descriptor_that_comes_back_is_used(network: Network, settings: Settings) -> None:
    async with served(network, "sa", settings, "connect-timeout=0") as (forwarder, _):
        budget = forwarder._limits.descriptors.budget
        budget.total = 4
        client = await dial(bound(forwarder))
        await until(lambda: network.under_way() == 1, "the first connect")
        budget.total = 5
        assert await exchange(client)
        client.close()


async def test_every_order_of_fates(network: Network, settings: Settings) -> None:
    """Served where one of them is alive; else by the failure that took longest."""
    seen = Seen()
    cases = ["".join(fates) for count in (1, 2, 3) for fates in itertools.product("ars", repeat=count)]
    rules = [rule((network.name(fates), network.port), options="connect-timeout=2") for fates in cases]
    async with forwarding(*rules, settings=settings, seen=seen) as forwarder:

        async def one(nth: int, fates: str) -> None:
            try:
                client = await dial(bound(forwarder, nth))
            except ConnectionResetError:  # it may come as early
                assert "a" not in fates
                return
            if "a" in fates:
                assert await exchange(client), fates
            else:
                await client.read_to_reset()
            client.close()

        await asyncio.gather(*(one(nth, fates) for nth, fates in enumerate(cases)))
        await until(lambda: len(seen.closed) == len(cases))
        assert forwarder._limits.descriptors.budget.used == 0
    for record in seen.closed:
        fates = record.route.connect.address.partition(".")[0]
        if "a" in fates:
            assert record.ending is Ending.CLIENT_CLOSED or record.ending is Ending.CLIENT_RESET, fates
            assert record.upstream == network.host("a", fates.index("a") + 1)
            fates, silent = fates[: fates.index("a")], errno.EINPROGRESS
        else:
            silent = errno.ETIMEDOUT
            expected = Ending.CONNECT_TIMEOUT if "s" in fates else Ending.CONNECT_FAILED
            assert (record.ending, record.upstream) == (expected, ""), fates
        told = ((fate, nth, silent if fate == "s" else errno.ECONNREFUSED) for nth, fate in enumerate(fates, 1))
        assert record.tries == tries(network, *told)


async def test_many_that_come_and_go(network: Network, settings: Settings) -> None:
    """Each is served or gone, whatever others do meanwhile, and nothing is left."""
    chance = random.Random(17)
    seen = Seen()
    rules = [rule((network.name(fates), network.port)) for fates in ("ssa", "sra", "rsa", "sas")]
    async with forwarding(*rules, settings=settings, seen=seen) as forwarder:

        async def one(number: int, stays: bool) -> None:
            client = await dial(bound(forwarder, number % len(rules)))
            message = str(number).encode() * 100
            await client.send(message)
            if stays:
                assert await client.read(len(message)) == message
                client.close()
            else:
                client.reset()

        await asyncio.gather(*(one(number, chance.random() < 0.6) for number in range(200)))
        await until(lambda: len(seen.closed) == 200)
        assert forwarder._limits.descriptors.budget.used == 0
