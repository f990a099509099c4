"""Names and their addresses over time: real lookups, of names that this test adds to the resolver."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import AsyncIterator

import pytest

import oinetd.net.resolver
import oinetd.upstream.destination
from oinetd import Config, ConfigError, Rule
from oinetd.config import parse_rule
from oinetd.model import NOWHERE, Endpoint, Origin, RuleOptions
from oinetd.net.sockets import Address, lookup
from oinetd.upstream.destination import FAILURES_BEFORE_LOOKUP, Destination
from oinetd.upstream.destinations import Destinations
from oinetd.upstream.hosts import names_of
from tests.peers import until

V4 = Address(socket.AF_INET, ("192.0.2.1", 0))
OTHER = Address(socket.AF_INET, ("192.0.2.2", 0))


class Resolver:
    """Answers for `name.example`; everything else is looked up for real."""

    def __init__(self) -> None:
        self.answer: tuple[Address, ...] | OSError = (V4,)
        self.asked = 0
        self.threads: set[int] = set()
        self.may_answer = threading.Event()
        self.may_answer.set()

    def __call__(self, host: str, port: int = 0) -> tuple[Address, ...]:
        if host != "name.example":
            return lookup(host, port)
        self.asked += 1
        self.threads.add(threading.get_ident())
        self.may_answer.wait(30)
        if isinstance(self.answer, OSError):
            raise self.answer
        return self.answer


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    resolver = Resolver()
    monkeypatch.setattr(oinetd.net.resolver, "lookup", resolver)
    monkeypatch.setattr(oinetd.upstream.destination, "LOOKUP_PAUSE_S", 0.0)
    return resolver


@pytest.fixture
async def destination(resolver: Resolver) -> AsyncIterator[Destination]:
    destination = Destination("name.example", 0.0)
    await destination.resolve(NOWHERE)
    yield destination
    destination.stop()
    resolver.may_answer.set()


async def test_a_number_asks_nobody() -> None:
    for host, family in (("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6), ("0", socket.AF_INET)):
        destination = Destination(host, 0.01)
        await destination.resolve(NOWHERE)
        destination.start()
        (address,) = destination.at(80)
        assert (address.family, address.port) == (family, 80)
        for _ in range(2 * FAILURES_BEFORE_LOOKUP):
            destination.failed()
        destination.stop()


async def test_the_scope_of_a_number_is_kept() -> None:
    destination = Destination("fe80::1%lo", 0.0)
    await destination.resolve(NOWHERE)
    (address,) = destination.at(80)
    assert address.sockaddr[1:] == (80, 0, socket.if_nametoindex("lo"))


async def test_a_name_is_asked_for_in_a_thread(destination: Destination, resolver: Resolver) -> None:
    assert destination.at(443) == (V4.at(443),)
    assert threading.get_ident() not in resolver.threads


@pytest.mark.parametrize(
    ("host", "hint"),
    [("no-such-name.invalid", "getent"), ("fe80::1%nosuchlink", "ip link"), ("a" * 64 + ".example", "getent")],
)
async def test_what_cannot_be_resolved_is_the_operators_mistake(host: str, hint: str) -> None:
    with pytest.raises(ConfigError, match="cannot resolve") as failure:
        await Destination(host, 0.0).resolve(Origin("some.conf", 7))
    assert (failure.value.problems[0].file, failure.value.line) == ("some.conf", 7)
    assert hint in failure.value.hint


async def test_failures_in_a_row_ask_again(destination: Destination, resolver: Resolver) -> None:
    changes: list[int] = []
    destination.on_change = lambda: changes.append(1)
    resolver.answer = (OTHER,)
    for _ in range(10):  # each success begins the count anew
        for _ in range(FAILURES_BEFORE_LOOKUP - 1):
            destination.failed()
        destination.connected()
    assert resolver.asked == 1
    for _ in range(FAILURES_BEFORE_LOOKUP):
        destination.failed()
    await until(lambda: changes)
    assert destination.at(80) == (OTHER.at(80),)
    assert resolver.asked == 2


async def test_failures_do_not_flood_the_resolver(
    destination: Destination, resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oinetd.upstream.destination, "LOOKUP_PAUSE_S", 3600.0)
    resolver.may_answer.clear()
    destination._looked_up_at = -3600.0
    for _ in range(100):
        destination.failed()
    await until(lambda: resolver.asked == 2)
    resolver.may_answer.set()
    await until(lambda: destination._lookup is None)
    for _ in range(100):
        destination.failed()
    assert destination._lookup is None
    assert resolver.asked == 2


async def test_it_is_refreshed(resolver: Resolver) -> None:
    destination = Destination("name.example", 0.01)
    await destination.resolve(NOWHERE)
    destination.start()
    await until(lambda: resolver.asked >= 3)
    resolver.answer = (OTHER, V4)
    await until(lambda: destination.at(1) == (OTHER.at(1), V4.at(1)))
    destination.stop()


async def test_another_order_is_no_change(destination: Destination, resolver: Resolver) -> None:
    destination._addresses = (V4, OTHER)
    destination.on_change = lambda: pytest.fail("no change")
    resolver.answer = (OTHER, V4)
    destination.look_up_again()
    await until(lambda: destination._lookup is None)
    assert destination.at(1) == (V4.at(1), OTHER.at(1))


async def test_a_resolver_in_trouble_is_told_once(
    destination: Destination, resolver: Resolver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "oinetd")
    resolver.answer = socket.gaierror(socket.EAI_AGAIN, "try again")
    for _ in range(3):
        destination.look_up_again()
        await until(lambda: destination._lookup is None)
    assert destination.at(1) == (V4.at(1),)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    resolver.answer = (V4,)
    destination.look_up_again()
    await until(lambda: destination._lookup is None)
    assert caplog.messages[-1] == "DNS: name.example resolves again"


async def test_after_the_stop_nothing_is_asked(destination: Destination, resolver: Resolver) -> None:
    resolver.may_answer.clear()
    destination.look_up_again()
    await until(lambda: resolver.asked == 2)
    destination.stop()
    resolver.may_answer.set()
    # A session of before a reload still dials, and fails.
    for _ in range(2 * FAILURES_BEFORE_LOOKUP):
        destination.failed()
    assert destination._lookup is None
    assert destination.at(80) == (V4.at(80),)


async def test_each_host_is_asked_for_once(resolver: Resolver) -> None:
    config = Config(
        rules=(
            parse_rule("127.0.0.1 1000-1999 name.example 2000-2999"),
            parse_rule("127.0.0.1 80 name.example 80 [src=127.0.0.5]"),
        )
    )
    destinations = Destinations(config)
    await destinations.resolve()
    assert resolver.asked == 1
    one, two = config.rules
    assert destinations.of(one) is destinations.of(two)
    assert destinations.source_of(one) is None
    source = destinations.source_of(two)
    assert source is not None
    assert [address.host for address in source.at(0)] == ["127.0.0.5"]


async def test_an_empty_source_address_is_none(resolver: Resolver) -> None:
    rule = Rule(Endpoint("127.0.0.1", 80), Endpoint("127.0.0.1", 81), RuleOptions(source=""))
    destinations = Destinations(Config(rules=(rule,)))
    await destinations.resolve()
    assert destinations.source_of(rule) is None
    assert not names_of(Config(rules=(rule,)))


async def test_all_mistakes_are_told_at_once(resolver: Resolver) -> None:
    rules = [f"127.0.0.1 {port} no-{port}.invalid 80 [src=neither-{port}.invalid]" for port in (1, 2)]
    with pytest.raises(ConfigError) as failure:
        await Destinations(Config(rules=tuple(map(parse_rule, rules)))).resolve()
    said = [problem.message for problem in failure.value.problems]
    assert len(said) == 4
    assert sum("source address" in message for message in said) == 2


async def test_cancelled_while_it_asks(resolver: Resolver) -> None:
    resolver.may_answer.clear()
    destinations = Destinations(Config(rules=(parse_rule("127.0.0.1 1 name.example 1"),)))
    resolving = asyncio.create_task(destinations.resolve())
    await until(lambda: resolver.asked)
    resolving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await resolving
    resolver.may_answer.set()
