"""Both lanes do the same, and a rule that changes lanes does so at once."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oinetd import Ending, SessionRecord, parse_config
from oinetd.lanes.native.plane import available
from oinetd.upstream import silence
from tests.daemon.process import own_address
from tests.peers import free_port, pattern, until
from tests.udp.rig import Party, Served, echo, name_service, serving

native = pytest.mark.skipif(bool(available()), reason="the extension is not built")

CLIENTS = 4
REVOKED = 3
"""The client with an address of its own, which some reloads deny."""
UNANSWERED = b"??"
"""What the upstreams do not answer; of a length that no question of a story has."""
SILENCE_S = 0.02
steps = st.one_of(
    st.tuples(st.just("ask"), st.integers(0, CLIENTS - 1), st.sampled_from([0, 1, 64, 1400, 3000])),
    st.tuples(st.just("refuse"), st.just(0), st.just(0)),
    st.tuples(st.just("kill"), st.integers(0, 2), st.just(0)),
    st.tuples(st.just("reload"), st.integers(0, 1), st.just(0)),
    st.tuples(st.just("revoke"), st.integers(0, 1), st.just(0)),
    st.tuples(st.just("linger"), st.integers(0, CLIENTS - 2), st.just(64)),
    st.tuples(st.just("silence"), st.just(0), st.just(64)),
)


def told(records: list[SessionRecord], names: dict[tuple[str, int], int]) -> list[Any]:
    return [
        (
            names.get((record.client, record.client_port), -1), record.ending and record.ending.value, record.errno,
            record.relay,
            record.bytes_up, record.bytes_down, record.datagrams_up, record.datagrams_down, record.datagrams_lost,
        )
        for record in records
    ]  # fmt: skip


def has_told_all(served: Served) -> bool:
    stats = served.forwarder.stats()
    return len(served.opened) == stats.accepted - stats.refused and len(served.closed) == stats.accepted - stats.live


class Story:
    """A forwarder with places for three clients, and what came of a script: answers, records, counters."""

    def __init__(self, engine: str, port: int) -> None:
        self.engine = engine
        self.front = own_address(), 8000
        self.rule = f"{self.front[0]} 8000/udp two.example {port}/udp\ndeny 127.0.0.2\n"
        self.refused = Party("127.0.0.2")
        self.clients = [Party("127.0.0.3" if number == REVOKED else "127.0.0.1") for number in range(CLIENTS)]
        self.found: list[Any] = []
        self.revoked = False
        self.told: set[Party] = set()
        self.denials = 0

    def text(self, places: int = 3) -> str:
        deny = "deny 127.0.0.3\n" if self.revoked else ""
        return f"engine {self.engine}\nmax-udp-sessions {places}\n{self.rule}{deny}"

    async def play(self, script: list[tuple[str, int, int]]) -> list[Any]:
        async with serving(self.text()) as served:
            for number, (what, which, size) in enumerate(script):
                await getattr(self, what)(served, which, pattern(size, number))
            names = {client.address: number for number, client in enumerate(self.clients)}
            self.found.append(told(served.forwarder.sessions(), names))
            await self.clients[0].ask(b"the last", self.front)  # all that came before it was seen
            served.forwarder.sessions()  # a reactor answers this once it has counted what it sent
            await until(lambda: has_told_all(served))
            stats = served.forwarder.stats()
            self.found.append((stats.live, stats.datagrams_up, stats.datagrams_down, stats.datagrams_lost))
            before = len(served.closed)
        self.found += [told(served.closed[:before], names), sorted(told(served.closed[before:], names))]
        self.found.append([names[record.client, record.client_port] for record in served.opened])
        for client in (*self.clients, self.refused):
            client.close()
        return self.found

    async def ask(self, served: Served, which: int, data: bytes) -> None:
        assert data != UNANSWERED
        if which == REVOKED and self.revoked:
            await self._denied(served, self.clients[which])
        else:
            self.found.append(await self.clients[which].ask(data, self.front))

    async def refuse(self, served: Served, _which: int, _data: bytes) -> None:
        await self._denied(served, self.refused)

    async def _denied(self, served: Served, client: Party) -> None:
        lost = served.forwarder.stats().datagrams_lost
        client.send(b"x", self.front)
        await until(lambda: served.forwarder.stats().datagrams_lost > lost)
        self.denials += client not in self.told
        self.told.add(client)
        await until(lambda: [each.ending for each in served.closed].count(Ending.DENIED) == self.denials)

    async def reload(self, served: Served, which: int, _data: bytes) -> None:
        """With fewer places some sessions end."""
        await served.forwarder.reload(parse_config(self.text(3 - which)))
        self.told.clear()

    async def revoke(self, served: Served, which: int, data: bytes) -> None:
        """A client is denied, or no more."""
        self.revoked = bool(which)
        await self.reload(served, 0, data)

    async def linger(self, served: Served, which: int, data: bytes) -> None:
        """The rule goes; clients that have a session keep it until the rule is there again."""
        await served.forwarder.reload(parse_config(""))
        port = self.clients[which].address[1]
        if any(each.client_port == port for each in served.forwarder.sessions()):
            self.found.append(await self.clients[which].ask(data, self.front))
        await self.reload(served, 0, data)

    async def kill(self, served: Served, which: int, _data: bytes) -> None:
        if which < len(live := served.forwarder.sessions()):
            self.found.append(served.forwarder.kill(live[which].id))
            gone = live[which].id
            await until(lambda: all(each.id != gone for each in served.forwarder.sessions()))

    async def silence(self, served: Served, _which: int, data: bytes) -> None:
        """A new client whose first question nobody answers goes on to the other address with the second one."""
        client = Party()
        self.clients.append(client)
        ends = len(served.closed)
        client.send(UNANSWERED, self.front)
        loop = asyncio.get_running_loop()
        later = loop.time() + 2 * SILENCE_S
        await until(lambda: loop.time() > later)
        await until(lambda: any(each.client_port == client.address[1] for each in served.forwarder.sessions()))
        self.found.append(await client.ask(data, self.front))
        await until(lambda: Ending.UPSTREAM_SILENT in [record.ending for record in served.closed[ends:]])


async def story(engine: str, script: list[tuple[str, int, int]]) -> list[Any]:
    with pytest.MonkeyPatch.context() as patch, echo("127.0.0.4", mute=UNANSWERED) as upstream:
        patch.setattr(silence, "SILENCE_S", SILENCE_S)
        name_service(patch, "127.0.0.4", "127.0.0.5")
        with echo("127.0.0.5", upstream.address[1], mute=UNANSWERED):
            return await Story(engine, upstream.address[1]).play(script)


@native
# The same stories in each ordinary run; with SOAK_SECONDS others each time.
@settings(deadline=None, max_examples=40, derandomize=not os.environ.get("SOAK_SECONDS"))
@given(st.lists(steps, min_size=1, max_size=20))
def test_the_lanes_tell_the_same_story(script: list[tuple[str, int, int]]) -> None:
    assert asyncio.run(story("native", script)) == asyncio.run(story("python", script))


@native
async def test_the_lane_is_chosen_as_for_tcp(caplog: pytest.LogCaptureFixture) -> None:
    async def admit(record: SessionRecord) -> bool:
        return True

    caplog.set_level(logging.INFO, "oinetd")
    rule = "127.0.0.1 0/udp 127.0.0.1 9/udp"
    async with serving(f"{rule}\n{rule} [engine=native]\n{rule} [engine=python]\n127.0.0.1 0/udp 127.0.0.1 9/tcp\n"):
        said = [message for message in caplog.messages if message.startswith("listening on ")]
        assert all("/udp, forwarding to " in message for message in said)
        chosen = [message.rpartition("(")[2] for message in said]
    assert chosen == [
        "native lane: default)",
        "native lane: asked for)",
        "Python lane, python engine: asked for)",
        "Python lane, python engine: it serves rules between UDP and TCP)",
    ]
    caplog.clear()
    async with Served(rule + "\n", admit=admit).forwarder:
        assert any(
            message.endswith("(Python lane, python engine: the program has an admit hook)")
            for message in caplog.messages
        )


@native
@pytest.mark.parametrize(("before", "after"), [("python", "native"), ("native", "python")])
async def test_a_reload_changes_the_lane(before: str, after: str) -> None:
    front = own_address()
    with echo() as upstream, Party() as client:
        rule = f"{front} 8000/udp 127.0.0.1 {upstream.address[1]}/udp\n"
        async with serving(f"engine {before}\n{rule}") as served:
            await client.ask(b"x", (front, 8000))
            await served.forwarder.reload(parse_config(f"engine {after}\n{rule}"))
            await served.has_told(closed=1)
            assert [(record.ending, record.engine) for record in served.closed] == [(Ending.ABORTED, before)]
            assert await client.ask(b"y", (front, 8000)) == b"y"
            (record,) = served.forwarder.sessions()
            assert record.engine == after


@native
@pytest.mark.parametrize(("before", "after"), [("python", "native"), ("native", "python")])
async def test_a_rule_that_lingers_comes_back_in_the_other_lane(before: str, after: str) -> None:
    front = own_address()
    with echo() as upstream, Party() as client:
        rule = f"{front} 8000/udp 127.0.0.1 {upstream.address[1]}/udp\n"
        async with serving(f"engine {before}\n{rule}") as served:
            await client.ask(b"x", (front, 8000))
            await served.forwarder.reload(parse_config(""))
            assert await client.ask(b"still there", (front, 8000)) == b"still there"
            await served.forwarder.reload(parse_config(f"engine {after}\n{rule}"))
            assert await client.ask(b"y", (front, 8000)) == b"y"
            assert [record.engine for record in served.forwarder.sessions()] == [after]


@native
@pytest.mark.parametrize(("before", "after"), [("python", "auto"), ("auto", "python")])
async def test_a_reload_changes_the_batch(before: str, after: str) -> None:
    """In the Python lane, where sessions live on: the same client is known by another key."""

    async def admit(record: SessionRecord) -> bool:
        return True

    front, port = own_address(), free_port()
    with echo() as upstream, Party() as client, Party("::1") as six:
        rules = "".join(f"{host} {port}/udp 127.0.0.1 {upstream.address[1]}/udp\n" for host in (front, "::"))
        served = Served(f"engine {before}\n{rules}", admit=admit)
        async with served.forwarder:
            for text in (f"engine {after}\n{rules}", f"engine {before}\n{rules}"):
                assert await client.ask(b"x", (front, port)) == b"x"
                assert await six.ask(b"y", ("::1", port)) == b"y"
                await served.forwarder.reload(parse_config(text))
            for size in (1, 1400, 65507):
                assert await client.ask(pattern(size), (front, port)) == pattern(size)
            assert (len(served.opened), len(served.closed)) == (2, 0)


async def test_a_refusal_told_amid_a_batch_harms_nobody(engine: str) -> None:
    """Sending for the first of two clients fails while the datagrams of the second wait in the same batch."""
    front = own_address()
    with Party() as upstream, Party() as one, Party() as other:
        async with serving(f"{engine}{front} 8000/udp 127.0.0.1 {upstream.address[1]}/udp\n") as served:
            for client in (one, other):
                client.send(b"hello", (front, 8000))
                await upstream.receive()
            upstream.close()
            for size in range(1, 11):  # no two alike: each is sent by itself
                for client in (one, other):
                    client.send(bytes(size), (front, 8000))
            await served.has_told(closed=2)
            assert [record.ending for record in served.closed[:2]] == [Ending.UPSTREAM_RESET] * 2
            assert {record.client_port for record in served.closed[:2]} == {one.address[1], other.address[1]}
