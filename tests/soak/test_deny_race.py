"""Access rules change under load: when a reload has returned, its rules hold for everybody who comes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import struct

import pytest

from oinetd import Config, Forwarder, parse_config
from tests.peers import dial, echo, server
from tests.soak.effort import TIMEOUT_S, Effort
from tests.udp.rig import Party
from tests.udp.rig import echo as datagram_echo

GOOD, BAD = "127.0.0.1", "127.9.9.9"
CALM = "127.0.0.3"
"""Whose ports nobody else had, so that no late answer is for somebody before."""

CALLERS = 8


class Reloads:
    """Turns the denial on and off; `since` is the number of reloads that have returned, or begun."""

    def __init__(self, forwarder: Forwarder, allowing: Config, denying: Config) -> None:
        self._forwarder = forwarder
        self._configs = (allowing, denying)
        self.begun = self.returned = 0
        """A denial is in force while both are the same odd number."""

    async def turn(self) -> None:
        self.begun += 1
        await self._forwarder.reload(self._configs[self.begun % 2])
        self.returned += 1

    @property
    def state(self) -> int | None:
        """The number of the configuration in force; None while one is being put in force."""
        return self.begun if self.begun == self.returned else None


async def asks(address: tuple[str, int], source: str) -> bool:
    """Whether a new connection from `source` is served."""
    peer = await dial(address, source=source)
    try:
        await peer.send(b"hello")
        return await peer.read(5) == b"hello"
    except ConnectionError:
        return False
    finally:
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()


def configs(text: str) -> tuple[Config, Config]:
    return parse_config(text), parse_config(f"{text}deny 127.8.*\ndeny {BAD}\n")


@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.parametrize("engine", ["native", "python"])
async def test_a_denial_that_has_returned_holds_for_connections(engine: str) -> None:
    effort = Effort()
    counts = {True: 0, False: 0}
    async with server(echo) as upstream:
        text = f"engine {engine}\nthreads 2\n127.0.0.1 0 {upstream[0]} {upstream[1]}\n"
        allowing, denying = configs(text)
        async with Forwarder(allowing) as forwarder:
            reloads = Reloads(forwarder, allowing, denying)
            address = (forwarder.addresses[0].host, forwarder.addresses[0].port)
            done = False

            async def call(source: str) -> None:
                while not done:
                    before = reloads.state
                    served = await asks(address, source)
                    if source == GOOD:
                        assert served
                    # Only who began and ended under one configuration is judged; the others may be on either side.
                    elif before is not None and before == reloads.state:
                        assert served is (before % 2 == 0)
                        counts[served] += 1

            calls = [asyncio.ensure_future(call(source)) for source in (GOOD, BAD) * CALLERS]
            try:
                while effort.left and not any(task.done() for task in calls):
                    await reloads.turn()
                    await asyncio.sleep(effort.random.random() / 50)
            finally:
                done = True
            await asyncio.gather(*calls)
    print(f"{reloads.returned} reloads; {counts[True]} were served, {counts[False]} refused")
    assert min(counts.values()) > 0


@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.parametrize("engine", ["native", "python"])
async def test_a_denial_that_has_returned_holds_for_new_udp_clients(engine: str) -> None:
    """Who is refused hears nothing: a client that is let in asks behind, and when that is answered so is the first."""
    effort = Effort()
    refused = served = 0
    with datagram_echo() as upstream:
        allowing, denying = configs(
            f"engine {engine}\n127.0.0.1 0/udp 127.0.0.1 {upstream.address[1]}/udp [timeout=1]\n"
        )
        async with Forwarder(allowing) as forwarder:
            reloads = Reloads(forwarder, allowing, denying)
            address = forwarder.addresses[0][1:]
            hosts = (f"127.8.{number // 200 % 200}.{1 + number % 200}" for number in itertools.count())
            while effort.left:
                await reloads.turn()
                with contextlib.ExitStack() as stack:
                    # From an address without sessions: those that live are another matter.
                    bad, good = (stack.enter_context(Party(host)) for host in (next(hosts), CALM))
                    racing = [stack.enter_context(Party(host)) for host in (BAD, GOOD) * CALLERS]
                    bad.send(b"bad", address)
                    assert await good.ask(b"good", address) == b"good"
                    assert await good.ask(b"again", address) == b"again"
                    answers = bad.pending()
                    assert answers == ([] if reloads.returned % 2 else [b"bad"])
                    refused, served = refused + (not answers), served + len(answers)
                    for party in racing:  # the reload that follows comes amid them
                        party.send(b"race", address)
    print(f"{reloads.returned} reloads; {served} were served, {refused} refused")
    assert min(served, refused) > 0
