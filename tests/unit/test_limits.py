"""Limits of a source and of a rule, in both lanes."""

from __future__ import annotations

import logging

import pytest

import oinetd.core.capacity
from oinetd import Config, Settings, SourcePrefix
from oinetd.config import parse_rule
from tests.forwarding import Seen, bound, exchange, forwarding, rule
from tests.peers import Peer, dial, until
from tests.udp.rig import Party
from tests.udp.rig import echo as udp_echo

SOURCES = [f"127.0.0.{number}" for number in range(1, 6)]


async def served(address: tuple[str, int]) -> tuple[list[bool], list[Peer]]:
    """Who of one client from each source is served, one after the other."""
    clients = [await dial(address, source=source) for source in SOURCES]
    return [await exchange(client) for client in clients], clients


@pytest.mark.parametrize("options", ["", "max-connections-per-source=2"])
@pytest.mark.parametrize(("prefix", "admitted"), [(32, 5), (24, 2)])
async def test_a_source_is_a_network(
    upstream: tuple[str, int], settings: Settings, prefix: int, admitted: int, options: str
) -> None:
    seen = Seen()
    config = {
        "settings": settings,
        "source_prefix": SourcePrefix(prefix, 64),
        "max_connections_per_source": 0 if options else 2,
    }
    async with forwarding(rule(upstream, options=options), seen=seen, **config) as forwarder:
        answers, clients = await served(bound(forwarder))
        assert answers == [True] * admitted + [False] * (5 - admitted)
        for client in clients:
            client.close()
        await until(lambda: len(seen.closed) == 5)
        again, clients = await served(bound(forwarder))  # who left is no longer counted
        assert again == answers
        for client in clients:
            client.close()


async def test_who_was_counted_with_another_prefix_leaves_the_table_as_it_was(
    upstream: tuple[str, int], settings: Settings
) -> None:
    seen = Seen()
    config = {"settings": settings, "max_connections_per_source": 2}
    async with forwarding(rule(upstream), seen=seen, **config) as forwarder:
        _, clients = await served(bound(forwarder))
        rules = forwarder.config.rules
        await forwarder.reload(Config(rules=rules, source_prefix=SourcePrefix(24, 64), **config))
        for client in clients:
            client.close()
        await until(lambda: len(seen.closed) == 5)
        answers, clients = await served(bound(forwarder))
        assert answers == [True, True, False, False, False]
        for client in clients:
            client.close()


async def test_udp_sessions_of_a_network_are_those_of_one_source(settings: Settings) -> None:
    with udp_echo() as upstream:
        options = "[max-connections-per-source=2]"
        one = parse_rule(f"127.0.0.1 0/udp 127.0.0.1 {upstream.address[1]}/udp {options}")
        seen = Seen()
        async with forwarding(one, seen=seen, settings=settings, source_prefix=SourcePrefix(24, 64)) as forwarder:
            parties = [Party(source) for source in SOURCES]
            for number, party in enumerate(parties):
                party.send(b"x", bound(forwarder))
                await until(lambda due=number + 1: len(seen.opened) + forwarder.stats().refused == due)
            assert len(seen.opened) == 2
            for party in parties:
                party.close()


async def test_a_full_rule_is_told_once_and_so_is_its_end(
    upstream: tuple[str, int], settings: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oinetd.core.capacity, "CALM_S", 0.2)
    monkeypatch.setattr(oinetd.core.capacity, "LOOK_S", 0.02)
    caplog.set_level(logging.INFO, "oinetd")
    one = rule(upstream, options="max-connections=2")

    def said(what: str) -> list[str]:
        return [message for message in caplog.messages if what in message]

    async with forwarding(one, settings=settings) as forwarder:
        clients = [await dial(bound(forwarder))]
        assert await exchange(clients[0])
        assert not forwarder.stats().rules[one].full
        clients.append(await dial(bound(forwarder)))
        assert await exchange(clients[1])
        for _ in range(5):  # each gets the place of one before, and finds it full again
            late = await dial(bound(forwarder))
            await late.send(b"later")
            await until(lambda: forwarder.stats().rules[one].full)
            clients.pop(0).close()
            assert await late.read(5) == b"later"
            clients.append(late)
        assert said(": full (") == ["rule 127.0.0.1:0: full (2 of 2), clients wait in the accept queue"]
        assert not said("room again")
        for client in clients:
            client.close()
        await until(lambda: bool(said("rule 127.0.0.1:0: room again")))
        counts = forwarder.stats().rules[one]
        assert (counts.full, counts.times_full) == (False, 1)
        again = [await dial(bound(forwarder)) for _ in range(3)]
        await until(lambda: len(said(": full (")) == 2)
        assert forwarder.stats().rules[one].times_full == 2
        for client in again:
            client.close()


async def test_udp_sessions_and_connections_share_the_descriptors(
    settings: Settings, upstream: tuple[str, int]
) -> None:
    """UDP has at most half of them, and then the one that was silent for longest goes."""
    with udp_echo() as datagrams:
        rules = (rule(upstream), parse_rule(f"127.0.0.1 0/udp 127.0.0.1 {datagrams.address[1]}/udp"))
        async with forwarding(*rules, settings=settings) as forwarder:
            tcp, udp = bound(forwarder, 0), bound(forwarder, 1)
            budget = forwarder._limits.descriptors.budget
            budget.total = 12
            forwarder._lanes.limit_datagrams(6)
            parties = [Party() for _ in range(9)]
            for party in parties:
                assert await party.ask(b"x", udp) == b"x"
            assert forwarder.stats().live == 6
            clients = [await dial(tcp) for _ in range(4)]
            assert [await exchange(client) for client in clients[:3]] == [True] * 3
            assert budget.used == 12
            await clients[3].send(b"later")
            for record in forwarder.sessions():
                if record.route.bind.protocol is rules[1].bind.protocol:
                    forwarder.kill(record.id)
            assert await clients[3].read(5) == b"later"
            for party in parties:
                party.close()
            for client in clients:
                client.close()
            await until(lambda: budget.used == 0)
