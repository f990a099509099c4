"""What a group counts and bounds: selections return on every path, tries and retries are bounded, checks absolve."""

from __future__ import annotations

import asyncio
import errno
import json

import pytest

from oinetd import Ending, Forwarder, _fastpath
from oinetd.config import parse_config
from oinetd.model import Endpoint
from oinetd.servers import GroupOptions, Server
from oinetd.upstream.destination import Destination
from oinetd.upstream.load import Load, LocalLoad
from oinetd.upstream.member import Member, ServerStatus, State
from oinetd.upstream.selection import RETRIES_MIN, Selection
from tests.forwarding import Seen, bound, echoes, exchange, in_one_loop
from tests.peers import dial, until
from tests.udp.rig import name_service
from tests.upstream.servers import backends, configured, forwarding_to, refusing, silent_listener

in_both_lanes = pytest.mark.parametrize("engine", ["python", "native"])


@in_both_lanes
@in_one_loop
async def test_a_client_tries_five_servers_at_most_and_none_twice(engine: str) -> None:
    seen = Seen()
    lines = "\n".join(f"127.0.0.1 {refusing()}" for _ in range(7)) + "\n[passive=off]"
    async with forwarding_to(lines, engine, on_close=seen.closed.append) as forwarder:
        assert not await echoes(bound(forwarder))
        await until(lambda: seen.closed)
        assert {server.live for server in forwarder.upstreams()[0].servers} == {0}
    (record,) = seen.closed
    assert record.ending is Ending.CONNECT_FAILED
    assert len({each.server for each in record.tries}) == len(record.tries) == 5
    assert {each.errno for each in record.tries} == {errno.ECONNREFUSED}


@in_both_lanes
@in_one_loop
async def test_selections_return_on_every_path(engine: str) -> None:
    """Refused, silent, given up by its client, killed, reset, closed, and still open when its server leaves."""
    listener, fillers = silent_listener()
    seen = Seen()
    async with backends(2) as up:
        silent = f"127.0.0.1 {listener.getsockname()[1]}"
        lines = f"127.0.0.1 {refusing()}\n{silent}\n127.0.0.1 {up[0].port}\n[balance=first, passive=off]"
        rule = "127.0.0.1 0 @web [connect-timeout=0.8s]"
        async with Forwarder(configured(lines, engine, rule=rule), on_close=seen.closed.append) as forwarder:
            before = forwarder.upstreams()[0].servers

            def live() -> list[int]:
                return [server.live for server in forwarder.upstreams()[0].servers]

            gone = await dial(bound(forwarder))
            await until(lambda: sum(live()) == 1)
            gone.reset()
            await until(lambda: len(seen.closed) == 1)
            assert live() == [0, 0, 0]
            peers = [await dial(bound(forwarder)) for _ in range(4)]
            assert all(await asyncio.gather(*(exchange(peer) for peer in peers)))
            assert live() == [0, 0, 4]
            peers[0].close()
            peers[1].reset()
            await until(lambda: live()[2] == 2)
            assert forwarder.kill(forwarder.sessions()[0].id)
            await until(lambda: live()[2] == 1)
            await forwarder.reload(configured(f"127.0.0.1 {up[1].port}", engine, rule=rule))
            for peer in peers[2:]:
                peer.close()
            await until(lambda: len(seen.closed) == 5)
            await forwarder.reload(configured(lines, engine, rule=rule))
            assert live() == [0, 0, 0]
            assert [server.name for server in forwarder.upstreams()[0].servers] == [server.name for server in before]
    for sock in (listener, *fillers):
        sock.close()


def test_a_fifth_of_the_sessions_may_be_at_a_further_try() -> None:
    options = GroupOptions()
    group = Selection(options)
    member = Member("web", "10.0.0.1:80", LocalLoad(1))
    member.configure(Server(Endpoint("10.0.0.1", 80)), options, Destination("10.0.0.1", 0.0))
    group.set_members(options, [member], (None, None))
    for live, bound_of in ((0, RETRIES_MIN), (5 * RETRIES_MIN, RETRIES_MIN), (1000, 200)):
        while member.load.live < live:
            member.load.force()
        granted = 0
        while group.may_retry():
            granted += 1
        assert granted == bound_of
        for _ in range(granted):
            group.retried()


@in_both_lanes
@in_one_loop
async def test_a_check_that_succeeds_clears_an_ejection(engine: str) -> None:
    seen: list[ServerStatus] = []
    async with backends(2) as (checked, up):
        lines = f"127.0.0.1 {refusing()} [check-port={checked.port}]\n127.0.0.1 {up.port} [check-port={up.port}]\n"
        lines += "[balance=first, passive=1/300s, check=tcp, check-interval=50ms]"
        async with forwarding_to(lines, engine, on_server=seen.append) as forwarder:
            await until(lambda: all(each.checks_passed for each in forwarder.upstreams()[0].servers))
            assert await echoes(bound(forwarder))
            await until(lambda: [each.state for each in seen][-2:] == [State.EJECTED, State.UP])


@in_both_lanes
@in_one_loop
async def test_a_reload_keeps_what_is_known_of_the_addresses_of_a_name(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name_service(monkeypatch, "127.0.0.1", "127.0.0.2")
    async with backends(1) as (up,):
        lines = f"two.example {up.port} [resolve=each]\n[balance=first, allow-special]"
        async with forwarding_to(lines, engine) as forwarder:
            assert await echoes(bound(forwarder))
            second = f"127.0.0.2:{up.port}"
            forwarder.set_server("web", second, state="drain")
            await forwarder.reload(configured(lines.replace("[resolve", "[weight=2, resolve"), engine))
            servers = {each.name: each for each in forwarder.upstreams()[0].servers}
            assert servers[second].state is State.DRAIN
            assert [each.weight for each in servers.values()] == [2, 2]
            assert servers[f"127.0.0.1:{up.port}"].selected == 1


@in_one_loop
async def test_the_rules_of_a_group_share_its_table() -> None:
    """Each rule has a policy of its own; after a reload tables of before have no user left, though there is load."""
    async with backends(2) as servers:
        text = "".join(f"upstream web {server.name.replace(':', ' ')}\n" for server in servers)
        text += "upstream web [balance=source]\n" + "127.0.0.1 0 @web [engine=native]\n" * 3
        async with Forwarder(parse_config(text)) as forwarder:
            for address in forwarder.addresses:
                assert await echoes((address.host, address.port))
            (group,) = forwarder._known.groups.values()
            table = group.tables[0]
            assert isinstance(table, _fastpath.Table)
            assert table.users == 3
            await forwarder.reload(parse_config(text.replace("[balance=source]", "[balance=first]")))
            assert sum(server.accepted for server in servers) == 3
            ends = asyncio.get_running_loop().time() + 30
            while table.users and asyncio.get_running_loop().time() < ends:  # though records come without a break
                assert await echoes(bound(forwarder))
            assert table.users == 0


@in_both_lanes
@in_one_loop
async def test_how_long_connects_took_is_told_to_another_process(engine: str) -> None:
    """Else a server that is always slow would be passed over there at first."""
    text = f"engine {engine}\nupstream web 127.0.0.1 {refusing()}\n127.0.0.1 0 @web\n"
    async with Forwarder(parse_config(text)) as old, Forwarder(parse_config(text)) as new:
        before, after = (load_of(forwarder) for forwarder in (old, new))
        before.took(200)
        document, _ = json.loads(json.dumps(old.server_documents()))
        new.restore_servers([{**document, "took_ms": None}], counters=False)
        assert after.took_ms is None
        new.restore_servers([document], counters=False)
        assert (after.took_ms, after.patience_ms) == (200, 800)


def load_of(forwarder: Forwarder) -> Load:
    """Of its only server."""
    assert forwarder._reload.groups is not None
    return next(iter(forwarder._reload.groups)).members[0].load
