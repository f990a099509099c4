"""Both lanes do the same with a group of servers over UDP: same servers, same sessions, same counts."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oinetd import Ending, SessionRecord, parse_config
from oinetd.lanes.native.plane import available
from oinetd.upstream import silence
from tests.daemon.process import own_address
from tests.peers import pattern, until
from tests.udp.rig import Party, Served, echo, serving
from tests.udp.test_lanes import SILENCE_S, UNANSWERED, has_told_all

CLIENTS, SERVERS = 3, 3
BALANCES = ("first", "leastconn", "roundrobin", "source")

steps = st.one_of(
    st.tuples(st.just("ask"), st.integers(0, CLIENTS - 1), st.sampled_from([1, 64, 1400])),
    st.tuples(st.sampled_from(["ready", "drain", "maint"]), st.integers(0, SERVERS - 1), st.just(0)),
    st.tuples(st.just("silence"), st.just(0), st.just(64)),
    st.tuples(st.just("reload"), st.integers(0, len(BALANCES) - 1), st.just(0)),
    st.tuples(st.just("bound"), st.integers(0, 2), st.just(0)),
)


class Story:
    """A forwarder to a group of three servers, and what came of a script."""

    def __init__(self, engine: str, ports: list[int]) -> None:
        self.engine = engine
        self.ports = ports
        self.front = own_address(), 8000
        self.clients = [Party() for _ in range(CLIENTS)]
        self.balance = BALANCES[0]
        self.room = 0
        self.found: list[Any] = []

    def text(self) -> str:
        room = f"max-connections={self.room}" if self.room else "weight=1"
        servers = "".join(f"upstream dns 127.0.0.1 {port}/udp [{room}]\n" for port in self.ports[:-1])
        return (
            f"engine {self.engine}\n{self.front[0]} 8000/udp @dns\n{servers}"
            f"upstream dns 127.0.0.1 {self.ports[-1]}/udp [backup]\n"
            f"upstream dns [balance={self.balance}, passive=2/60s, all-down=refuse]\n"
        )

    def name(self, server: int) -> str:
        return f"127.0.0.1:{self.ports[server]}"

    async def play(self, script: list[tuple[str, int, int]]) -> list[Any]:
        async with serving(self.text()) as served:
            for number, (what, which, size) in enumerate(script):
                await getattr(self, what, self.operate)(served, which, pattern(size, number) if size else what)
                self.found.append([each[1:] for each in self.servers(served)])  # a reactor's word of states comes later
            await self.all_is_told(served)
            await until(lambda: has_told_all(served))
            self.found.append(self.servers(served))
            ended = len(served.closed)
        told = [self.told(record) for record in served.closed]
        # Those that the stop ended have no order; the last client may not have its answer.
        self.found += [told[:ended], sorted(each for each in told[ended:] if each[0] != -1)]
        for client in self.clients:
            client.close()
        return self.found

    async def all_is_told(self, served: Served) -> None:
        """What reactors tell comes in order: with the word of one more client, all that came before it is known."""
        with Party("127.0.0.77") as last:
            last.send(b"the last", self.front)
            await until(
                lambda: any(each.client_port == last.address[1] for each in (*served.opened, *served.closed)),
                "the word of the last client",
            )

    def told(self, record: SessionRecord) -> tuple[Any, ...]:
        ports = [client.address[1] for client in self.clients]
        number = ports.index(record.client_port) if record.client_port in ports else -1
        names = {"": -1, **{self.name(at): at for at in range(SERVERS)}}
        assert record.ending is not None
        tries = [(names[each.server], each.errno) for each in record.tries]
        return (
            number,
            record.ending.value,
            record.group,
            names[record.server],
            tries,
            record.bytes_up,
            record.bytes_down,
        )

    def servers(self, served: Served) -> list[tuple[object, ...]]:
        (group,) = served.forwarder.upstreams()
        return [(each.state, each.live, each.selected, each.failed) for each in group.servers]

    async def ask(self, served: Served, which: int, data: bytes) -> None:
        """A client asks: it has an answer, or no session."""
        client = self.clients[which]
        lost = served.forwarder.stats().datagrams_lost
        client.send(data, self.front)
        answer = asyncio.ensure_future(client.receive())
        await until(lambda: answer.done() or served.forwarder.stats().datagrams_lost > lost)
        if answer.done():
            self.found.append(answer.result()[0] == data)
        else:
            answer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await answer

    async def operate(self, served: Served, which: int, word: Any) -> None:
        served.forwarder.set_server("dns", self.name(which), state=word)
        (group,) = served.forwarder.upstreams()
        if group.servers[which].state.value == "maint":
            await until(lambda: served.forwarder.upstreams()[0].servers[which].live == 0)

    async def silence(self, served: Served, _which: int, data: bytes) -> None:
        """A new client whose first question has no answer goes on to another server with the second one."""
        client = Party()
        self.clients.append(client)
        lost = served.forwarder.stats().datagrams_lost
        client.send(UNANSWERED, self.front)
        loop = asyncio.get_running_loop()
        later = loop.time() + 2 * SILENCE_S

        def has_session() -> bool:
            return any(each.client_port == client.address[1] for each in served.forwarder.sessions())

        await until(lambda: has_session() or served.forwarder.stats().datagrams_lost > lost)
        if not has_session():
            return
        await until(lambda: loop.time() > later)
        ends = len(served.closed)
        await self.ask(served, len(self.clients) - 1, data)
        await until(lambda: Ending.UPSTREAM_SILENT in [record.ending for record in served.closed[ends:]])

    async def reload(self, served: Served, which: int, _data: object) -> None:
        self.balance = BALANCES[which]
        await served.forwarder.reload(parse_config(self.text()))

    async def bound(self, served: Served, which: int, _data: object) -> None:
        self.room = which
        await served.forwarder.reload(parse_config(self.text()))


async def both(script: list[tuple[str, int, int]]) -> tuple[list[Any], list[Any]]:
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setattr(silence, "SILENCE_S", SILENCE_S)
        servers = [stack.enter_context(echo(mute=UNANSWERED)) for _ in range(SERVERS)]
        ports = [server.address[1] for server in servers]
        return await Story("native", ports).play(script), await Story("python", ports).play(script)


@pytest.mark.skipif(bool(available()), reason="the extension is not built")
@settings(deadline=None, max_examples=20, derandomize=not os.environ.get("SOAK_SECONDS"))
@given(st.lists(steps, min_size=1, max_size=12))
def test_the_lanes_tell_the_same_story_of_servers(script: list[tuple[str, int, int]]) -> None:
    native, python = asyncio.run(both(script))
    assert native == python
