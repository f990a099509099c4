"""udp to udp through a forwarder: boundaries, sessions and their ends, addresses."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oinetd import Ending, Forwarder, SessionRecord, parse_config
from tests.daemon.process import own_address
from tests.peers import free_port, pattern, until
from tests.udp.rig import Party, Served, echo, no_descriptor_left, serving


async def test_every_datagram_is_one_datagram(engine: str) -> None:
    with echo() as upstream, Party() as client:
        async with serving(f"{engine}127.0.0.1 0/udp 127.0.0.1 {upstream.address[1]}/udp\n") as served:
            for size in (5, 0, 1, 1400, 1473, 65507, 0, 3):
                data = pattern(size)
                assert await client.ask(data, served.address) == data
            (record,) = served.forwarder.sessions()
            assert (record.datagrams_up, record.datagrams_down, record.datagrams_lost) == (8, 8, 0)
            assert record.bytes_up == record.bytes_down == 5 + 1 + 1400 + 1473 + 65507 + 3
            assert record.upstream_port == upstream.address[1]


@settings(deadline=None, max_examples=20)
@given(st.lists(st.sampled_from([0, 1, 64, 65, 1400]) | st.integers(0, 3000), min_size=1, max_size=60))
def test_bursts_arrive_in_order(sizes: list[int]) -> None:
    async def run() -> None:
        sent = [pattern(size, index) for index, size in enumerate(sizes)]
        with echo() as upstream, Party() as client:
            async with serving(f"127.0.0.1 0/udp 127.0.0.1 {upstream.address[1]}/udp\n") as served:
                for data in sent:
                    client.send(data, served.address)
                assert [(await client.receive())[0] for _ in sent] == sent

    asyncio.run(run())


async def test_the_first_datagram_is_the_first(engine: str) -> None:
    with Party() as upstream, Party() as client:
        async with serving(f"{engine}127.0.0.1 0/udp 127.0.0.1 {upstream.address[1]}/udp\n") as served:
            client.send(b"first", served.address)
            assert (await upstream.receive())[0] == b"first"
            assert upstream.pending() == []


async def test_a_session_keeps_its_port_and_others_have_theirs(engine: str) -> None:
    with Party() as upstream, Party() as one, Party() as other:
        async with serving(f"{engine}127.0.0.1 0/udp 127.0.0.1 {upstream.address[1]}/udp\n") as served:
            ports = []
            for client in (one, other, one, other):
                client.send(b"x", served.address)
                ports.append((await upstream.receive())[1][1])
            assert ports[:2] == ports[2:]
            assert ports[0] != ports[1]


async def test_the_upstream_may_send_whenever_it_likes(engine: str) -> None:
    with Party() as upstream, Party() as client:
        async with serving(f"{engine}127.0.0.1 0/udp 127.0.0.1 {upstream.address[1]}/udp\n") as served:
            client.send(b"x", served.address)
            _, session = await upstream.receive()
            for index in range(100):
                upstream.send(b"%d" % index, session)
            assert [(await client.receive())[0] for _ in range(100)] == [b"%d" % index for index in range(100)]


async def test_silence_ends_a_session(engine: str) -> None:
    with echo() as upstream, Party() as client:
        rule = f"127.0.0.1 0/udp 127.0.0.1 {upstream.address[1]}/udp [timeout=0.1]\n"
        async with serving(engine + rule) as served:
            await client.ask(b"hello", served.address)
            await until(lambda: served.closed)
            (record,) = served.closed
            assert record.ending is Ending.IDLE_TIMEOUT
            assert (record.bytes_up, record.bytes_down) == (5, 5)
            assert served.forwarder.sessions() == []
            assert await client.ask(b"again", served.address) == b"again"
            await served.has_told(opened=2)
            assert [opened.id for opened in served.opened] == [1, 2]


async def test_nobody_listens(engine: str) -> None:
    back = own_address()
    with Party() as client:
        async with serving(f"{engine}127.0.0.1 0/udp {back} 7000/udp\n") as served:
            client.send(b"x", served.address)
            await until(lambda: served.closed)
            assert (served.closed[0].ending, served.closed[0].errno) == (Ending.UPSTREAM_RESET, errno.ECONNREFUSED)
            (stats,) = served.forwarder.stats().rules.values()
            assert stats.endings == {Ending.UPSTREAM_RESET: 1}
            with echo(back, 7000):
                assert await client.ask(b"now", served.address) == b"now"


async def test_what_came_before_the_refusal_arrives(engine: str) -> None:
    with Party() as client, Party() as upstream:
        text = f"{engine}127.0.0.1 0/udp 127.0.0.1 {upstream.address[1]}/udp\n"
        async with serving(text) as served:
            client.send(b"x", served.address)
            _, session = await upstream.receive()
            for index in range(5):
                upstream.send(b"%d" % index, session)
            upstream.close()
            client.send(b"to nobody", served.address)
            assert [(await client.receive())[0] for _ in range(5)] == [b"%d" % index for index in range(5)]
            await until(lambda: served.closed)
            assert served.closed[0].datagrams_down == 5


async def test_the_least_recently_heard_of_makes_room(engine: str) -> None:
    with echo() as upstream, Party() as one, Party() as two, Party() as three:
        rule = f"127.0.0.1 0/udp 127.0.0.1 {upstream.address[1]}/udp\n"
        async with serving(f"{engine}max-udp-sessions 2\n{rule}") as served:
            await one.ask(b"1", served.address)
            await two.ask(b"2", served.address)
            await one.ask(b"1", served.address)
            await three.ask(b"3", served.address)
            await served.has_told(closed=1)
            assert [(record.ending, record.client_port) for record in served.closed] == [
                (Ending.DISPLACED, two.address[1])
            ]
            await two.ask(b"2", served.address)
            await served.has_told(closed=2)
            assert [record.client_port for record in served.closed] == [two.address[1], one.address[1]]
            assert len(served.forwarder.sessions()) == 2


@pytest.mark.parametrize("answers", [False, True])
async def test_a_flood_of_one_rule_takes_no_session_of_another(engine: str, answers: bool) -> None:
    """Of clients that never get an answer, nor of those that do."""
    with echo() as upstream, echo() as open_echo, Party() as silent, Party() as known:
        flooded = open_echo if answers else silent
        rules = "".join(f"127.0.0.1 0/udp 127.0.0.1 {party.address[1]}/udp\n" for party in (upstream, flooded))
        async with serving(f"{engine}max-udp-sessions 10\n{rules}") as served:
            quiet, flood = [(address.host, address.port) for address in served.forwarder.addresses]
            await known.ask(b"1", quiet)
            with contextlib.ExitStack() as strangers:  # all of them stay: a port that is used again is no new client
                for number in range(100):
                    stranger = strangers.enter_context(Party())
                    if answers:
                        await stranger.ask(b"%d" % number, flood)
                    else:
                        stranger.send(b"%d" % number, flood)
                        await silent.receive()
            await known.ask(b"2", quiet)
            await served.has_told(opened=101, closed=91)  # the last one's place is free before it begins
            assert known.address[1] not in [record.client_port for record in served.closed]
            assert len(served.opened) == 101


async def test_a_rule_displaces_its_own(engine: str) -> None:
    with echo() as upstream, Party() as one, Party() as two, Party() as three:
        port = upstream.address[1]
        bound = f"127.0.0.1 0/udp 127.0.0.1 {port}/udp [max-connections=1]\n"
        async with serving(f"{engine}127.0.0.1 0/udp 127.0.0.1 {port}/udp\n{bound}") as served:
            free, narrow = [(address.host, address.port) for address in served.forwarder.addresses]
            await one.ask(b"1", free)
            await two.ask(b"2", narrow)
            await three.ask(b"3", narrow)
            await served.has_told(closed=1)
            assert [record.client_port for record in served.closed] == [two.address[1]]
            assert {record.client_port for record in served.forwarder.sessions()} == {
                one.address[1],
                three.address[1],
            }


async def test_a_source_has_a_bound(engine: str) -> None:
    with echo() as upstream, Party() as one, Party() as two, Party("127.0.0.2") as elsewhere:
        rule = f"127.0.0.1 0/udp 127.0.0.1 {upstream.address[1]}/udp [max-connections-per-source=1]\n"
        async with serving(engine + rule) as served:
            await one.ask(b"1", served.address)
            for _ in range(3):
                two.send(b"2", served.address)
            await elsewhere.ask(b"3", served.address)
            assert two.pending() == []
            await served.has_told(opened=2, closed=1)
            assert [record.ending for record in served.closed] == [Ending.LIMITED]
            (stats,) = served.forwarder.stats().rules.values()
            assert (stats.live, stats.refused, stats.datagrams_lost) == (2, 1, 3)


@pytest.mark.parametrize(
    ("access", "ending"), [("deny 127.0.0.2\n", Ending.DENIED), ("allow 127.0.0.1\n", Ending.NOT_ALLOWED)]
)
async def test_the_refused_are_told_of_once(engine: str, access: str, ending: Ending) -> None:
    with echo() as upstream, Party() as good, Party("127.0.0.2") as bad, Party("127.0.0.2") as bad_too:
        rule = f"127.0.0.1 0/udp 127.0.0.1 {upstream.address[1]}/udp\n"
        async with serving(engine + rule + access) as served:
            for _ in range(3):
                for client in (bad, bad_too):
                    client.send(b"x", served.address)
            assert await good.ask(b"hello", served.address) == b"hello"
            await served.has_told(opened=1, closed=1)
            assert [(record.client, record.ending) for record in served.closed] == [("127.0.0.2", ending)]
            assert bad.pending() == bad_too.pending() == []
            assert served.forwarder.stats().datagrams_lost == 6
            assert len(served.opened) == 1


async def test_answers_leave_from_where_the_client_wrote_to(engine: str) -> None:
    with echo() as upstream, Party("127.0.0.1") as client, Party("::1") as six:
        port = upstream.address[1]
        text = f"{engine}0.0.0.0 0/udp 127.0.0.1 {port}/udp\n:: 0/udp 127.0.0.1 {port}/udp\n"
        async with serving(text) as served:
            for bound in served.forwarder.addresses:
                for host in ("127.0.0.1", "127.0.0.2", "127.9.8.7"):
                    assert await client.ask(host.encode(), (host, bound.port)) == host.encode()
            assert await six.ask(b"six", ("::1", served.forwarder.addresses[1].port)) == b"six"
            # To the client these are sessions of their own: an answer never leaves from the other's address.
            assert len(served.forwarder.sessions()) == 7
            assert {record.client for record in served.forwarder.sessions()} == {"127.0.0.1", "::1"}


async def test_both_wildcards_side_by_side(engine: str) -> None:
    with echo() as upstream, Party() as four, Party("::1") as six:
        port, to = free_port(), f"127.0.0.1 {upstream.address[1]}/udp"
        async with serving(f"{engine}0.0.0.0 {port}/udp {to}\n:: {port}/udp {to}\n") as served:
            assert await four.ask(b"four", ("127.0.0.1", port)) == b"four"
            assert await six.ask(b"six", ("::1", port)) == b"six"
            await served.has_told(opened=2)
            assert [str(record.route.bind.host) for record in served.opened] == ["0.0.0.0", "::"]


async def test_ipv6_upstream_names_and_ranges(engine: str) -> None:
    with echo("::1") as six, Party() as client:
        text = f"{engine}127.0.0.1 0/udp ::1 {six.address[1]}/udp\nlocalhost 0/udp localhost {six.address[1]}/udp\n"
        async with serving(text) as served:
            assert await client.ask(b"six", served.address) == b"six"
    front, back = own_address(), own_address()
    with echo(back, 7000) as one, echo(back, 7001) as two, Party() as client:
        async with serving(f"{engine}{front} 8000-8001/udp {back} 7000-7001/udp\n") as served:
            assert await client.ask(b"first", (front, 8000)) == b"first"
            assert await client.ask(b"second", (front, 8001)) == b"second"
            ports = [record.upstream_port for record in served.forwarder.sessions()]
            assert ports == [one.address[1], two.address[1]]


async def test_the_source_address(engine: str) -> None:
    with Party() as upstream, Party() as client:
        rule = f"127.0.0.1 0/udp 127.0.0.1 {upstream.address[1]}/udp [src=127.0.0.3]\n"
        async with serving(engine + rule) as served:
            client.send(b"x", served.address)
            assert (await upstream.receive())[1][0] == "127.0.0.3"


async def test_a_source_address_that_is_not_ours(engine: str) -> None:
    with Party() as upstream, Party() as client:
        rule = f"127.0.0.1 0/udp 127.0.0.1 {upstream.address[1]}/udp [src=192.0.2.1]\n"
        async with serving(engine + rule) as served:
            for _ in range(3):
                client.send(b"x", served.address)
            await until(lambda: served.forwarder.stats().datagrams_lost == 3)
            await served.has_told(closed=1)
            assert [record.ending for record in served.closed] == [Ending.BIND_FAILED]
            assert (served.forwarder.stats().failed, upstream.pending()) == (1, [])
            assert served.forwarder.sessions() == []


async def test_kill(engine: str) -> None:
    with echo() as upstream, Party() as client:
        async with serving(f"{engine}127.0.0.1 0/udp 127.0.0.1 {upstream.address[1]}/udp\n") as served:
            await client.ask(b"x", served.address)
            (record,) = served.forwarder.sessions()
            assert served.forwarder.kill(record.id)
            await served.has_told(closed=1)
            assert not served.forwarder.kill(record.id)
            assert [closed.ending for closed in served.closed] == [Ending.ABORTED]
            assert await client.ask(b"y", served.address) == b"y"


async def test_a_hook_that_kills_at_once(engine: str) -> None:
    with Party() as upstream, Party() as client:
        text = f"{engine}127.0.0.1 0/udp 127.0.0.1 {upstream.address[1]}/udp\n"
        closed: list[SessionRecord] = []
        forwarder = Forwarder(
            parse_config(text), on_open=lambda record: forwarder.kill(record.id), on_close=closed.append
        )
        async with forwarder:
            client.send(b"x", (forwarder.addresses[0].host, forwarder.addresses[0].port))
            await until(lambda: closed)
            assert forwarder.sessions() == []
            assert closed[0].ending is Ending.ABORTED
            if closed[0].engine != "native":  # a reactor does not wait for hooks
                assert upstream.pending() == []


async def test_admit_is_waited_for(engine: str) -> None:
    asked: list[SessionRecord] = []
    go_on = asyncio.Event()

    async def admit(record: SessionRecord) -> bool:
        asked.append(record)
        await go_on.wait()
        return record.client == "127.0.0.1"

    with echo() as upstream, Party() as good, Party("127.0.0.2") as bad:
        text = f"{engine}127.0.0.1 0/udp 127.0.0.1 {upstream.address[1]}/udp\n"
        closed: list[SessionRecord] = []
        async with Forwarder(parse_config(text), admit=admit, on_close=closed.append) as forwarder:
            to = (forwarder.addresses[0].host, forwarder.addresses[0].port)
            for index in range(5):
                good.send(b"%d" % index, to)
                bad.send(b"%d" % index, to)
            await until(lambda: len(asked) == 2)
            go_on.set()
            assert [(await good.receive())[0] for _ in range(5)] == [b"%d" % index for index in range(5)]
            await until(lambda: closed)
            assert [record.ending for record in closed] == [Ending.NOT_ALLOWED]
            assert bad.pending() == []


async def test_what_waits_for_admit_is_bounded(engine: str) -> None:
    async def admit(record: SessionRecord) -> bool:
        await asyncio.Event().wait()
        return True

    with Party() as upstream, Party() as client:
        text = f"{engine}127.0.0.1 0/udp 127.0.0.1 {upstream.address[1]}/udp\n"
        async with Forwarder(parse_config(text), admit=admit) as forwarder:
            to = (forwarder.addresses[0].host, forwarder.addresses[0].port)
            for _ in range(20):
                client.send(bytes(10_000), to)
            await until(lambda: forwarder.sessions() and forwarder.sessions()[0].datagrams_lost == 7)


async def test_ten_times_as_many_clients_as_sessions(engine: str) -> None:
    """One socket writes to 2,000 addresses of ours: to the forwarder these are 2,000 clients."""
    with Party() as upstream, Party() as client:
        rule = f"0.0.0.0 0/udp 127.0.0.1 {upstream.address[1]}/udp\n"
        async with serving(f"{engine}max-udp-sessions 200\n{rule}") as served:
            for index in range(2000):
                client.send(b"%d" % index, (f"127.1.{index // 250}.{index % 250 + 1}", served.port))
                assert (await upstream.receive())[0] == b"%d" % index
            assert len(served.forwarder.sessions()) == 200
            await served.has_told(closed=1800)
            assert len(served.closed) == 1800
            assert {record.ending for record in served.closed} == {Ending.DISPLACED}


async def test_no_descriptor_is_left(engine: str) -> None:
    """The session that has been silent for longest gives its own."""
    with echo() as upstream, Party() as one, Party() as other:
        async with serving(f"{engine}127.0.0.1 0/udp 127.0.0.1 {upstream.address[1]}/udp\n") as served:
            await one.ask(b"x", served.address)
            with no_descriptor_left():
                assert await other.ask(b"y", served.address) == b"y"
            await served.has_told(closed=1)
            assert [record.ending for record in served.closed] == [Ending.DISPLACED]


async def test_events_come_in_pairs(engine: str) -> None:
    """A client that is let in and whose destination fails has both, one that is refused has its end alone."""
    with Party("127.0.0.1") as client, Party("127.0.0.2") as denied:
        async with serving(f"{engine}127.0.0.1 0/udp ::1 9/udp [src=127.0.0.1]\ndeny 127.0.0.2\n") as served:
            client.send(b"x", served.address)
            await served.has_told(opened=1, closed=1)
            assert served.opened[0].id == served.closed[0].id
            assert served.closed[0].ending is Ending.BIND_FAILED
            denied.send(b"x", served.address)
            await served.has_told(closed=2)
            assert (len(served.opened), served.closed[1].ending) == (1, Ending.DENIED)
            stats = served.forwarder.stats()
            assert (stats.live, stats.accepted, stats.failed, stats.refused) == (0, 2, 1, 1)


async def test_events_come_in_pairs_without_a_descriptor(engine: str) -> None:
    with echo() as upstream, Party() as client:
        async with serving(f"{engine}127.0.0.1 0/udp 127.0.0.1 {upstream.address[1]}/udp\n") as served:
            with no_descriptor_left():
                client.send(b"x", served.address)
                await served.has_told(opened=1, closed=1)
            assert served.opened[0].id == served.closed[0].id
            assert (served.closed[0].ending, served.closed[0].errno) == (Ending.SOCKET_FAILED, errno.EMFILE)


async def test_events_come_in_pairs_for_those_killed_early() -> None:
    """A program that thinks about a client, and kills it meanwhile."""
    thinking = asyncio.Event()

    async def admit(_: SessionRecord) -> bool:
        thinking.set()
        await asyncio.get_running_loop().create_future()
        return True

    with Party() as client:
        served = Served("127.0.0.1 0/udp 127.0.0.1 9/udp\n", admit=admit)
        async with served.forwarder:
            client.send(b"x", served.address)
            await thinking.wait()
            served.forwarder.kill(served.forwarder.sessions()[0].id)
            await served.has_told(closed=1)
            assert [record.id for record in served.opened] == [record.id for record in served.closed]


async def test_the_next_address_after_a_refusal(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from oinetd.net import resolver
    from oinetd.net.sockets import Address

    def both(host: str, port: int = 0) -> tuple[Address, ...]:
        return tuple(Address(socket.AF_INET, (each, port)) for each in ("127.0.0.4", "127.0.0.5"))

    monkeypatch.setattr(resolver, "lookup", both)
    with echo("127.0.0.5") as upstream, Party() as client:
        async with serving(f"{engine}127.0.0.1 0/udp two.example {upstream.address[1]}/udp\n") as served:
            client.send(b"x", served.address)
            await until(lambda: served.closed)
            assert await client.ask(b"y", served.address) == b"y"
            (live,) = served.forwarder.sessions()
            assert [served.closed[0].upstream, live.upstream] == ["127.0.0.4", "127.0.0.5"]


async def test_what_nobody_can_serve_is_an_error() -> None:
    from oinetd import EngineUnavailable

    served = Served("127.0.0.1 0/udp 127.0.0.1 9/tcp [engine=native]\n")
    with pytest.raises(EngineUnavailable, match="from udp to tcp"):
        await served.forwarder.start()
