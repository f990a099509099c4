"""A destination that does not answer over UDP: its clients are led to another of its addresses, if there is one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from oinetd import Ending, parse_config
from oinetd.upstream import destination, silence
from tests.daemon.process import own_address
from tests.peers import until
from tests.udp import network
from tests.udp.rig import Party, Served, echo, name_service, serving

FIRST, SECOND, THIRD = "127.0.0.4", "127.0.0.5", "127.0.0.6"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "SILENCE_S", 0.02)
    monkeypatch.setattr(destination, "LOOKUP_PAUSE_S", 0.0)


class Asker(Party):
    """A client that numbers its questions."""

    asked = 0

    def ask_once(self, to: tuple[str, int]) -> None:
        self.send(b"%d" % self.asked, to)
        self.asked += 1

    async def ask_until(self, to: tuple[str, int], condition: Callable[[], Any]) -> None:
        """Ask every few milliseconds until it is so."""

        def asked() -> Any:
            self.ask_once(to)
            return condition()

        await until(asked)

    async def ask_until_answered(self, to: tuple[str, int]) -> None:
        await self.ask_until(to, self.pending)


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Party, Party]]:
    """Both addresses of every name; nobody answers there."""
    name_service(monkeypatch, FIRST, SECOND)
    with Party(FIRST) as first, Party(SECOND, first.address[1]) as second:
        yield first, second


def rule_to(party: Party, options: str = "") -> str:
    return f"127.0.0.1 0/udp two.example {party.address[1]}/udp {options}\n"


async def test_the_next_address_after_a_silent_one(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client gets its answer, the next one gets it at once, and the record tells of both sessions."""
    name_service(monkeypatch, FIRST, SECOND)
    with Party(FIRST) as dead, echo(SECOND, dead.address[1]), Asker() as client, Party() as later:
        async with serving(engine + rule_to(dead)) as served:
            await client.ask_until_answered(served.address)
            await served.has_told(opened=2, closed=1)
            (closed,) = served.closed
            assert (closed.ending, closed.errno, closed.upstream) == (Ending.UPSTREAM_SILENT, 0, FIRST)
            assert closed.duration_s > 0.015  # the clock has milliseconds
            (live,) = served.forwarder.sessions()
            assert (live.upstream, live.client_port) == (SECOND, client.address[1])
            assert [record.id for record in served.opened] == [closed.id, live.id]
            for _ in range(4):
                assert await later.ask(b"at once", served.address) == b"at once"
            assert {record.upstream for record in served.forwarder.sessions()} == {SECOND}


async def test_no_datagram_is_lost_between_two_addresses(engine: str, two: tuple[Party, Party]) -> None:
    with Asker() as client:
        async with serving(engine + rule_to(two[0])) as served:
            await client.ask_until(served.address, lambda: served.closed)
            heard: list[bytes] = []

            def hear() -> bool:
                heard.extend(datagram for party in two for datagram in party.pending())
                return len(heard) >= client.asked

            await until(hear)
            assert sorted(map(int, heard)) == list(range(client.asked))
            stats = served.forwarder.stats()
            assert (stats.datagrams_up, stats.datagrams_lost) == (client.asked, 0)


async def test_traffic_in_one_direction_mostly_stays_at_the_first_address(
    engine: str, two: tuple[Party, Party]
) -> None:
    """After a round without an answer the first address has it for sixteen times as long, the others as short."""
    with Asker() as client:
        async with serving(engine + rule_to(two[0])) as served:
            await client.ask_until(served.address, lambda: len(served.closed) == 4)
            assert {record.ending for record in served.closed} == {Ending.UPSTREAM_SILENT}
            first, second = served.closed[0].upstream, served.closed[1].upstream
            assert first != second
            assert [record.upstream for record in served.closed] == [first, second, first, second]
            assert served.closed[2].duration_s > 15 * silence.SILENCE_S  # the clock has milliseconds


async def test_traffic_in_one_direction_to_a_single_address_keeps_its_session(
    engine: str, two: tuple[Party, Party]
) -> None:
    with Party() as single, Asker() as client, Asker() as clock:
        only = f"127.0.0.1 0/udp 127.0.0.1 {single.address[1]}/udp\n"
        async with serving(engine + only + rule_to(two[0])) as served:
            elsewhere = served.forwarder.addresses[1]

            def later() -> bool:
                clock.ask_once((elsewhere.host, elsewhere.port))
                return len(served.closed) == 3

            await client.ask_until(served.address, later)
            assert {record.client_port for record in served.closed} == {clock.address[1]}
            assert client.address[1] in {record.client_port for record in served.forwarder.sessions()}


async def test_an_address_that_has_answered_is_left_after_the_timeout(engine: str, two: tuple[Party, Party]) -> None:
    """Half-duplex protocols are silent for long: the rule's timeout says how long, and `off` is for ever."""
    with Asker() as client, Asker() as other:
        text = rule_to(two[0], "[timeout=0.2]") + rule_to(two[0], "[timeout=off]")
        async with serving(engine + text) as served:
            places = [(bound.host, bound.port) for bound in served.forwarder.addresses]
            for asker, place in zip((client, other), places, strict=True):
                asker.ask_once(place)
                await until(lambda: any(answer(party) for party in two))
                await asker.receive()
            begun = {record.id for record in served.forwarder.sessions()}

            def left() -> bool:
                other.ask_once(places[1])
                return any(record.ending is Ending.UPSTREAM_SILENT for record in served.closed)

            await client.ask_until(places[0], left)
            closed = next(record for record in served.closed if record.ending is Ending.UPSTREAM_SILENT)
            assert (closed.client_port, closed.datagrams_down) == (client.address[1], 1)
            assert closed.duration_s > 0.19
            (kept,) = [each for each in served.forwarder.sessions() if each.client_port == other.address[1]]
            assert kept.id in begun


def answer(party: Party) -> bool:
    """Give one datagram back, if there is one."""
    try:
        data, client = party.sock.recvfrom(100)
    except BlockingIOError:
        return False
    party.sock.sendto(data, client)
    return True


async def test_new_addresses_of_a_name_reach_a_client(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is looked up again because of the silence."""
    name_service(monkeypatch, FIRST)
    with Party(FIRST) as dead, echo(SECOND, dead.address[1]), Asker() as client:
        async with serving(f"{engine}dns-refresh off\n{rule_to(dead)}") as served:
            client.ask_once(served.address)
            await dead.receive()
            name_service(monkeypatch, SECOND)
            await client.ask_until_answered(served.address)
            await served.has_told(closed=1)
            assert [(record.ending, record.upstream) for record in served.closed] == [(Ending.UPSTREAM_SILENT, FIRST)]


async def test_a_reload_reaches_a_client(engine: str) -> None:
    front = own_address()
    with Party() as dead, echo() as alive, Asker() as client:

        def text(party: Party) -> str:
            return f"{engine}{front} 8000/udp 127.0.0.1 {party.address[1]}/udp\n"

        async with serving(text(dead)) as served:
            client.ask_once((front, 8000))
            await dead.receive()
            await served.forwarder.reload(parse_config(text(alive)))
            await client.ask_until_answered((front, 8000))
            await served.has_told(opened=2, closed=1)
            assert [record.ending for record in served.closed] == [Ending.UPSTREAM_SILENT]


async def test_a_rule_that_lingers_begins_no_session(engine: str, two: tuple[Party, Party]) -> None:
    with Asker() as client, Asker() as clock:
        front = own_address()
        gone = f"{front} 8000/udp two.example {two[0].address[1]}/udp\n"
        stays = f"{front} 8001/udp two.example {two[0].address[1]}/udp\n"
        async with serving(engine + gone + stays) as served:
            client.ask_once((front, 8000))
            await served.has_told(opened=1)
            await served.forwarder.reload(parse_config(engine + stays))

            def later() -> bool:
                clock.ask_once((front, 8001))
                return len(served.closed) == 2

            await client.ask_until((front, 8000), later)
            assert {record.client_port for record in served.closed} == {clock.address[1]}


async def test_what_is_said_of_a_silent_address(
    engine: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "oinetd")
    name_service(monkeypatch, FIRST, SECOND)
    with Party(FIRST) as dead, echo(SECOND, dead.address[1]), Asker() as client:
        async with serving(engine + rule_to(dead)) as served:
            await client.ask_until_answered(served.address)
            said = f"destination two.example {dead.address[1]}: {FIRST} does not answer (timed out); 1 address left"
            await until(lambda: said in caplog.messages)


async def test_an_address_that_answers_others_does_not_fail(
    engine: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One client cannot spoil an address for the others by questions that have no answer."""
    monkeypatch.setattr(silence, "SILENCE_S", 0.5)
    name_service(monkeypatch, FIRST, SECOND)
    with Party(FIRST) as choosy, echo(SECOND, choosy.address[1]), Asker() as client, Party() as others:

        def serve() -> None:
            data, place = choosy.sock.recvfrom(100)
            if data == b"good":
                choosy.sock.sendto(data, place)

        asyncio.get_running_loop().add_reader(choosy.sock.fileno(), serve)
        async with serving(engine + rule_to(choosy)) as served:
            client.ask_once(served.address)
            await served.has_told(opened=1)
            for _ in range(2):  # both addresses have turns; this client stays with the choosy one
                await others.ask(b"good", served.address)

            def good() -> list[bytes]:
                others.send(b"good", served.address)
                return client.pending()

            others_at = {each.client_port: each.upstream for each in served.forwarder.sessions()}
            if others_at[others.address[1]] == SECOND:
                with Party() as third:
                    others.sock, third.sock = third.sock, others.sock
                    await others.ask(b"good", served.address)
                    await client.ask_until(served.address, good)
            else:
                await client.ask_until(served.address, good)
            await served.has_told(closed=1)
            assert [record.ending for record in served.closed] == [Ending.UPSTREAM_SILENT]
        asyncio.get_running_loop().remove_reader(choosy.sock.fileno())
    assert not [message for message in caplog.messages if "does not answer" in message]


async def test_every_address_has_its_turn(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name_service(monkeypatch, FIRST, SECOND, THIRD)
    with Party(FIRST) as one, Asker() as client:
        port = one.address[1]
        with Party(SECOND, port), Party(THIRD, port):
            async with serving(engine + rule_to(one)) as served:
                await client.ask_until(served.address, lambda: len(served.closed) == 4)
                upstreams = [record.upstream for record in served.closed]
                assert sorted(upstreams[:3]) == [FIRST, SECOND, THIRD]
                assert upstreams[3] == upstreams[0]


async def test_a_program_that_admits_clients_sees_each_session(two: tuple[Party, Party]) -> None:
    async def admit(_: object) -> bool:
        return True

    with Asker() as client:
        served = Served(rule_to(two[0]), admit=admit)
        async with served.forwarder:
            await client.ask_until(served.address, lambda: len(served.closed) == 2)
            assert {record.ending for record in served.closed} == {Ending.UPSTREAM_SILENT}


async def test_a_connection_goes_on_with_the_next_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """From TCP to UDP the client keeps its connection, and nothing that it sent is lost."""
    name_service(monkeypatch, FIRST, SECOND)
    with Party(FIRST) as dead, echo(SECOND, dead.address[1]):
        async with serving(f"127.0.0.1 0 two.example {dead.address[1]}/udp\n") as served:
            reader, writer = await asyncio.open_connection(*served.address)
            answers = asyncio.ensure_future(reader.read(100))

            def ask() -> bool:
                writer.write(b"x")
                return answers.done()

            await until(ask)
            (live,) = served.forwarder.sessions()
            assert (live.upstream, live.datagrams_lost) == (SECOND, 0)
            assert dead.pending()
            writer.close()
            await writer.wait_closed()
            # The address that was silent is tried last now.
            for _ in range(2):
                reader, writer = await asyncio.open_connection(*served.address)
                writer.write(b"at once")
                assert await reader.read(100) == b"at once"
                writer.close()
                await writer.wait_closed()


async def test_a_connection_to_a_single_address_stays_with_it() -> None:
    with Party() as single:
        async with serving(f"127.0.0.1 0 127.0.0.1 {single.address[1]}/udp\n") as served:
            _, writer = await asyncio.open_connection(*served.address)
            senders: set[tuple[str, int]] = set()
            until_s = asyncio.get_running_loop().time() + 10 * silence.SILENCE_S

            def ask() -> bool:
                writer.write(b"x")
                try:
                    senders.add(single.sock.recvfrom(100)[1])
                except BlockingIOError:
                    return False
                return asyncio.get_running_loop().time() > until_s

            await until(ask)
            assert len(senders) == 1
            writer.close()
            await writer.wait_closed()


def change_address(verb: str, host: str) -> None:
    subprocess.run(["ip", "addr", verb, f"{host}/32", "dev", "lo"], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace needs root")
async def test_a_connection_that_is_not_acknowledged_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """From UDP to TCP: a server whose host has gone is left for the next address, one that only reads is not."""
    with network.own_network():
        for host in ("10.9.8.1", "10.9.8.2"):
            change_address("add", host)
        name_service(monkeypatch, "10.9.8.1", "10.9.8.2")
        taken: dict[str, bytes] = {"10.9.8.1": b"", "10.9.8.2": b""}
        ends: list[asyncio.StreamWriter] = []

        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            ends.append(writer)
            with contextlib.suppress(ConnectionError):
                while piece := await reader.read(100):
                    taken[writer.get_extra_info("sockname")[0]] += piece

        servers = [await asyncio.start_server(take, host, 7000) for host in taken]
        with Asker() as client:
            async with serving("127.0.0.1 0/udp two.example 7000/tcp\n") as served:
                until_s = asyncio.get_running_loop().time() + 10 * silence.SILENCE_S
                await client.ask_until(served.address, lambda: asyncio.get_running_loop().time() > until_s)
                await until(lambda: any(taken.values()))
                assert len(served.opened) == 1
                (live,) = served.forwarder.sessions()
                other = next(host for host in taken if host != live.upstream)
                change_address("del", live.upstream)
                await client.ask_until(served.address, lambda: taken[other])
                await served.has_told(closed=1)
                (closed,) = served.closed
                assert (closed.ending, closed.upstream) == (Ending.UPSTREAM_SILENT, live.upstream)
        for server in servers:
            server.close()
        for end in ends:
            end.transport.abort()
        await asyncio.sleep(0)
