"""Reload, drain and stop, at the wrong moment and half-way; in both lanes."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import pkgutil
import resource
import socket
import stat
from collections.abc import Iterator
from dataclasses import replace

import pytest

import oinetd.lanes.python.retired
from oinetd import (
    AccessRule,
    BindError,
    Config,
    ConfigError,
    EngineChoice,
    Forwarder,
    KeepAlive,
    Rule,
    RuleOptions,
    Settings,
    Verb,
)
from oinetd.upstream.destinations import Destinations
from tests.forwarding import bound, echoes, exchange, rule
from tests.peers import Peer, dial, free_port, server, until


def listening_sockets() -> int:
    """How many listening sockets this process has."""
    count = 0
    for entry in os.listdir("/proc/self/fd"):
        try:
            if stat.S_ISSOCK(os.stat(int(entry)).st_mode):
                with socket.socket(fileno=os.dup(int(entry))) as sock:
                    count += sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError:  # the descriptor that lists the folder
            continue
    return count


# Errors leave everything as it was


BAD_PATTERN = (AccessRule(Verb.DENY, "no pattern at all"),)


@pytest.mark.parametrize("part", ["access", "rule", "keepalive", "kept-keepalive", "port", "name", "log"])
async def test_a_reload_that_fails_leaves_everything_as_it_was(
    upstream: tuple[str, int], settings: Settings, part: str
) -> None:
    first, more = rule(upstream), rule(upstream, f"127.0.0.1 {free_port()}")
    config = Config(rules=(first,), settings=settings, max_connections=100)
    refused = KeepAlive()
    object.__setattr__(refused, "idle_s", 40_000)  # more than the kernel takes, as on one with other limits
    taken = socket.create_server(("127.0.0.1", 0))
    with taken:
        bad = {
            "access": replace(config, rules=(first, more), access=BAD_PATTERN),
            "rule": replace(config, rules=(first, replace(more, access=BAD_PATTERN))),
            "keepalive": replace(config, rules=(first, replace(more, options=RuleOptions(keepalive=refused)))),
            "kept-keepalive": replace(config, rules=(more, first), settings=replace(settings, keepalive=refused)),
            "port": replace(config, rules=(more, first, rule(upstream, f"127.0.0.1 {taken.getsockname()[1]}"))),
            "name": replace(config, rules=(more, rule(("no-such-name.invalid", 1)))),
            "log": replace(config, rules=(more,), log=replace(config.log, file="/proc/no/such/folder/log")),
        }[part]
        async with Forwarder(config) as forwarder:
            address = bound(forwarder)
            client = await dial(address)
            assert await exchange(client)
            sockets = listening_sockets()
            for _ in range(3):
                with pytest.raises((ConfigError, BindError)):
                    await forwarder.reload(replace(bad, max_connections=1))
            assert listening_sockets() == sockets
            assert bound(forwarder) == address
            assert len(forwarder.addresses) == 1
            assert forwarder.config is config
            assert await exchange(client)
            assert await echoes(address)  # a second one: the limit is the old one
            with pytest.raises(ConnectionRefusedError):
                await dial(("127.0.0.1", more.bind.port))
            await forwarder.reload(replace(config, rules=(first, more)))
            assert await exchange(client)
            assert await echoes(("127.0.0.1", more.bind.port))
            client.close()


@pytest.fixture
def descriptors() -> Iterator[int]:
    """The number of descriptors is limited to few more than there are; the limit is taken back at the end."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield limits[0]
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def leave_descriptors(count: int) -> None:
    """Let `count` more descriptors be opened: the kernel gives out the lowest free number, below the limit."""
    taken = {int(entry) for entry in os.listdir("/proc/self/fd")}
    free = (
        number for number in itertools.count() if number not in taken or not os.path.exists(f"/proc/self/fd/{number}")
    )
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next(itertools.islice(free, count, None)), hard))


@pytest.mark.usefixtures("descriptors")
async def test_no_descriptor_for_an_inherited_socket(upstream: tuple[str, int]) -> None:
    inherited = [socket.create_server(("127.0.0.1", 0)) for _ in range(10)]
    rules = tuple(rule(upstream, f"127.0.0.1 {sock.getsockname()[1]}") for sock in inherited)
    config = Config(rules=rules[:1], settings=Settings(engine=EngineChoice.PYTHON))
    async with Forwarder(config, inherited=inherited) as forwarder:
        before = len(os.listdir("/proc/self/fd"))
        leave_descriptors(4)
        with pytest.raises(BindError) as failure:
            await forwarder.reload(replace(config, rules=rules))
        assert failure.value.errno == errno.EMFILE
        assert len(forwarder.addresses) == 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
        assert len(os.listdir("/proc/self/fd")) == before
        await forwarder.reload(replace(config, rules=rules))
        for sock in inherited:
            assert await echoes(sock.getsockname())


# The wrong moment


@pytest.fixture
def slow_name(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Until it is set, names are being looked up."""
    answered = asyncio.Event()
    resolve = Destinations.resolve

    async def slowly(self: Destinations) -> None:
        await answered.wait()
        await resolve(self)

    monkeypatch.setattr(Destinations, "resolve", slowly)
    return answered


@pytest.mark.parametrize("end", ["stop", "drain"])
async def test_an_end_during_the_start(
    upstream: tuple[str, int], settings: Settings, slow_name: asyncio.Event, end: str
) -> None:
    sockets = listening_sockets()
    forwarder = Forwarder(Config(rules=(rule(upstream),), settings=settings))
    starting = asyncio.create_task(forwarder.start())
    await asyncio.sleep(0)
    await (forwarder.stop() if end == "stop" else forwarder.drain(0))
    slow_name.set()
    with pytest.raises(RuntimeError, match="stop"):
        await starting
    assert forwarder.addresses == ()
    assert listening_sockets() == sockets
    await forwarder.stop()
    await forwarder.serve_forever()


@pytest.mark.parametrize("end", ["stop", "drain"])
async def test_an_end_during_a_reload(
    upstream: tuple[str, int], settings: Settings, slow_name: asyncio.Event, end: str
) -> None:
    slow_name.set()
    sockets = listening_sockets()
    config = Config(rules=(rule(upstream),), settings=settings)
    async with Forwarder(config) as forwarder:
        client = await dial(bound(forwarder))
        assert await exchange(client)
        slow_name.clear()
        # The second one waits for the first.
        reloads = [asyncio.create_task(forwarder.reload(config)) for _ in range(2)]
        await asyncio.sleep(0)
        await (forwarder.stop() if end == "stop" else forwarder.drain(0))
        slow_name.set()
        for reload in reloads:
            with pytest.raises(RuntimeError, match="stop"):
                await reload
        assert forwarder.addresses == ()
        assert listening_sockets() == sockets
        with pytest.raises(RuntimeError):
            await forwarder.reload(config)
        await client.read_to_reset()
        client.close()


async def test_several_may_stop_it_at_once(upstream: tuple[str, int], settings: Settings) -> None:
    forwarder = Forwarder(Config(rules=(rule(upstream),), settings=settings))
    await forwarder.start()
    clients = [await dial(bound(forwarder)) for _ in range(5)]
    serving = asyncio.create_task(forwarder.serve_forever())
    draining = asyncio.create_task(forwarder.drain(60))
    await asyncio.sleep(0)
    await asyncio.gather(*(forwarder.stop() for _ in range(3)))
    await serving
    await draining
    for client in clients:
        client.close()


async def test_before_the_start_there_is_nothing(upstream: tuple[str, int]) -> None:
    forwarder = Forwarder(Config(rules=(rule(upstream),)))
    assert forwarder.addresses == ()
    assert forwarder.sessions() == []
    assert forwarder.stats().live == 0
    assert not forwarder.kill(1)
    forwarder.reopen_log()
    await forwarder.stop()
    for work in (forwarder.drain(0), forwarder.reload(forwarder.config), forwarder.serve_forever()):
        with pytest.raises(RuntimeError):
            await work


# What a reload changes


async def test_free_ports_stay_with_their_rules(settings: Settings) -> None:
    """A rule that goes must not hand its port to another rule's destination."""

    def named(name: bytes):  # type: ignore[no-untyped-def]
        async def say(peer: Peer) -> None:
            await peer.send(name)

        return say

    async with server(named(b"a")) as a, server(named(b"b")) as b, server(named(b"c")) as c:
        rules = {name: rule(at) for name, at in (("a", a), ("b", b), ("c", c))}
        config = Config(rules=tuple(rules.values()), settings=settings)
        async with Forwarder(config) as forwarder:

            def ports() -> dict[Rule, int]:
                return {address.route.rule: address.port for address in forwarder.addresses}

            before = ports()
            for left in (("b", "c"), ("c", "b"), ("c",), ("a", "c")):
                await forwarder.reload(replace(config, rules=tuple(rules[name] for name in left)))
                for name in left:
                    if name != "a":
                        assert ports()[rules[name]] == before[rules[name]]
                    client = await dial(("127.0.0.1", ports()[rules[name]]))
                    assert await client.read_all() == name.encode()
                    client.close()


async def test_a_rule_on_a_free_port_keeps_it_when_only_its_options_change(
    upstream: tuple[str, int], settings: Settings
) -> None:
    one = rule(upstream)
    config = Config(rules=(one,), settings=settings)
    async with Forwarder(config) as forwarder:
        address = bound(forwarder)
        for changed in (replace(one, options=RuleOptions(connect_timeout_s=3)), rule(("127.0.0.1", 1)), one):
            await forwarder.reload(replace(config, rules=(changed,)))
            assert bound(forwarder) == address
        assert await echoes(address)


async def test_limits_come_into_force_and_go(upstream: tuple[str, int], settings: Settings) -> None:
    config = Config(rules=(rule(upstream),), settings=settings)
    async with Forwarder(config) as forwarder:
        address = bound(forwarder)
        first = await dial(address)
        assert await exchange(first)
        await forwarder.reload(replace(config, max_connections=1))
        second = await dial(address)  # in the kernel's queue
        await second.send(b"hello")
        assert await exchange(first)
        assert len(forwarder.sessions()) == 1
        await forwarder.reload(config)
        assert await second.read(5) == b"hello"
        await forwarder.reload(replace(config, max_connections=2))
        third = await dial(address)
        first.close()
        assert await exchange(third)
        second.close()
        third.close()


async def test_keepalive_and_backlog_of_a_listener_that_stays(upstream: tuple[str, int], settings: Settings) -> None:
    config = Config(rules=(rule(upstream),), settings=settings)
    async with Forwarder(config) as forwarder:
        (listener,) = forwarder._listeners.values()
        await forwarder.reload(
            replace(config, settings=replace(settings, keepalive=KeepAlive(7, 3, 2), listen_backlog=17))
        )
        assert forwarder._listeners[next(iter(forwarder._listeners))].sock is listener.sock
        assert listener.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 7
        await forwarder.reload(replace(config, settings=replace(settings, keepalive=KeepAlive(idle_s=0))))
        assert listener.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
        assert await echoes(bound(forwarder))


async def test_a_rule_that_goes_lets_its_sessions_live(upstream: tuple[str, int], settings: Settings) -> None:
    one, two = rule(upstream, f"127.0.0.1 {free_port()}"), rule(upstream)
    config = Config(rules=(one, two), settings=settings)
    async with Forwarder(config) as forwarder:
        client = await dial(("127.0.0.1", one.bind.port))
        assert await exchange(client)
        await forwarder.reload(replace(config, rules=(two,)))
        with pytest.raises(ConnectionRefusedError):
            await dial(("127.0.0.1", one.bind.port))
        assert await exchange(client)
        assert forwarder.stats().rules[one].live == 1
        client.close()
        await until(lambda: not forwarder.sessions())
        assert forwarder.stats().rules[one].accepted == 1


async def test_a_rule_that_goes_lets_handshakes_end(upstream: tuple[str, int], settings: Settings) -> None:
    """To the client the connection is there, while its last packet of the handshake is still under way."""
    async with Forwarder(Config(rules=(rule(upstream),), settings=settings)) as forwarder:
        with socket.socket() as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)  # that packet waits for something to carry
            sock.connect(bound(forwarder))
            client = Peer(sock)
            await forwarder.reload(Config(settings=settings))
            assert not forwarder.addresses
            assert await exchange(client)


async def test_a_rule_that_goes_at_the_limit_serves_its_queue(upstream: tuple[str, int], settings: Settings) -> None:
    one, two = rule(upstream, f"127.0.0.1 {free_port()}"), rule(upstream)
    config = Config(rules=(one, two), settings=settings, max_connections=1)
    async with Forwarder(config) as forwarder:
        address = ("127.0.0.1", one.bind.port)
        clients = [await dial(address) for _ in range(3)]
        for client in clients:
            await client.send(b"hello")
        assert await clients[0].read(5) == b"hello"
        await forwarder.reload(replace(config, rules=(two,)))
        with pytest.raises(ConnectionRefusedError):
            await dial(address)
        for client in clients[1:]:
            clients[0].close()
            assert await client.read(5) == b"hello"
            clients.pop(0)
        assert len(forwarder.sessions()) == 1
        clients[0].close()
        await until(lambda: listening_sockets() == 2)
        assert forwarder.stats().rules[one].accepted == 3


async def test_a_reload_that_fails_leaves_those_in_the_queue_of_a_rule_that_went(
    upstream: tuple[str, int], settings: Settings
) -> None:
    one, two = rule(upstream, f"127.0.0.1 {free_port()}"), rule(upstream)
    config = Config(rules=(one, two), settings=settings, max_connections=1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        unavailable = rule(upstream, f"127.0.0.1 {taken.getsockname()[1]}")
        async with Forwarder(config) as forwarder:
            address = ("127.0.0.1", one.bind.port)
            inside, queued = await dial(address), await dial(address)
            assert await exchange(inside)
            await queued.send(b"hello")
            await forwarder.reload(replace(config, rules=(two,)))
            with pytest.raises(BindError):
                await forwarder.reload(replace(config, rules=(one, two, unavailable)))
            inside.close()
            assert await queued.read(5) == b"hello"
            queued.close()


async def test_who_waits_for_a_place_too_long_is_reset(
    upstream: tuple[str, int], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oinetd.lanes.python.retired, "QUEUE_S", 0.1)
    one = rule(upstream, f"127.0.0.1 {free_port()}")
    config = Config(rules=(one,), settings=settings, max_connections=1)
    async with Forwarder(config) as forwarder:
        first, second = [await dial(("127.0.0.1", one.bind.port)) for _ in range(2)]
        assert await exchange(first)
        await forwarder.reload(replace(config, rules=()))
        await second.read_to_reset()
        assert await exchange(first)
        assert listening_sockets() == 1
        first.close()
        second.close()


async def test_drain_lets_sessions_end(upstream: tuple[str, int], settings: Settings) -> None:
    async with Forwarder(Config(rules=(rule(upstream),), settings=settings)) as forwarder:
        address = bound(forwarder)
        client = await dial(address)
        assert await exchange(client)
        draining = asyncio.create_task(forwarder.drain(60))
        await asyncio.sleep(0)
        with pytest.raises(ConnectionRefusedError):
            await dial(address)
        assert await exchange(client)
        client.close()
        assert await draining == 0


async def test_a_drain_waits_for_those_in_a_queue(upstream: tuple[str, int], settings: Settings) -> None:
    """At the limit a client was let in by the kernel: it gets its turn when somebody leaves."""
    config = Config(rules=(rule(upstream),), settings=settings, max_connections=1)
    async with Forwarder(config) as forwarder:
        first = await dial(bound(forwarder))
        assert await exchange(first)
        second = await dial(bound(forwarder))
        await second.send(b"hello")
        draining = asyncio.create_task(forwarder.drain(60))
        await asyncio.sleep(0)
        assert await exchange(first)
        first.close()
        assert await second.read(5) == b"hello"
        assert not draining.done()
        second.close()
        assert await draining == 0


async def test_a_drain_that_is_over_lets_nobody_in(upstream: tuple[str, int], settings: Settings) -> None:
    config = Config(rules=(rule(upstream),), settings=settings, max_connections=40)
    async with Forwarder(config, on_close=lambda record: None) as forwarder:
        inside = [await dial(bound(forwarder)) for _ in range(40)]
        for peer in inside:
            assert await exchange(peer)
        queued = [await dial(bound(forwarder)) for _ in range(5)]
        assert await forwarder.drain(0.05) == 40
        assert forwarder.sessions() == []
        for peer in (*inside, *queued):
            with pytest.raises(ConnectionResetError):
                await peer.read(1)
            peer.close()


# A step of the change itself fails


STEPS = {
    "limits": "oinetd.lanes.limits.Limits.apply",
    "loops": "oinetd.upstream.loops.Loops.renew",
    "the second listener": "oinetd.reload.Reload._serve",
    "the lines for the log": "oinetd.reload.no_longer",
}


@pytest.mark.parametrize("step", STEPS)
async def test_a_change_that_fails_in_the_middle_leaves_everything_as_it_was(
    upstream: tuple[str, int], settings: Settings, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The listeners serve as before, those that were opened are closed, and the next reload works."""
    rules = tuple(rule(upstream, f"127.0.0.1 {free_port()}") for _ in range(3))
    before = Config(rules=rules[:2], settings=settings)
    async with Forwarder(before) as forwarder:
        listeners, count = dict(forwarder._listeners), listening_sockets()
        others = tuple(replace(each, options=RuleOptions(buffer_bytes=4096)) for each in rules)
        target = STEPS[step]
        module, _, name = target.rpartition(".")
        original = pkgutil.resolve_name(f"{module}:{name}" if module == "oinetd.reload" else target)
        calls = itertools.count(1)
        fails_at = 3 if name == "_serve" else 1

        def failing(*arguments: object, **named: object) -> object:
            if next(calls) == fails_at:
                raise MemoryError
            return original(*arguments, **named)

        monkeypatch.setattr(target, failing)
        with pytest.raises(MemoryError):
            await forwarder.reload(Config(rules=others[:3], settings=settings))
        assert forwarder._listeners == listeners
        assert listening_sockets() == count
        assert forwarder.config is before
        assert [each.service.route.rule for each in forwarder._listeners.values()] == list(rules[:2])
        for each in rules[:2]:
            assert await echoes((each.bind.address, each.bind.port))
        await forwarder.reload(Config(rules=others[1:], settings=settings))
        for each in others[1:]:
            assert await echoes((each.bind.address, each.bind.port))
