"""No byte of one connection reaches another one, whatever stalls, resets and half-closes happen around it."""

from __future__ import annotations

import asyncio

import pytest

from oinetd import Forwarder, parse_config
from tests.peers import server, until
from tests.soak.effort import TIMEOUT_S, Effort
from tests.soak.keyed import Load, Mixture, Pattern
from tests.udp.rig import Party, echo

CLIENTS = 40
"""At one moment, for each rule."""

RULES = ("relay=auto", "relay=copy", "relay=splice", "engine=python")
"""Of one process, so that buffers and pipes are handed from one to the other."""


def test_the_driver_sees_a_byte_that_is_not_its_own() -> None:
    ours, theirs = Pattern(1, True), Pattern(2, True)
    ours.check(Pattern(1, True).take(5000))
    with pytest.raises(Mixture, match="the first wrong one is at 50"):
        ours.check(Pattern(1, True).take(0) + theirs.take(3000))


@pytest.mark.timeout(TIMEOUT_S)
async def test_keyed_streams_stay_apart() -> None:
    effort = Effort()
    load = Load(effort.random)

    async def clients(address: tuple[str, int]) -> None:
        while effort.left and not load.faults:
            await load.client(address)

    async with server(load.serve) as upstream:
        text = "threads 2\npipesize 16K\nbuffersize 8K\n"
        text += "".join(f"127.0.0.1 0 {upstream[0]} {upstream[1]} [{options}]\n" for options in RULES)
        async with Forwarder(parse_config(text)) as forwarder:
            addresses = [(host, port) for _, host, port in forwarder.addresses]
            await asyncio.gather(*(clients(address) for address in addresses for _ in range(CLIENTS)))
            await until(lambda: not forwarder.sessions(), "the end of all sessions")
            stats = forwarder.stats()
    print(f"{load.ended} connections ended, {load.broken} were reset, {load.checked} bytes checked")
    assert not load.faults
    assert load.ended > CLIENTS
    assert load.broken > 0
    assert stats.accepted == sum(count for rule in stats.rules.values() for count in rule.endings.values())


@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.parametrize("engine", ["native", "python"])
async def test_keyed_datagrams_stay_apart(engine: str) -> None:
    effort = Effort()
    with echo() as upstream:
        text = f"engine {engine}\n127.0.0.1 0/udp 127.0.0.1 {upstream.address[1]}/udp [timeout=1]\n"
        async with Forwarder(parse_config(text)) as forwarder:
            address = forwarder.addresses[0][1:]
            questions = 0
            while effort.left:
                parties = [Party() for _ in range(50)]
                try:
                    for turn in range(30):  # each party is a session, and ports for them are finite
                        sent = [effort.random.randbytes(effort.random.randint(0, 1400)) for _ in parties]
                        for party, data in zip(parties, sent, strict=True):
                            party.send(data, address)
                        answers = await asyncio.gather(*(party.receive() for party in parties))
                        assert [data for data, _ in answers] == sent, f"turn {turn}"
                        questions += len(parties)
                finally:
                    for party in parties:
                        party.close()
    print(f"{questions} datagrams came back to their own sender")
