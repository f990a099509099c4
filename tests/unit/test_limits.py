"""Limits of a source and of a rule, in both lanes."""

from __future__ import annotations

import pytest

from oinetd import Config, Rule, Settings, SourcePrefix
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
        one = Rule.parse(f"127.0.0.1 0/udp 127.0.0.1 {upstream.address[1]}/udp {options}")
        seen = Seen()
        async with forwarding(one, seen=seen, settings=settings, source_prefix=SourcePrefix(24, 64)) as forwarder:
            parties = [Party(source) for source in SOURCES]
            for number, party in enumerate(parties):
                party.send(b"x", bound(forwarder))
                await until(lambda due=number + 1: len(seen.opened) + forwarder.stats().refused == due)
            assert len(seen.opened) == 2
            for party in parties:
                party.close()
