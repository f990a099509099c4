"""Names that have no address yet: the rule listens, its clients wait, and are served when the name is resolved."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

import oinetd.net.ports
import oinetd.net.resolver
import oinetd.reload
import oinetd.upstream.destination
import oinetd.upstream.destinations
from oinetd import BindError, Config, ConfigError, Ending, EngineChoice, Forwarder, Settings
from oinetd.config import parse_rule
from oinetd.net.sockets import Address, lookup
from tests.forwarding import Seen, bound, echoes, exchange, forwarding, rule
from tests.peers import dial, until
from tests.udp.rig import Party, echo


class Server:
    """A name server that is silent or says what `answer` is, about `name.example`."""

    def __init__(self) -> None:
        self.answer: tuple[Address, ...] | OSError = socket.gaierror(socket.EAI_AGAIN, "Temporary failure")
        self.speaks = threading.Event()
        self.asked = 0

    def __call__(self, host: str, port: int = 0) -> tuple[Address, ...]:
        if not host.endswith("name.example"):
            return lookup(host, port)
        self.asked += 1
        self.speaks.wait(30)
        if isinstance(self.answer, OSError):
            raise self.answer
        return self.answer

    def knows(self, host: str = "127.0.0.1") -> None:
        self.answer = lookup(host)
        self.speaks.set()


@pytest.fixture(params=["silent", "fails"])
def names(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A name server that says nothing, or that it cannot tell now."""
    names = Server()
    if request.param == "fails":
        names.speaks.set()
    monkeypatch.setattr(oinetd.net.resolver, "lookup", names)
    monkeypatch.setattr(oinetd.upstream.destination, "START_PATIENCE_S", 0.05)
    monkeypatch.setattr(oinetd.upstream.destinations, "START_PATIENCE_S", 0.05)
    monkeypatch.setattr(oinetd.upstream.destinations, "RELOAD_PATIENCE_S", 0.05)
    monkeypatch.setattr(oinetd.net.ports, "RELOAD_PATIENCE_S", 0.05)
    monkeypatch.setattr(oinetd.net.ports, "GIVE_UP_S", 0.05)
    monkeypatch.setattr(oinetd.upstream.destination, "RETRY_S", 0.02)
    monkeypatch.setattr(oinetd.upstream.destination, "LOOKUP_PAUSE_S", 0.0)
    yield names
    names.speaks.set()


def native(forwarder: Forwarder, nth: int = 0) -> bool:
    """Whether the `nth` listener is served by the native lane."""
    return list(forwarder._listeners.values())[nth].lane is forwarder._lanes.native


async def test_the_rule_listens_and_its_clients_are_served_when_the_name_is_resolved(
    upstream: tuple[str, int], settings: Settings, names: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "oinetd")
    seen = Seen()
    rules = rule(("name.example", upstream[1])), rule(upstream)
    async with forwarding(*rules, settings=settings, seen=seen) as forwarder:
        assert await echoes(bound(forwarder, 1)), "the other rules serve"
        waiting = [await dial(bound(forwarder)) for _ in range(20)]
        await until(lambda: len(seen.opened) == 21)
        (state,) = forwarder.destinations()
        assert "not resolved yet" in str(state)
        names.knows()
        for client in waiting:
            assert await exchange(client)
        # The listener is the lane's that the rule asks for, and those who waited live on.
        await until(lambda: native(forwarder) is (settings.engine is EngineChoice.NATIVE))
        assert await echoes(bound(forwarder))
        for client in waiting:
            assert await exchange(client)
            client.close()
        assert forwarder.destinations()[0].addresses == ("127.0.0.1",)
    said = [message for message in caplog.messages if "name.example" in message and "DNS" in message]
    assert len(said) == 2, said
    assert "cannot resolve the " in said[0]
    assert said[1] == "DNS: name.example now resolves to 127.0.0.1"
    assert not any(record.ending is Ending.RESOLVE_FAILED for record in seen.closed)


async def test_a_client_waits_no_longer_than_for_a_connect(
    upstream: tuple[str, int], settings: Settings, names: Server
) -> None:
    seen = Seen()
    async with forwarding(
        rule(("name.example", upstream[1]), options="connect-timeout=0.05"), settings=settings, seen=seen
    ) as forwarder:
        client = await dial(bound(forwarder))
        await client.read_to_reset()
        await until(lambda: seen.closed)
        assert seen.closed[0].ending is Ending.RESOLVE_FAILED
        client.close()


async def test_a_client_that_goes_while_it_waits(upstream: tuple[str, int], settings: Settings, names: Server) -> None:
    seen = Seen()
    async with forwarding(rule(("name.example", upstream[1])), settings=settings, seen=seen) as forwarder:
        client = await dial(bound(forwarder))
        await until(lambda: seen.opened)
        client.reset()
        await until(lambda: seen.closed)
        assert seen.closed[0].ending is Ending.CLIENT_RESET


async def test_a_source_address_that_is_not_resolved_yet(
    upstream: tuple[str, int], settings: Settings, names: Server
) -> None:
    """Not from the address that the kernel would choose."""
    names.answer = socket.gaierror(socket.EAI_AGAIN, "Temporary failure")
    async with forwarding(rule(upstream, options="src=name.example"), settings=settings) as forwarder:
        client = await dial(bound(forwarder))
        names.knows("127.0.0.5")
        assert await exchange(client)
        client.close()
        await until(lambda: native(forwarder) is (settings.engine is EngineChoice.NATIVE))
        assert await echoes(bound(forwarder))


async def test_datagrams_are_held(settings: Settings, names: Server) -> None:
    with echo("127.0.0.1") as server, Party() as client:
        udp = parse_rule(f"127.0.0.1 0/udp name.example {server.address[1]}/udp")
        async with forwarding(udp, settings=settings) as forwarder:
            client.send(b"early", bound(forwarder))
            await until(lambda: forwarder.sessions())
            names.knows()
            assert (await client.receive())[0] == b"early"
            # The session goes on where it began; the listener changes when it has none.
            assert await client.ask(b"later", bound(forwarder)) == b"later"
            assert forwarder.kill(forwarder.sessions()[0].id)
            await until(lambda: native(forwarder) is (settings.engine is EngineChoice.NATIVE))
            assert await client.ask(b"then", bound(forwarder)) == b"then"


async def test_an_unknown_name_stays_an_error(
    upstream: tuple[str, int], settings: Settings, names: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oinetd.upstream.destinations, "START_PATIENCE_S", 30.0)
    names.answer = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    names.speaks.set()
    with pytest.raises(ConfigError, match="not known"):
        async with forwarding(rule(("name.example", upstream[1])), settings=settings):
            pass


async def test_a_reload_keeps_what_is_known(upstream: tuple[str, int], settings: Settings, names: Server) -> None:
    names.knows()
    served = rule(("name.example", upstream[1]))
    async with forwarding(served, settings=settings) as forwarder:
        names.speaks.clear()
        asked = names.asked
        await forwarder.reload(replace(forwarder.config, rules=(served, rule(("other.name.example", upstream[1])))))
        await until(lambda: names.asked >= asked + 2)  # both are asked for, nobody waits for the first
        assert await echoes(bound(forwarder))
        names.speaks.set()
        assert await echoes(bound(forwarder, 1))


async def test_a_reload_that_fails_does_not_end_the_wait(
    upstream: tuple[str, int], settings: Settings, names: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The listener still goes to the lane of its rule when the name is resolved."""

    def no_memory(*_: object) -> None:
        raise MemoryError

    rules = rule(upstream), rule(("name.example", upstream[1]))
    async with forwarding(*rules, settings=settings) as forwarder:
        with monkeypatch.context() as patch:
            patch.setattr(oinetd.reload.Reload, "_serve", no_memory)
            with pytest.raises(MemoryError):
                await forwarder.reload(forwarder.config)
        assert not native(forwarder, 1)
        client = await dial(bound(forwarder, 1))
        names.knows()
        await until(lambda: native(forwarder, 1) is (settings.engine is EngineChoice.NATIVE))
        assert await exchange(client)
        client.close()
        assert await echoes(bound(forwarder, 1))


async def test_the_listener_of_a_name_stays_where_the_server_is_silent(
    upstream: tuple[str, int], settings: Settings, names: Server
) -> None:
    names.knows()
    served = rule(upstream, bind="name.example 0")
    async with forwarding(served, settings=settings) as forwarder:
        where = bound(forwarder)
        names.answer = socket.gaierror(socket.EAI_AGAIN, "Temporary failure")
        await forwarder.reload(forwarder.config)
        assert bound(forwarder) == where
        assert await echoes(where)


async def test_a_listener_without_its_address_is_an_error_that_may_pass(
    upstream: tuple[str, int], settings: Settings, names: Server
) -> None:
    with pytest.raises(BindError, match="again later"):
        async with forwarding(rule(upstream, bind="name.example 0"), settings=settings):
            pass


@pytest.mark.parametrize("end", ["stop", "drain"])
async def test_the_end_waits_for_no_lookup(
    upstream: tuple[str, int], settings: Settings, names: Server, end: str
) -> None:
    forwarder = Forwarder(Config(rules=(rule(("name.example", upstream[1])),), settings=settings))
    await forwarder.start()
    if end == "drain":
        await forwarder.drain(0)
    await forwarder.stop()
