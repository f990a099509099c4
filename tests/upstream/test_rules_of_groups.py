"""What the options of a group promise: slow start, resets, draining, the bound of retries, many groups."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from unittest import mock

import pytest

from oinetd import Ending, Forwarder
from oinetd.config import parse_config
from oinetd.config.server_file import read_servers
from oinetd.net.poller import Poller
from oinetd.upstream.destinations import Destinations
from oinetd.upstream.groups import Groups, Known
from oinetd.upstream.load import LocalLoad
from oinetd.upstream.selection import RETRIES_MIN
from tests.forwarding import Seen, bound, exchange, in_one_loop
from tests.peers import dial, until
from tests.upstream.servers import backends, configured, forwarding_to, silent_listener

in_both_lanes = pytest.mark.parametrize("engine", ["python", "native"])


@in_both_lanes
@in_one_loop
async def test_a_server_that_returns_begins_with_a_tenth_of_its_weight(engine: str) -> None:
    async with backends(2) as servers:
        lines = "\n".join(f"127.0.0.1 {server.port}" for server in servers) + "\n[slow-start=600s]"
        async with forwarding_to(lines, engine) as forwarder:
            first = [await dial(bound(forwarder)) for _ in range(4)]
            assert all([await exchange(peer) for peer in first])
            assert [server.accepted for server in servers] == [2, 2], "not at the start of the process"
            for state in ("maint", "ready"):
                forwarder.set_server("web", servers[0].name, state=state)
                await until(lambda: forwarder.upstreams()[0].servers[0].live == 0)
            more = [await dial(bound(forwarder)) for _ in range(20)]
            assert all([await exchange(peer) for peer in more])
            assert 1 <= servers[0].accepted - 2 <= 3
            for peer in (*first, *more):
                peer.close()


@in_both_lanes
@pytest.mark.parametrize("on_down", ["keep", "reset"])
@in_one_loop
async def test_what_happens_to_the_connections_of_a_server_that_goes_down(engine: str, on_down: str) -> None:
    seen = Seen()
    async with backends(3) as (checked, *servers):
        lines = f"127.0.0.1 {servers[0].port} [check-port={checked.port}]\n127.0.0.1 {servers[1].port}\n"
        lines += f"[check=tcp, check-interval=50ms, check-fast=20ms, check-fall=1, on-down={on_down}]"
        async with forwarding_to(lines, engine, on_close=seen.closed.append) as forwarder:

            def why() -> str:
                return forwarder.upstreams()[0].servers[0].why

            await until(lambda: all(each.checks_passed for each in forwarder.upstreams()[0].servers))
            peers = [await dial(bound(forwarder)) for _ in range(4)]
            assert all([await exchange(peer) for peer in peers])
            assert [each.selected for each in forwarder.upstreams()[0].servers] == [2, 2]
            await checked.stop()
            await until(lambda: why() == "check: refused")
            if on_down == "reset":
                await until(lambda: len(seen.closed) == 2)
                assert {(each.ending, each.server) for each in seen.closed} == {(Ending.SERVER_DOWN, servers[0].name)}
            assert Counter([await exchange(peer) for peer in peers])[True] == (4 if on_down == "keep" else 2)
            for peer in peers:
                peer.close()


@in_both_lanes
@in_one_loop
async def test_the_sessions_of_a_server_that_leaves_are_drained(engine: str) -> None:
    seen = Seen()
    async with backends(2) as servers:
        lines = [f"127.0.0.1 {server.port}" for server in servers]
        options = "\n[drain-spread=50ms]"
        async with forwarding_to("\n".join(lines) + options, engine, on_close=seen.closed.append) as forwarder:
            peers = [await dial(bound(forwarder)) for _ in range(6)]
            assert all([await exchange(peer) for peer in peers])
            await forwarder.reload(configured(lines[1] + options, engine))
            await until(lambda: len(seen.closed) == 3)
            assert {(each.ending, each.server) for each in seen.closed} == {(Ending.DRAINED, servers[0].name)}
            assert Counter([await exchange(peer) for peer in peers])[True] == 3
            for peer in peers:
                peer.close()


@in_both_lanes
@in_one_loop
async def test_no_more_than_some_sessions_retry_at_a_time(engine: str) -> None:
    over = 4
    with contextlib.ExitStack() as stack:
        silent = []
        for _ in range(2):
            listener, fillers = silent_listener()
            silent.append(listener.getsockname()[1])
            for sock in (listener, *fillers):
                stack.callback(sock.close)
        async with backends(1) as (up,):
            lines = "\n".join(f"127.0.0.1 {port}" for port in (*silent, up.port)) + "\n[balance=first, passive=off]"
            rule = "127.0.0.1 0 @web [connect-timeout=1s]"
            async with Forwarder(configured(lines, engine, rule=rule)) as forwarder:
                peers = await asyncio.gather(*(dial(bound(forwarder)) for _ in range(RETRIES_MIN + over)))
                served = await asyncio.gather(*(exchange(peer) for peer in peers))
                assert served.count(True) == RETRIES_MIN
                for peer in peers:
                    peer.close()


@in_one_loop
async def test_as_many_groups_as_there_may_be() -> None:
    count = 4096
    text = "".join(
        f"127.0.0.1 {10000 + at} @g{at}\nupstream g{at} 10.0.{at >> 8}.{at & 255} 80\n" for at in range(count)
    )
    config = parse_config(text)
    poller = Poller(asyncio.get_running_loop())
    known = Known(LocalLoad, None, mock.Mock(fullness=lambda group: (False, 0)), poller, read_servers)
    destinations = Destinations(config)
    await destinations.resolve()
    groups = Groups(config, destinations, known)
    await groups.prepare()
    groups.enforce()
    groups.start(None)
    assert len(groups.statuses()) == count
    assert {status.servers[0].state.value for status in groups.statuses()} == {"up"}
    groups.stop()
    poller.close()
