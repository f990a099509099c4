"""The native lane as the forwarder drives it: callbacks, reload, limits and live sessions, on the loop's thread."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from oinetd.core.record import Ending, SessionRecord
from oinetd.core.service import Service
from oinetd.lanes.native.lane import NativeLane
from oinetd.lanes.native.plane import Hub, available
from oinetd.model import SOURCE_PREFIX, AccessRule, Endpoint, RelayMode, Rule, RuleOptions, Settings, Verb
from oinetd.net.options import NO_CONNECT_OPTIONS
from tests.peers import dial, echo, server, until

pytestmark = pytest.mark.skipif(bool(available()), reason=available())


class Stage:
    """A lane with one listener, and what it told."""

    def __init__(self, hub: Hub, destination: tuple[str, int]) -> None:
        self.opened: list[SessionRecord] = []
        self.closed: list[SessionRecord] = []
        self.unreachable: list[int] = []
        self.hub = hub
        self.destination = destination
        self.lane = NativeLane(
            hub,
            on_opened=self.opened.append,
            on_closed=self.closed.append,
            on_unreachable=self.unreachable.append,
        )
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.sock.setblocking(False)
        self.address: tuple[str, int] = self.sock.getsockname()
        self.key = self.lane.add(self.sock, self.service())

    def service(self, *, access: tuple[AccessRule, ...] = (), **options: Any) -> Service:
        """The fields of a service that the lane reads; its destination is `self.destination` of the moment."""
        rule = Rule(Endpoint(*self.address), Endpoint(*self.destination), RuleOptions(**options))
        at = SimpleNamespace(at=lambda port: [SimpleNamespace(sockaddr=self.destination)])
        said = SimpleNamespace(
            route=next(rule.routes()),
            settings=Settings().with_overrides(rule.options),
            global_access=access,
            destination=at,
            source=(),
            source_prefix=SOURCE_PREFIX,
            guard=None,
            peer_uid=None,
            connect_options=NO_CONNECT_OPTIONS,
        )
        return cast("Service", said)


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with server(echo) as destination:
        hub = Hub(asyncio.get_running_loop(), threads=2)
        stage = Stage(hub, destination)
        yield stage
        await hub.close()
        stage.sock.close()


async def visit(address: tuple[str, int]) -> None:
    """One round trip."""
    client = await dial(address)
    try:
        await client.send(b"x")
        assert await client.read(1) == b"x"
    finally:
        client.close()


async def test_one_record_from_open_to_close(stage: Stage) -> None:
    client = await dial(stage.address)
    await client.send(b"hello")
    assert await client.read(5) == b"hello"
    await until(lambda: stage.opened)
    (live,) = stage.lane.sessions()
    assert (live.id, live.bytes_up, live.bytes_down, live.ending) == (stage.opened[0].id, 5, 5, None)
    assert (live.upstream, live.upstream_port) == stage.destination
    client.close()
    await until(lambda: stage.closed)
    (record,) = stage.closed
    assert record is stage.opened[0]
    assert (record.ending, record.errno) == (Ending.CLIENT_CLOSED, 0)
    assert (record.engine, record.relay, record.bytes_up, record.bytes_down) == ("native", "copy", 5, 5)
    assert 0 < record.connect_s <= record.duration_s
    assert stage.lane.sessions() == []


async def test_many_sessions_are_told_once_each_in_order(stage: Stage) -> None:
    for _ in range(20):
        await asyncio.gather(*(visit(stage.address) for _ in range(25)))
    await until(lambda: len(stage.closed) == 500)
    assert len({record.id for record in stage.closed}) == len(stage.opened) == 500
    assert {record.ending for record in stage.closed} == {Ending.CLIENT_CLOSED}


async def test_replaced_rules_hold_for_those_to_come(stage: Stage) -> None:
    before = await dial(stage.address)
    await before.send(b"a")
    assert await before.read(1) == b"a"
    stage.lane.replace(stage.key, stage.service(access=(AccessRule(Verb.DENY, "127.*"),)))
    refused = await dial(stage.address)
    assert await refused.read_all() == b""
    await until(lambda: stage.closed)
    assert (stage.closed[0].ending, stage.closed[0].engine) == (Ending.DENIED, "")
    await before.send(b"b")
    assert await before.read(1) == b"b"
    stage.lane.replace(stage.key, stage.service(relay=RelayMode.SPLICE))
    after = await dial(stage.address)
    await after.send(b"c")
    assert await after.read(1) == b"c"
    for client in (before, refused, after):
        client.close()
    await until(lambda: len(stage.closed) == 3)
    assert sorted(record.relay for record in stage.closed) == ["", "copy", "splice"]


async def test_the_rules_own_maximum(stage: Stage) -> None:
    stage.lane.replace(stage.key, stage.service(max_connections=1))
    first = await dial(stage.address)
    second = await dial(stage.address)
    for client in (first, second):
        await client.send(b"x")
    assert await first.read(1) == b"x"
    assert len(stage.lane.sessions()) == 1
    first.close()
    assert await second.read(1) == b"x"
    second.close()


async def test_kill(stage: Stage) -> None:
    client = await dial(stage.address)
    await until(lambda: stage.opened)
    assert stage.lane.kill(stage.opened[0].id)
    assert not stage.lane.kill(10_000)
    assert await client.read_to_reset() == b""
    client.close()
    await until(lambda: stage.closed)
    assert stage.closed[0].ending is Ending.ABORTED
    assert not stage.lane.kill(stage.opened[0].id)


async def test_other_addresses(stage: Stage) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        destination, stage.destination = stage.destination, nobody.getsockname()
        stage.lane.refresh(stage.key)
        for _ in range(3):
            with pytest.raises(ConnectionError):
                await visit(stage.address)
        await until(lambda: stage.unreachable == [stage.key])
    stage.destination = destination
    stage.lane.refresh(stage.key)
    client = await dial(stage.address)
    await client.send(b"x")
    assert await client.read(1) == b"x"
    client.close()
    await until(lambda: len(stage.closed) == 4)
    assert [record.ending for record in stage.closed[:3]] == [Ending.CONNECT_FAILED] * 3


async def test_removed_listener_keeps_its_sessions_and_its_queue(stage: Stage) -> None:
    client = await dial(stage.address)
    await client.send(b"x")
    assert await client.read(1) == b"x"
    stage.lane.remove(stage.key)
    late = await dial(stage.address)
    left, _ = stage.sock.accept()  # still the caller's to serve
    left.close()
    late.close()
    await client.send(b"y")
    assert await client.read(1) == b"y"
    client.close()
    await until(lambda: len(stage.closed) == 1)


async def test_close_ends_and_tells_everything(stage: Stage) -> None:
    clients = [await dial(stage.address) for _ in range(20)]
    for client in clients:
        await client.send(b"x")
        assert await client.read(1) == b"x"
    await stage.hub.close()
    assert len(stage.closed) == 20
    assert {record.ending for record in stage.closed} == {Ending.ABORTED}
    for client in clients:
        assert await client.read_to_reset() == b""
        client.close()


async def test_reloads_without_a_client_leave_nothing_behind(stage: Stage) -> None:
    for _ in range(20):
        stage.lane.replace(stage.key, stage.service())
        before = stage.lane._unused
        await until(lambda before=before: stage.lane._unused is not before, "a look at what is unused")
    assert len(stage.lane._in_force) <= 3  # the one in force, and those that the last two looks found unused
