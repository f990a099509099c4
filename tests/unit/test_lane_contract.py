"""The contract of a lane and of its listeners (`oinetd.core.lane`), held to both lanes without a forwarder."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from oinetd.core.access import AccessControl
from oinetd.core.lane import Lane, Listener
from oinetd.core.record import Ending, SessionRecord
from oinetd.core.service import Callbacks, Service
from oinetd.lanes.limits import Limits
from oinetd.lanes.native.lane import NativeLane
from oinetd.lanes.native.plane import available
from oinetd.lanes.python.lane import PythonLane
from oinetd.model import AccessRule, Config, Endpoint, EngineChoice, Protocol, RelayMode, Rule, RuleOptions, Verb
from oinetd.net.forking import Held
from oinetd.net.poller import Poller
from oinetd.net.sockets import Address, tune_datagrams
from oinetd.upstream.destination import Destination
from oinetd.upstream.loops import Loops
from tests.forwarding import echoes, exchange
from tests.peers import Peer, dial, echo, server, until
from tests.udp.rig import Party
from tests.udp.rig import echo as udp_echo

LANES = ["python"] if available() else ["python", "native"]


class Name(Destination):
    """A destination whose addresses the test chooses, and which counts the lookups that it is asked for."""

    lookups = 0

    def at_address(self, host: str) -> None:
        self._take((Address(socket.AF_INET, (host, 0)),))

    def look_up_again(self) -> None:
        self.lookups += 1


class Stage:
    """A lane, one listener of it, and what the lane reported."""

    def __init__(self, kind: str, protocol: Protocol, upstream: tuple[str, int]) -> None:
        loop = asyncio.get_running_loop()
        self.opened: list[SessionRecord] = []
        self.closed: list[SessionRecord] = []
        self.left = 0
        self.limits = Limits()
        self.registry = self.limits.registry
        self.poller = Poller(loop)
        self.watcher = Callbacks(self.opened.append, self.closed.append, self._left)
        self.python = PythonLane(loop, self.poller, self.registry)
        self.lane: Lane = self.python
        if kind == "native":
            self.lane = NativeLane(loop, self.registry, self.watcher, Loops(), Held(self.poller))
        self.destination = Name("name.example", 0.0, (Address(socket.AF_INET, (upstream[0], 0)),))
        kinds = {Protocol.TCP: socket.SOCK_STREAM, Protocol.UDP: socket.SOCK_DGRAM}
        self.sock = socket.socket(socket.AF_INET, kinds[protocol])
        self.sock.setblocking(False)
        self.sock.bind(("127.0.0.1", 0))
        if protocol is Protocol.TCP:
            self.sock.listen(64)
        else:
            tune_datagrams(self.sock, Address(socket.AF_INET, self.sock.getsockname()))
        self.address: tuple[str, int] = self.sock.getsockname()
        self.rule = Rule(
            Endpoint(*self.address, protocol=protocol), Endpoint("name.example", upstream[1], protocol=protocol)
        )
        self.config = Config(rules=(self.rule,), threads=2)
        assert self.lane.eligible(self.config, self.rule) is None
        self.listener: Listener = self.lane.serve(self.sock, self.service())

    def _left(self) -> None:
        self.left += 1

    def service(self, *, access: tuple[AccessRule, ...] = (), **options: Any) -> Service:
        """A service of the rule with these options."""
        rule = dataclasses.replace(self.rule, options=RuleOptions(**options))
        engine, dialer = self.python.means(self.config, rule, None)
        return Service(
            route=next(rule.routes()),
            settings=self.config.settings_of(rule),
            access=AccessControl(access, ()),
            global_access=access,
            destination=self.destination,
            source_host=None,
            rule=self.registry.of(rule),
            registry=self.registry,
            dialer=dialer,
            engine=engine,
            watcher=self.watcher,
        )

    @property
    def sessions(self) -> list[SessionRecord]:
        return list(self.lane.sessions())

    def counted(self) -> tuple[int, int, int]:
        """Of all sessions: live, accepted, bytes up."""
        self.lane.settle()
        stats = self.registry.stats(self.lane.totals())
        return stats.live, stats.accepted, stats.bytes_up

    async def client(self) -> Peer:
        """A client that is connected and served."""
        peer = await dial(self.address)
        assert await exchange(peer, b"x")
        return peer

    async def close(self) -> None:
        self.listener.release()
        self.lane.abort_all()
        await self.lane.close()
        self.poller.close()
        self.sock.close()


DENY = (AccessRule(Verb.DENY, "127.*"),)


@contextlib.asynccontextmanager
async def staged(kind: str, protocol: Protocol, upstream: tuple[str, int]) -> AsyncIterator[Stage]:
    stage = Stage(kind, protocol, upstream)
    try:
        yield stage
    finally:
        await stage.close()


@pytest.fixture(params=LANES)
async def stage(request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    """A lane with a TCP listener."""
    async with server(echo) as upstream, staged(request.param, Protocol.TCP, upstream) as stage:
        yield stage


@pytest.fixture(params=LANES)
async def udp(request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    """A lane with a UDP listener."""
    with udp_echo() as upstream:
        async with staged(request.param, Protocol.UDP, upstream.address) as stage:
            yield stage


@pytest.fixture
def party() -> Iterator[Party]:
    with Party() as party:
        yield party


# Which rules


@pytest.mark.parametrize("kind", LANES)
@pytest.mark.parametrize("wanted", EngineChoice)
async def test_the_reason_if_it_is_not_eligible(stage: Stage, kind: str, wanted: EngineChoice) -> None:
    rule = dataclasses.replace(stage.rule, options=RuleOptions(engine=wanted))
    reason = stage.lane.eligible(Config(rules=(rule,)), rule)
    native = isinstance(stage.lane, NativeLane)
    assert reason == ("asked for" if native and wanted is EngineChoice.PYTHON else None)


# TCP


async def test_one_record_from_open_to_close(stage: Stage) -> None:
    client = await dial(stage.address)
    assert await exchange(client, b"hello")
    await until(lambda: stage.opened)
    (live,) = await until(lambda: [record for record in stage.sessions if record.bytes_down == 5])
    assert (live.id, live.bytes_up, live.ending) == (stage.opened[0].id, 5, None)
    assert (live.upstream, live.upstream_port) == ("127.0.0.1", stage.rule.connect.port)
    assert stage.counted() == (1, 1, 5)
    client.close()
    await until(lambda: stage.closed)
    (record,) = stage.closed
    assert record is stage.opened[0]
    assert (record.ending, record.errno) == (Ending.CLIENT_CLOSED, 0)
    assert (record.relay, record.bytes_up, record.bytes_down) == ("copy", 5, 5)
    assert 0 < record.connect_s <= record.duration_s
    assert stage.sessions == []
    assert stage.counted() == (0, 1, 5)


async def test_many_sessions_are_reported_once_each(stage: Stage) -> None:
    async def visit() -> None:
        (await stage.client()).close()

    for _ in range(8):
        await asyncio.gather(*(visit() for _ in range(25)))
    await until(lambda: len(stage.closed) == 200)
    assert {record.id for record in stage.closed} == {record.id for record in stage.opened}
    assert len({record.id for record in stage.closed}) == len(stage.opened) == 200
    assert {record.ending for record in stage.closed} == {Ending.CLIENT_CLOSED}


async def test_a_replaced_service_is_for_new_sessions(stage: Stage) -> None:
    before = await stage.client()
    stage.listener.replace_service(stage.service(access=DENY))
    refused = await dial(stage.address)
    assert await refused.read_all() == b""
    await until(lambda: stage.closed)
    assert (stage.closed[0].ending, stage.closed[0].engine) == (Ending.DENIED, "")
    assert await exchange(before)
    stage.listener.replace_service(stage.service(relay=RelayMode.COPY))
    after = await stage.client()
    for client in (before, refused, after):
        client.close()
    await until(lambda: len(stage.closed) == 3)


async def test_the_rules_own_maximum(stage: Stage) -> None:
    stage.listener.replace_service(stage.service(max_connections=1))
    first, second = await dial(stage.address), await dial(stage.address)
    for client in (first, second):
        await client.send(b"x")
    assert await first.read(1) == b"x"
    assert len(stage.sessions) == 1
    first.close()
    assert await second.read(1) == b"x"
    second.close()


async def test_kill(stage: Stage) -> None:
    client = await stage.client()
    await until(lambda: stage.opened)
    assert stage.lane.kill(stage.opened[0].id)
    assert not stage.lane.kill(10_000)
    assert await client.read_to_reset() == b""
    client.close()
    await until(lambda: stage.closed)
    assert stage.closed[0].ending is Ending.ABORTED
    assert not stage.lane.kill(stage.opened[0].id)


async def test_other_addresses(stage: Stage) -> None:
    stage.destination.at_address("127.0.0.9")  # where nobody listens
    stage.listener.refresh()
    for _ in range(3):
        with contextlib.suppress(ConnectionResetError):
            assert not await echoes(stage.address)
    await until(lambda: stage.destination.lookups)
    stage.destination.at_address("127.0.0.1")
    stage.listener.refresh()
    (await stage.client()).close()
    await until(lambda: len(stage.closed) == 4)
    assert [record.ending for record in stage.closed[:3]] == [Ending.CONNECT_FAILED] * 3


async def test_a_released_listener_leaves_its_sessions_and_its_queue(stage: Stage) -> None:
    client = await stage.client()
    stage.listener.release()
    late = await dial(stage.address)
    left, _ = stage.sock.accept()  # nobody else takes it
    left.close()
    late.close()
    assert not stage.listener.has_sessions
    assert await exchange(client)
    stage.listener.start()
    (await stage.client()).close()
    client.close()
    await until(lambda: len(stage.closed) == 2)


async def test_access_rules_are_checked_for_live_connections(stage: Stage) -> None:
    client = await stage.client()
    await until(lambda: stage.opened)
    assert dict(stage.lane.check_access({stage.rule: (DENY, False)})) == {stage.rule: 1}
    assert await exchange(client)
    assert dict(stage.lane.check_access({stage.rule: (DENY, True)})) == {stage.rule: 1}
    assert await client.read_to_reset() == b""
    client.close()
    await until(lambda: stage.closed)
    assert stage.closed[0].ending is Ending.REVOKED
    assert stage.listener.revoke(DENY) == 0  # for sessions that answer through the socket


async def test_totals_instead_of_each_session(stage: Stage) -> None:
    stage.lane.report_each_session(False)
    (await stage.client()).close()
    await until(lambda: stage.counted() == (0, 1, 1))
    await until(lambda: stage.left or stage.closed)
    stage.lane.report_each_session(True)
    reported = len(stage.closed)
    (await stage.client()).close()
    await until(lambda: len(stage.closed) == reported + 1)


async def test_close_ends_and_reports_everything(stage: Stage) -> None:
    clients = [await stage.client() for _ in range(20)]
    await stage.close()
    assert len(stage.closed) == 20
    assert {record.ending for record in stage.closed} == {Ending.ABORTED}
    assert not stage.lane.busy
    for client in clients:
        assert await client.read_to_reset() == b""
        client.close()


# UDP: sessions answer through the socket of the listener


async def test_a_released_udp_listener_ends_its_sessions(udp: Stage, party: Party) -> None:
    assert await party.ask(b"one", udp.address) == b"one"
    assert udp.listener.has_sessions
    udp.listener.release()
    await until(lambda: udp.closed)
    assert [record.ending for record in udp.closed] == [Ending.ABORTED]
    assert udp.sock.fileno() >= 0
    udp.listener.start()
    assert await party.ask(b"two", udp.address) == b"two"


END: dict[str, Callable[[Stage], object]] = {
    "end": lambda stage: stage.listener.end(),
    "kill": lambda stage: stage.lane.kill(stage.opened[0].id),
    "quiet": lambda stage: stage.lane.end_quiet(),
}


@pytest.mark.parametrize("way", END)
async def test_a_listener_that_lingers_closes_with_its_last_session(udp: Stage, party: Party, way: str) -> None:
    closed: list[bool] = []
    assert await party.ask(b"one", udp.address) == b"one"
    await until(lambda: udp.opened)
    udp.listener.linger(lambda: closed.append(True))
    with Party() as late:
        late.send(b"late", udp.address)
        assert await party.ask(b"two", udp.address) == b"two"
        assert not closed
        END[way](udp)
        await until(lambda: closed)
        assert late.pending() == []
    assert udp.sock.fileno() < 0
    await until(lambda: udp.closed)
    assert len(udp.closed) == 1


async def test_a_listener_without_sessions_lingers_no_moment(udp: Stage) -> None:
    closed: list[bool] = []
    udp.listener.linger(lambda: closed.append(True))
    assert closed == [True]
    assert udp.sock.fileno() < 0


async def test_a_listener_that_lingers_comes_back(udp: Stage, party: Party) -> None:
    closed: list[bool] = []
    assert await party.ask(b"one", udp.address) == b"one"
    udp.listener.linger(lambda: closed.append(True))
    udp.listener.replace_service(udp.service())
    with Party() as late:
        assert await late.ask(b"late", udp.address) == b"late"
    udp.lane.abort_all()
    await until(lambda: len(udp.closed) == 2)
    assert not closed
    assert udp.sock.fileno() >= 0


async def test_revoked_udp_sessions_are_counted_once(udp: Stage, party: Party) -> None:
    assert await party.ask(b"one", udp.address) == b"one"
    assert udp.listener.revoke(DENY) == 1
    assert udp.listener.revoke(DENY) == 0  # the same rules as before
    await until(lambda: udp.closed)
    assert udp.closed[0].ending is Ending.REVOKED


async def test_udp_sessions_above_the_limit_end(udp: Stage) -> None:
    parties = [Party() for _ in range(4)]
    for party in parties:
        assert await party.ask(b"x", udp.address) == b"x"
    udp.registry.datagrams.set_limits(3, 0)
    udp.lane.trim_datagrams()
    await until(lambda: udp.closed)
    assert [record.ending for record in udp.closed] == [Ending.DISPLACED]
    assert udp.counted()[0] == 3
    for party in parties:
        party.close()


@pytest.mark.skipif("native" not in LANES, reason="the extension is missing")
async def test_reloads_without_a_client_leave_no_policies_behind() -> None:
    async with server(echo) as upstream, staged("native", Protocol.TCP, upstream) as stage:
        lane = stage.lane
        assert isinstance(lane, NativeLane)
        for _ in range(20):
            stage.listener.replace_service(stage.service())
            before = lane._unused
            await until(lambda before=before: lane._unused is not before, "a look at what is unused")
        assert len(lane._in_force) <= 3  # the one in force, and those that the last two looks found unused
