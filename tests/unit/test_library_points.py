"""What programs can do with a running forwarder: route clients, change single rules, use it without asyncio."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from oinetd import BindError, BlockingForwarder, Config, Ending, Endpoint, SessionRecord, parse_config
from oinetd.core.router import Router
from tests.admin.echo import echo_server
from tests.forwarding import Seen, bound, echoes, exchange, forwarding, rule
from tests.peers import dial, until

NOWHERE = ("127.0.0.1", 1)


@pytest.mark.parametrize("kind", ["text", "endpoint", "function", "name"])
async def test_route_says_where_a_client_goes(kind: str) -> None:
    async with echo_server() as (host, port):

        async def route(session: SessionRecord) -> Endpoint | str:
            name = "localhost" if kind == "name" else host
            return Endpoint(host, port) if kind == "endpoint" else f"{name}:{port}"

        plain = lambda session: f"{host}:{port}"  # noqa: E731
        seen = Seen()
        async with forwarding(rule(NOWHERE), seen=seen, route=plain if kind == "function" else route) as forwarder:
            assert await echoes(bound(forwarder))
            await until(lambda: seen.closed)
        assert (seen.closed[0].upstream, seen.closed[0].upstream_port) == (host, port)
        assert seen.closed[0].ending is Ending.CLIENT_CLOSED


@pytest.mark.parametrize("answer", [None, True])
async def test_without_an_answer_the_rule_decides(answer: bool | None) -> None:
    async with echo_server() as place, forwarding(rule(place), route=lambda session: answer) as forwarder:
        assert await echoes(bound(forwarder))


@pytest.mark.parametrize("answer", [False, "no port", "host:", ":80", "host:port"])
async def test_false_or_nonsense_refuses(answer: object) -> None:
    seen = Seen()
    async with forwarding(rule(NOWHERE), seen=seen, route=lambda session: answer) as forwarder:
        assert not await echoes(bound(forwarder))
        await until(lambda: seen.closed)
    assert seen.closed[0].ending is Ending.NOT_ALLOWED


async def test_route_is_asked_after_admit_and_ends_with_its_client() -> None:
    cancelled = asyncio.Event()
    asked = asyncio.Event()

    async def route(session: SessionRecord) -> None:
        asked.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def admit(session: SessionRecord) -> bool:
        return not asked.is_set()

    seen = Seen()
    async with forwarding(rule(NOWHERE), seen=seen, admit=admit, route=route) as forwarder:
        peer = await dial(bound(forwarder))
        async with asyncio.timeout(30):
            await asked.wait()
            peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            peer.close()
            await cancelled.wait()
        assert not await echoes(bound(forwarder))  # admit refuses this one; route is not asked
        await until(lambda: len(seen.closed) == 2)


async def test_an_unknown_name_of_route_is_a_failed_session() -> None:
    seen = Seen()
    hook = lambda session: "nowhere.invalid:80"  # noqa: E731
    async with forwarding(rule(NOWHERE, options="connect-timeout=1s"), seen=seen, route=hook) as forwarder:
        assert not await echoes(bound(forwarder))
        await until(lambda: seen.closed)
    assert seen.closed[0].ending in (Ending.RESOLVE_FAILED, Ending.CONNECT_TIMEOUT)


async def test_names_of_route_are_remembered_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oinetd.core.router.NAMES_MAX", 3)
    router = Router(None, None)
    first = router._destination("127.0.0.1")
    assert router._destination("127.0.0.1") is first
    for number in range(2, 6):
        router._destination(f"127.0.0.{number}")
    assert len(router._known) == 3
    assert router._destination("127.0.0.1") is not first
    router.close()


async def test_rules_come_and_go_and_touch_nothing_else() -> None:
    async with echo_server() as place:
        stays, comes = rule(place), rule(place, "127.0.0.2 0")
        async with forwarding(stays) as forwarder:
            address = bound(forwarder)
            peer = await dial(address)
            assert await exchange(peer)
            others = [rule(place, f"127.0.0.{number} 0") for number in range(3, 8)]
            await asyncio.gather(forwarder.add_rule(comes), *map(forwarder.add_rule, others))
            assert set(forwarder.config.rules) == {stays, comes, *others}
            assert await echoes(bound(forwarder, len(forwarder.addresses) - 1))
            changed = rule(place, "127.0.0.2 0", "idle-timeout=5m")
            await forwarder.replace_rule(comes, changed)
            await asyncio.gather(*map(forwarder.remove_rule, [changed, *others]))
            assert forwarder.config.rules == (stays,)
            assert bound(forwarder) == address
            assert await exchange(peer)
            with pytest.raises(ValueError, match="not in"):
                await forwarder.remove_rule(comes)
            with pytest.raises(BindError):
                await forwarder.add_rule(rule(place, f"{address[0]} {address[1]}", "name=twice"))
            assert forwarder.config.rules == (stays,)
            peer.close()


def test_a_program_without_asyncio() -> None:
    opened = threading.Event()
    config = parse_config("127.0.0.1 0 127.0.0.1 1\n")
    with BlockingForwarder(config, on_open=lambda session: opened.set()) as forwarder:
        with socket.create_connection((forwarder.addresses[0].host, forwarder.addresses[0].port)):
            assert opened.wait(30)
        forwarder.add_rule(rule(NOWHERE, "127.0.0.2 0"))
        assert len(forwarder.addresses) == len(forwarder.config.rules) == 2
        forwarder.remove_rule(forwarder.config.rules[1])
        forwarder.reload(config)
        assert not forwarder.kill(12345)
        assert forwarder.sessions() == []
        assert forwarder.drain(5.0) == 0
    with pytest.raises(RuntimeError, match="not running"):
        forwarder.stats()


def test_a_start_that_fails_leaves_no_thread() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BindError), BlockingForwarder(parse_config(f"127.0.0.1 {port} 127.0.0.1 1\n")):
            pass


def test_a_hook_cannot_wait_for_itself() -> None:
    errors: list[Exception] = []
    done = threading.Event()

    def opened(session: SessionRecord) -> None:
        try:
            forwarder.stats()
        except RuntimeError as error:
            errors.append(error)
        done.set()

    with BlockingForwarder(Config(rules=(rule(NOWHERE),)), on_open=opened) as forwarder:
        client = socket.create_connection((forwarder.addresses[0].host, forwarder.addresses[0].port))
        assert done.wait(30)
        client.close()
    assert "wait for itself" in str(errors[0])
