"""A rule with a group of servers, over TCP: who gets which server, and that clients do not notice one that fails."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from oinetd import Ending, Forwarder
from oinetd.config import parse_config
from oinetd.upstream.member import ServerStatus, State
from oinetd.upstream.selection import RETRIES_MIN
from tests.forwarding import Seen, bound, echoes, exchange
from tests.peers import Peer, dial, until
from tests.upstream.servers import backends, configured, forwarding_to, refusing, silent_listener


def engines() -> list[str]:
    return ["python", "native"]


pytestmark = pytest.mark.parametrize("engine", engines())


def states(forwarder: Forwarder) -> dict[str, str]:
    (web,) = forwarder.upstreams()
    return {server.name: server.state.value for server in web.servers}


async def clients(forwarder: Forwarder, count: int) -> list[Peer]:
    """Clients that are connected and served, all at once."""
    peers = await asyncio.gather(*(dial(bound(forwarder)) for _ in range(count)))
    assert all(await asyncio.gather(*(exchange(peer) for peer in peers)))
    return list(peers)


@pytest.mark.parametrize("balance", ["leastconn", "roundrobin"])
async def test_a_burst_lands_evenly(engine: str, balance: str) -> None:
    async with backends(4) as servers:
        lines = "\n".join(f"127.0.0.1 {server.port}" for server in servers) + f"\n[balance={balance}]"
        async with forwarding_to(lines, engine) as forwarder:
            peers = await clients(forwarder, 64)
            assert all(15 <= server.accepted <= 17 for server in servers)
            (web,) = forwarder.upstreams()
            assert sum(server.live for server in web.servers) == 64
            for peer in peers:
                peer.close()
            await until(lambda: sum(server.live for server in forwarder.upstreams()[0].servers) == 0)


async def test_weights(engine: str) -> None:
    async with backends(2) as servers:
        lines = f"127.0.0.1 {servers[0].port} [weight=3]\n127.0.0.1 {servers[1].port}"
        async with forwarding_to(lines, engine) as forwarder:
            peers = await clients(forwarder, 32)
            assert abs(servers[0].accepted - 24) <= 1
            for peer in peers:
                peer.close()


async def test_source_and_first_stay_with_one_server(engine: str) -> None:
    async with backends(3) as servers:
        lines = "\n".join(f"127.0.0.1 {server.port}" for server in servers)
        for balance in ("source", "first"):
            for server in servers:
                server.accepted = 0
            async with forwarding_to(f"{lines}\n[balance={balance}]", engine) as forwarder:
                for peer in await clients(forwarder, 6):
                    peer.close()
            assert sorted(server.accepted for server in servers) == [0, 0, 6]
        assert servers[0].accepted == 6


async def test_a_server_that_refuses_is_followed_by_another_and_ejected(
    engine: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "oinetd")
    seen: list[ServerStatus] = []
    dead = refusing()
    async with backends(1) as (server,):
        lines = f"127.0.0.1 {dead}\n127.0.0.1 {server.port}\n[balance=roundrobin]"
        async with forwarding_to(lines, engine, on_server=seen.append) as forwarder:
            for _ in range(8):
                assert await echoes(bound(forwarder))
            await until(lambda: states(forwarder)[f"127.0.0.1:{dead}"] == "ejected")
            (web,) = forwarder.upstreams()
            assert web.servers[0].failed == 3
            assert web.servers[0].why == "connect: refused"
    assert [(status.name, status.state) for status in seen] == [(f"127.0.0.1:{dead}", State.EJECTED)]
    assert f"group web: server 127.0.0.1:{dead} is ejected (connect: refused)" in caplog.text


async def test_an_ejected_server_is_on_trial_after_its_time(engine: str) -> None:
    async with backends(2) as servers:
        lines = "\n".join(f"127.0.0.1 {server.port}" for server in servers) + "\n[balance=roundrobin, passive=1/0.2s]"
        async with forwarding_to(lines, engine) as forwarder:
            await servers[0].stop()
            while states(forwarder)[servers[0].name] != "ejected":
                assert await echoes(bound(forwarder))
            await servers[0].start()
            await until(lambda: states(forwarder)[servers[0].name] == "up")
            before = servers[0].accepted

            async def served() -> bool:
                return await echoes(bound(forwarder)) and servers[0].accepted > before

            while not await served():
                pass


async def test_the_last_usable_server_is_never_ejected(engine: str) -> None:
    dead = refusing()
    seen = Seen()
    hooks = {"on_open": seen.opened.append, "on_close": seen.closed.append}
    async with forwarding_to(f"127.0.0.1 {dead}", engine, **hooks) as forwarder:
        for _ in range(5):
            assert not await echoes(bound(forwarder))
        await until(lambda: len(seen.closed) == 5)
        assert states(forwarder) == {f"127.0.0.1:{dead}": "up"}
    assert {record.ending for record in seen.closed} == {Ending.CONNECT_FAILED}


async def test_backups_serve_when_all_others_failed(engine: str) -> None:
    dead = refusing()
    async with backends(2) as servers:
        lines = f"127.0.0.1 {dead}\n" + "\n".join(f"127.0.0.1 {server.port} [backup]" for server in servers)
        async with forwarding_to(lines, engine) as forwarder:
            for _ in range(4):
                assert await echoes(bound(forwarder))
            assert (servers[0].accepted, servers[1].accepted) == (4, 0)
        async with forwarding_to(lines + "\n[all-backups]", engine) as forwarder:
            for _ in range(4):
                assert await echoes(bound(forwarder))
            assert servers[1].accepted > 0


async def test_backups_are_not_for_servers_that_are_full(engine: str) -> None:
    async with backends(2) as servers:
        lines = f"127.0.0.1 {servers[0].port} [max-connections=1]\n127.0.0.1 {servers[1].port} [backup]"
        async with forwarding_to(lines, engine) as forwarder:
            first = await dial(bound(forwarder))
            assert await exchange(first)
            second = await dial(bound(forwarder))
            waiting = asyncio.create_task(exchange(second))
            await asyncio.wait({waiting}, timeout=0.2)
            assert not waiting.done()
            first.close()
            assert await waiting
            second.close()
            assert (servers[0].accepted, servers[1].accepted) == (2, 0)


async def test_a_client_for_whom_there_is_no_room_is_limited(engine: str) -> None:
    seen = Seen()
    dead = refusing()
    async with backends(1) as (server,):
        lines = f"127.0.0.1 {server.port} [max-connections=1]\n127.0.0.1 {dead}\n[passive=off, balance=first]"
        text = configured(lines, engine, rule="127.0.0.1 0 @web [connect-timeout=0.3s]")
        async with Forwarder(text, on_open=seen.opened.append, on_close=seen.closed.append) as forwarder:
            first = await dial(bound(forwarder))
            assert await exchange(first)
            assert not await echoes(bound(forwarder))
            await until(lambda: seen.closed)
            first.close()
    assert seen.closed[0].ending is Ending.LIMITED


async def test_all_down(engine: str) -> None:
    async with backends(1) as (server,):
        lines = f"127.0.0.1 {server.port}\n127.0.0.1 {refusing()}\n"
        async with forwarding_to(lines + "[passive=off]", engine) as forwarder:
            group = forwarder._reload.groups  # type: ignore[attr-defined]
            (web,) = group
            for member in web.members:
                member.check_why = "test"
                member.options = member.options.__class__(check=member.options.check.TCP)
                web.checked(member, "test")
            assert set(states(forwarder).values()) == {"down"}
            assert await echoes(bound(forwarder))


async def test_none_usable_and_refuse(engine: str) -> None:
    seen = Seen()
    async with backends(1) as (server,):
        lines = f"127.0.0.1 {server.port}\n[all-down=refuse]"
        hooks = {"on_open": seen.opened.append, "on_close": seen.closed.append}
        async with forwarding_to(lines, engine, **hooks) as forwarder:
            forwarder.set_server("web", server.name, state="maint")
            assert not await echoes(bound(forwarder))
            await until(lambda: seen.closed)
            forwarder.set_server("@web", server.name, state="ready")
            assert await echoes(bound(forwarder))
    assert seen.closed[0].ending is Ending.NO_SERVER
    assert (seen.closed[0].group, seen.closed[0].server) == ("web", "")


async def test_drain_maint_and_weight_by_an_operator(engine: str) -> None:
    async with backends(2) as servers:
        lines = "\n".join(f"127.0.0.1 {server.port}" for server in servers)
        seen = Seen()
        async with forwarding_to(lines, engine, on_close=seen.closed.append) as forwarder:
            peers = await clients(forwarder, 2)
            forwarder.set_server("web", servers[0].name, state="drain")
            assert await exchange(peers[0])
            assert await exchange(peers[1])
            for peer in await clients(forwarder, 3):
                peer.close()
            assert (servers[0].accepted, servers[1].accepted) == (1, 4)
            (web,) = forwarder.upstreams()
            assert (web.servers[0].state, web.servers[0].why) == (State.DRAIN, "operator")
            forwarder.set_server("web", servers[0].name, state="maint")
            await until(lambda: any(record.ending is Ending.DRAINED for record in seen.closed))
            forwarder.set_server("web", servers[0].name, state="ready", weight=0)
            assert states(forwarder)[servers[0].name] == "drain"
            forwarder.set_server("web", servers[0].name, weight=5)
            assert states(forwarder)[servers[0].name] == "up"
            for peer in peers:
                peer.close()
            for wrong in ({"state": "off"}, {"weight": 257}):
                with pytest.raises(ValueError, match="is"):
                    forwarder.set_server("web", servers[0].name, **wrong)  # type: ignore[arg-type]
            with pytest.raises(LookupError, match="no server x:1"):
                forwarder.set_server("web", "x:1", state="drain")
            with pytest.raises(LookupError, match="no group webb; the groups are web"):
                forwarder.set_server("webb", "x:1", state="drain")


async def test_on_down_reset_and_what_drain_spread_does(engine: str) -> None:
    seen = Seen()
    async with backends(2) as servers:
        lines = "\n".join(f"127.0.0.1 {server.port}" for server in servers) + "\n[drain-spread=0.2s]"
        async with forwarding_to(lines, engine, on_close=seen.closed.append) as forwarder:
            peers = await clients(forwarder, 8)
            forwarder.set_server("web", servers[0].name, state="drain")
            await until(lambda: len(seen.closed) == 4)
            for peer in peers:
                peer.close()
            await until(lambda: len(seen.closed) == 8)
    assert Counter(record.ending for record in seen.closed)[Ending.DRAINED] == 4
    assert {record.server for record in seen.closed if record.ending is Ending.DRAINED} == {servers[0].name}


async def test_a_server_that_says_nothing_does_not_hold_a_client_up(engine: str) -> None:
    listener, fillers = silent_listener()
    async with backends(1) as (server,):
        lines = f"127.0.0.1 {listener.getsockname()[1]}\n127.0.0.1 {server.port}\n[balance=first]"
        text = configured(lines, engine, rule="127.0.0.1 0 @web [connect-timeout=0.6s]")
        async with Forwarder(text) as forwarder:
            assert await echoes(bound(forwarder))
            assert forwarder.upstreams()[0].servers[0].failed == 1
    for sock in (listener, *fillers):
        sock.close()


@contextlib.asynccontextmanager
async def one_of_four_says_nothing(engine: str, seen: Seen) -> AsyncIterator[tuple[Forwarder, str]]:
    """A forwarder to a group of four, and the name of the server in it that says nothing."""
    listener, fillers = silent_listener()
    async with backends(3) as servers:
        silent = f"127.0.0.1:{listener.getsockname()[1]}"
        lines = "\n".join([silent.replace(":", " "), *(f"127.0.0.1 {server.port}" for server in servers)])
        async with forwarding_to(lines, engine, on_close=seen.closed.append) as forwarder:
            yield forwarder, silent
    for sock in (listener, *fillers):
        sock.close()


def waited_for(silent: str, seen: Seen) -> Counter[int]:
    """How the tries of this server ended."""
    return Counter(each.errno for record in seen.closed for each in record.tries if each.server == silent)


async def test_only_as_many_as_eject_a_server_wait_for_one_that_says_nothing(engine: str) -> None:
    """The others go on when their connects are overdue, and who comes later passes it over."""
    seen = Seen()
    async with one_of_four_says_nothing(engine, seen) as (forwarder, silent):
        for _ in range(2):
            for peer in await clients(forwarder, 64):
                peer.close()
        await until(lambda: states(forwarder)[silent] == "ejected")
        await until(lambda: len(seen.closed) == 128)
        web = forwarder.upstreams()[0].servers
        assert (web[0].failed, web[0].live) == (3, 0)
        assert all(server.failed == 0 and server.live == 0 for server in web[1:])
    waited = waited_for(silent, seen)
    assert waited.pop(errno.ETIMEDOUT) == 3
    assert set(waited) <= {errno.EINPROGRESS}
    assert {record.ending for record in seen.closed} == {Ending.CLIENT_CLOSED}


async def test_more_clients_than_may_retry_at_once_go_on(engine: str) -> None:
    """Rights to try another server are given back as soon as one has taken the client."""
    seen = Seen()
    async with one_of_four_says_nothing(engine, seen) as (forwarder, silent):
        for peer in await clients(forwarder, 5 * RETRIES_MIN):
            peer.close()
        await until(lambda: len(seen.closed) == 5 * RETRIES_MIN)
        assert forwarder.upstreams()[0].servers[0].failed == 3
    assert waited_for(silent, seen)[errno.ETIMEDOUT] == 3


async def test_no_backup_stands_in_for_a_server_that_has_only_begun_to_be_silent(engine: str) -> None:
    listener, fillers = silent_listener()
    seen = Seen()
    async with backends(1) as (server,):
        silent = f"127.0.0.1 {listener.getsockname()[1]}"
        lines = f"{silent}\n127.0.0.1 {server.port} [backup]\n[passive=1/10s]"
        text = configured(lines, engine, rule="127.0.0.1 0 @web [connect-timeout=1.2s]")
        async with Forwarder(text, on_close=seen.closed.append) as forwarder:
            for peer in await clients(forwarder, 4):
                peer.close()
            await until(lambda: len(seen.closed) == 4)
    assert [record.tries[0].errno for record in seen.closed] == [errno.ETIMEDOUT] * 4
    for sock in (listener, *fillers):
        sock.close()


async def test_a_reload_keeps_states_and_counts(engine: str) -> None:
    async with backends(3) as servers:
        lines = "\n".join(f"127.0.0.1 {server.port}" for server in servers[:2])
        async with forwarding_to(lines, engine) as forwarder:
            forwarder.set_server("web", servers[0].name, state="drain")
            assert await echoes(bound(forwarder))
            await until(lambda: forwarder.upstreams()[0].servers[1].live == 0)
            before = forwarder.upstreams()[0].servers
            await forwarder.reload(configured(f"127.0.0.1 {servers[2].port}\n{lines}\n[balance=first]", engine))
            after = forwarder.upstreams()[0].servers
            assert after[1:] == before
            assert await echoes(bound(forwarder))
            assert servers[2].accepted == 1


async def test_a_failed_reload_changes_nothing(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from oinetd.reload import Reload

    async with backends(2) as servers, forwarding_to(f"127.0.0.1 {servers[0].port}", engine) as forwarder:
        with monkeypatch.context() as patch:
            patch.setattr(Reload, "_serve", lambda *_: (_ for _ in ()).throw(OSError("no")))
            with pytest.raises(OSError, match="no"):
                await forwarder.reload(configured(f"127.0.0.1 {servers[1].port} [weight=7]", engine))
        assert list(states(forwarder)) == [servers[0].name]
        assert await echoes(bound(forwarder))
        assert (servers[0].accepted, servers[1].accepted) == (1, 0)


async def test_the_lines_of_the_logs(engine: str, tmp_path: Path) -> None:
    dead = refusing()
    async with backends(1) as (server,):
        for form, file in (("json", tmp_path / "json"), ("rinetd", tmp_path / "rinetd")):
            config = parse_config(
                f"engine {engine}\nlogfile {file}\nlogformat {form}\n127.0.0.1 0 @web\n"
                f"upstream web 127.0.0.1 {dead}\nupstream web 127.0.0.1 {server.port}\nupstream web [balance=first]\n"
            )
            async with Forwarder(config) as forwarder:
                assert await echoes(bound(forwarder))
    closed = json.loads((tmp_path / "json").read_text().splitlines()[-1])
    assert (closed["connect"], closed["connect_port"], closed["group"]) == ("@web", 0, "web")
    assert (closed["server"], closed["upstream"], closed["upstream_port"]) == (server.name, "127.0.0.1", server.port)
    assert closed["tries"] == [
        {"server": f"127.0.0.1:{dead}", "address": "127.0.0.1", "port": dead, "errno": 111, "error": "ECONNREFUSED"},
        {"server": server.name, "address": "127.0.0.1", "port": server.port, "errno": 0, "error": ""},
    ]
    assert "\t127.0.0.1\t0\t@web\t0\t" in (tmp_path / "rinetd").read_text()


async def test_a_group_without_a_name_is_named_by_its_rule(engine: str) -> None:
    async with backends(2) as servers:
        port = servers[0].port
        config = parse_config(f"engine {engine}\n127.0.0.1 0 127.0.0.1,127.0.0.2 {port} [balance=first]\n")
        async with Forwarder(config) as forwarder:
            (group,) = forwarder.upstreams()
            assert group.name == "127.0.0.1:0"
            assert [server.name for server in group.servers] == [f"127.0.0.1:{port}", f"127.0.0.2:{port}"]
            assert await echoes(bound(forwarder))


async def test_a_range_of_ports(engine: str) -> None:
    from tests.peers import free_range

    first = free_range(2)
    async with backends(1) as (server,):
        other = type(server)(server.port + 1)
        try:
            await other.start()
        except OSError:
            pytest.skip("the port beside is taken")
        config = parse_config(
            f"engine {engine}\n127.0.0.1 {first}-{first + 1} @web\n"
            f"upstream web 127.0.0.1 {server.port}-{server.port + 1}\n"
        )
        async with Forwarder(config) as forwarder:
            assert await echoes(bound(forwarder, 0))
            assert await echoes(bound(forwarder, 1))
            assert (server.accepted, other.accepted) == (1, 1)
        await other.stop()
