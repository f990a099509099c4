"""A reload and the live connections that its access rules refuse, in both lanes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging

import pytest

from oinetd import AccessRule, Config, Ending, Forwarder, OnDeny, Rule, Settings, Verb
from tests.forwarding import Seen, bound, exchange, forwarding, rule
from tests.peers import dial, free_port, until

DENY = (AccessRule(Verb.DENY, "127.0.0.2"),)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [message for message in caplog.messages if "now refuse" in message]


async def reload(forwarder: Forwarder, *rules: Rule, access: tuple[AccessRule, ...] = ()) -> None:
    await forwarder.reload(dataclasses.replace(forwarder.config, rules=rules, access=access))


@pytest.mark.parametrize("of_rule", [True, False])
@pytest.mark.parametrize("hooked", [True, False])
async def test_connections_go_on_and_are_counted(
    upstream: tuple[str, int], settings: Settings, caplog: pytest.LogCaptureFixture, of_rule: bool, hooked: bool
) -> None:
    caplog.set_level(logging.INFO, "oinetd")
    one = rule(upstream, bind=f"127.0.0.1 {free_port()}")

    async def admit(_: object) -> bool:
        return True

    async with forwarding(one, settings=settings, admit=admit if hooked else None) as forwarder:
        kept, refused = await dial(bound(forwarder)), [await dial(bound(forwarder), source="127.0.0.2") for _ in "ab"]
        assert [await exchange(peer) for peer in (kept, *refused)] == [True] * 3
        changed = dataclasses.replace(one, access=DENY) if of_rule else one
        await reload(forwarder, changed, access=() if of_rule else DENY)
        assert [line.partition(": ")[2] for line in said(caplog)] == [
            "live connections that the access rules now refuse: 2, and go on (on-deny=reset would end them)"
        ]
        assert [await exchange(peer) for peer in (kept, *refused)] == [True] * 3
        await reload(forwarder, changed, access=() if of_rule else DENY)
        assert len(said(caplog)) <= 1  # nothing has changed since
        for peer in (kept, *refused):
            peer.close()


@pytest.mark.parametrize("hooked", [True, False])
async def test_on_deny_reset_ends_those_and_no_others(
    upstream: tuple[str, int], settings: Settings, caplog: pytest.LogCaptureFixture, hooked: bool
) -> None:
    caplog.set_level(logging.INFO, "oinetd")
    seen = Seen()
    settings = dataclasses.replace(settings, on_deny=OnDeny.RESET)

    async def admit(_: object) -> bool:
        return True

    rules = (rule(upstream), rule(upstream, options="on-deny=keep"))
    async with forwarding(*rules, seen=seen, settings=settings, admit=admit if hooked else None) as forwarder:
        stays = await dial(bound(forwarder))
        goes = await dial(bound(forwarder), source="127.0.0.2")
        other = await dial(bound(forwarder, 1), source="127.0.0.2")
        assert [await exchange(peer) for peer in (stays, goes, other)] == [True] * 3
        await reload(forwarder, *rules, access=DENY)
        await until(lambda: len(seen.closed) == 1)
        assert seen.closed[0].ending is Ending.REVOKED
        assert seen.closed[0].client == "127.0.0.2"
        assert not await exchange(goes)
        assert [await exchange(peer) for peer in (stays, other)] == [True, True]
        assert sorted(line.partition(": 1, ")[2].split(" (")[0] for line in said(caplog)) == [
            "and go on",
            "and were reset",
        ]
        for peer in (stays, goes, other):
            peer.close()


@pytest.mark.parametrize("hooked", [True, False])
async def test_on_deny_reset_that_comes_later_ends_those_that_went_on(
    upstream: tuple[str, int], settings: Settings, caplog: pytest.LogCaptureFixture, hooked: bool
) -> None:
    """What the message of the first reload advises, done by a second one: the access rules are the same."""
    caplog.set_level(logging.INFO, "oinetd")
    bind = f"127.0.0.1 {free_port()}"
    keeps, resets = rule(upstream, bind=bind), rule(upstream, bind=bind, options="on-deny=reset")

    async def admit(_: object) -> bool:
        return True

    async with forwarding(keeps, settings=settings, admit=admit if hooked else None) as forwarder:
        stays, goes = await dial(bound(forwarder)), await dial(bound(forwarder), source="127.0.0.2")
        assert [await exchange(peer) for peer in (stays, goes)] == [True, True]
        await reload(forwarder, keeps, access=DENY)
        assert [await exchange(peer) for peer in (stays, goes)] == [True, True]
        await reload(forwarder, resets, access=DENY)
        assert not await exchange(goes)
        assert await exchange(stays)
        assert [line.partition(": 1, ")[2] for line in said(caplog)] == [
            "and go on (on-deny=reset would end them)",
            "and were reset",
        ]
        for peer in (stays, goes):
            peer.close()


async def test_a_rule_that_has_gone(upstream: tuple[str, int], settings: Settings) -> None:
    """Its connections live on, and a deny for all reaches them as well."""
    seen = Seen()
    settings = dataclasses.replace(settings, on_deny=OnDeny.RESET)
    async with forwarding(
        rule(upstream), rule(upstream, bind="127.0.0.3 0"), seen=seen, settings=settings
    ) as forwarder:
        goes, stays = await dial(bound(forwarder), source="127.0.0.2"), await dial(bound(forwarder))
        assert [await exchange(goes), await exchange(stays)] == [True, True]
        await reload(forwarder, forwarder.config.rules[1])
        assert [await exchange(goes), await exchange(stays)] == [True, True]
        await reload(forwarder, forwarder.config.rules[0], access=DENY)
        await until(lambda: [record.ending for record in seen.closed] == [Ending.REVOKED])
        assert await exchange(stays)
        for peer in (goes, stays):
            peer.close()


async def test_connections_that_come_and_go_while_rules_change(upstream: tuple[str, int], settings: Settings) -> None:
    """Each connection ends by itself or by the rules, and has its two records."""
    seen = Seen()
    settings = dataclasses.replace(settings, on_deny=OnDeny.RESET)
    over = False
    async with forwarding(rule(upstream), seen=seen, settings=settings) as forwarder:

        async def come_and_go() -> None:
            while not over:
                with contextlib.suppress(ConnectionResetError):  # refused, and heard of it while connecting
                    peer = await dial(bound(forwarder), source="127.0.0.2")
                    await exchange(peer)
                    peer.close()

        crowd = [asyncio.ensure_future(come_and_go()) for _ in range(4)]
        rules = forwarder.config.rules
        for number in range(20):
            await reload(forwarder, *rules, access=DENY if number % 2 else ())
            await until(lambda due=number * 3: len(seen.closed) > due)
        over = True
        await asyncio.gather(*crowd)
        await until(lambda: forwarder.stats().live == 0 and forwarder.stats().accepted == len(seen.closed))
        assert len(seen.opened) == sum(not record.ending.refused for record in seen.closed if record.ending)
    assert Config().settings.on_deny is OnDeny.KEEP
