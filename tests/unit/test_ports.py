"""Listening sockets over a reload, with the real kernel: what is kept, what is replaced, and what is in between."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import socket
import threading
from dataclasses import replace

import pytest

from oinetd import BindError, Config, Forwarder, KeepAlive, RuleOptions, Settings
from oinetd.config import parse_rule
from oinetd.net.ports import PortKey, open_ports, plan_ports
from oinetd.net.sockets import bound_address
from tests.forwarding import bound, echoes, exchange, rule
from tests.peers import dial, free_port, until


@pytest.fixture
def port() -> int:
    """A port that is free on every address."""
    return free_port()


def parse(*texts: str) -> Config:
    return Config(rules=tuple(parse_rule(text) for text in texts))


async def keys(*texts: str, before: dict[PortKey, object] | None = None) -> list[PortKey]:
    return [port.key for port in await plan_ports(parse(*texts), before or {})]  # type: ignore[arg-type]


# The plan


async def test_one_socket_serves_both_families_where_nobody_else_wants_ipv4() -> None:
    assert [key.v6only for key in await keys(":: 8000 h.example 1")] == [False]
    assert [key.v6only for key in await keys(":: 8000 h.example 1", "0.0.0.0 8000 h.example 1")] == [True, False]
    assert [key.v6only for key in await keys(":: 8000 h.example 1", "127.0.0.1 8001 h.example 1")] == [False, False]
    assert [key.v6only for key in await keys("::1 8000 h.example 1")] == [True]


async def test_a_name_may_have_several_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    found = await keys("localhost 8000-8002 127.0.0.1 1-3")
    assert {key.address.port for key in found} == {8000, 8001, 8002}


async def test_an_unknown_name_is_a_clear_error() -> None:
    with pytest.raises(BindError, match=r"no-such-name\.invalid") as failure:
        await keys("no-such-name.invalid 8000 127.0.0.1 1")
    assert failure.value.errno == errno.EADDRNOTAVAIL


async def test_a_scope_that_is_no_interface() -> None:
    with pytest.raises(BindError, match="interface"):
        await keys("fe80::1%nosuchlink 8000 127.0.0.1 1")


async def test_one_address_of_a_name_that_the_machine_has_not_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    import oinetd.net.resolver
    from oinetd.net.sockets import Address

    both = (Address(socket.AF_INET, ("192.0.2.1", 0)), Address(socket.AF_INET, ("127.0.0.1", 0)))
    monkeypatch.setattr(oinetd.net.resolver, "lookup", lambda host, port=0: both)
    config = parse("name.example 0 127.0.0.1 1")
    opened = open_ports(await plan_ports(config, {}), {})
    assert [bound_address(sock).host for sock in opened.values()] == ["127.0.0.1"]
    for sock in opened.values():
        sock.close()
    monkeypatch.setattr(oinetd.net.resolver, "lookup", lambda host, port=0: (both[0], both[0]))
    with pytest.raises(BindError):
        open_ports(await plan_ports(config, {}), {})


async def test_all_that_fails_is_told_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = parse(f"127.0.0.1 {taken.getsockname()[1]} h.example 1", "192.0.2.1 8000 h.example 1")
        with pytest.raises(BindError) as failure:
            open_ports(await plan_ports(config, {}), {})
    assert failure.value.errno == errno.EADDRINUSE
    assert "in use" in str(failure.value)
    assert "does not have this address" in str(failure.value)
    assert "net.ipv4.ip_nonlocal_bind=1 or start after network-online.target" in str(failure.value)


async def test_options_of_the_rule_are_on_its_socket() -> None:
    config = parse("127.0.0.1 0 127.0.0.1 1 [keepalive=11:5:4]", "127.0.0.1 0 127.0.0.1 1 [keepalive=off]")
    opened = open_ports(await plan_ports(config, {}), {})
    one, two = opened.values()
    with one, two:
        assert one.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 11
        assert two.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
        assert not one.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)


# One listener in place of another that overlaps


class Knocking:
    """Clients in threads of their own that connect, exchange a few bytes and close, as fast as they can.

    Blocking ones, so that no event loop orders what they do.
    """

    def __init__(self, address: tuple[str, int], threads: int = 2) -> None:
        self.count = 0
        self.faults: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._knock, args=(address,)) for _ in range(threads)]

    async def __aenter__(self) -> Knocking:
        for thread in self._threads:
            thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        await until(lambda: not any(thread.is_alive() for thread in self._threads), "the last clients")

    def _knock(self, address: tuple[str, int]) -> None:
        while not self._stop.is_set() and not self.faults:
            try:
                with socket.create_connection(address, timeout=30) as sock:
                    sock.sendall(b"knock knock")
                    got = b""
                    while len(got) < 11 and (piece := sock.recv(11)):
                        got += piece
                    if got != b"knock knock":
                        self.faults.append(f"got {got!r}")
            except OSError as error:
                self.faults.append(repr(error))
            self.count += 1

    async def more(self, count: int) -> None:
        """Wait for so many more to be done."""
        goal = self.count + count
        await until(lambda: self.count >= goal or self.faults, "more clients")


OVERLAPS = [
    ("0.0.0.0 {}", "127.0.0.1 {}"),
    (":: {}", "127.0.0.1 {}"),
    (":: {}", "0.0.0.0 {}"),
    ("0.0.0.0 {}", "0.0.0.0 {}; :: {}"),
    (":: {}", ":: {}; 0.0.0.0 {}"),
]


@pytest.mark.parametrize("binds", OVERLAPS, ids=lambda binds: " to ".join(binds).replace(" {}", ""))
async def test_one_listener_in_place_of_another_loses_no_connection(
    upstream: tuple[str, int], settings: Settings, port: int, binds: tuple[str, str]
) -> None:
    one, two = (
        Config(rules=tuple(rule(upstream, bind.format(port)) for bind in text.split("; ")), settings=settings)
        for text in binds
    )
    async with Forwarder(one) as forwarder:
        async with Knocking(("127.0.0.1", port)) as knocking:
            for config in itertools.islice(itertools.cycle((two, one)), 20):
                await knocking.more(5)
                await forwarder.reload(config)
            await knocking.more(5)
        assert knocking.faults == []
        assert len(forwarder.addresses) == len(config.rules)
        # No socket is left in a state in which a taken port is not seen.
        for listener in forwarder._listeners.values():
            assert not listener.sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
        with pytest.raises(BindError, match="in use"):
            async with Forwarder(Config(rules=(rule(upstream, f"127.0.0.1 {port}"),))):
                pass
        with pytest.raises(OSError, match="in use"):
            socket.create_server(("127.0.0.1", port))


@pytest.mark.parametrize("reuse", [False, True])
async def test_a_port_that_somebody_else_has_stays_an_error(
    upstream: tuple[str, int], settings: Settings, port: int, reuse: bool
) -> None:
    """Ours on one address retires while another program has the port on another, which the new one overlaps with."""
    config = Config(rules=(rule(upstream, f"127.0.0.1 {port}"),), settings=settings)
    with socket.socket() as foreign:
        foreign.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(reuse))
        foreign.bind(("127.0.0.2", port))
        foreign.listen()
        async with Forwarder(config) as forwarder:
            with pytest.raises(BindError, match="in use"):
                await forwarder.reload(replace(config, rules=(rule(upstream, f"0.0.0.0 {port}"),)))
            assert bound(forwarder) == ("127.0.0.1", port)
            (listener,) = forwarder._listeners.values()
            assert not listener.sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
            assert await echoes(("127.0.0.1", port))


async def test_who_waits_in_the_queue_of_a_listener_that_goes_is_served(
    upstream: tuple[str, int], settings: Settings, port: int
) -> None:
    config = Config(rules=(rule(upstream, f"0.0.0.0 {port}"),), settings=settings)
    async with Forwarder(config) as forwarder:
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
        with contextlib.ExitStack() as stack:
            for client in clients:
                stack.enter_context(client)
            await forwarder.reload(replace(config, rules=(rule(upstream, f"127.0.0.2 {port}"),)))
            for client in clients:
                client.setblocking(False)
                await asyncio.get_running_loop().sock_sendall(client, b"hello")
                assert await asyncio.get_running_loop().sock_recv(client, 5) == b"hello"


# Addresses of every kind


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_both_families_reach_a_listener_for_both(
    upstream: tuple[str, int], settings: Settings, port: int, host: str
) -> None:
    async with Forwarder(Config(rules=(rule(upstream, f":: {port}"),), settings=settings)) as forwarder:
        client = await dial((host, port))
        assert await exchange(client)
        assert [record.client for record in forwarder.sessions()] == [host]
        client.close()


async def test_an_ipv4_client_of_an_ipv6_listener_is_held_to_ipv4_rules(
    upstream: tuple[str, int], settings: Settings, port: int
) -> None:
    config = Config(rules=(parse_rule(f":: {port} {upstream[0]} {upstream[1]}"),), settings=settings)
    denying = replace(config.rules[0], access=(parse_access("127.0.0.0/8"),))
    async with Forwarder(replace(config, rules=(denying,))):
        assert not await echoes(("127.0.0.1", port))
        assert await echoes(("::1", port))


def parse_access(pattern: str):  # type: ignore[no-untyped-def]
    from oinetd import AccessRule, Verb

    return AccessRule(Verb.DENY, pattern)


async def test_a_mapped_address_can_be_listened_on(upstream: tuple[str, int], settings: Settings, port: int) -> None:
    async with Forwarder(Config(rules=(rule(upstream, f"::ffff:127.0.0.1 {port}"),), settings=settings)):
        assert await echoes(("127.0.0.1", port))


async def test_a_range_is_one_rule_with_many_ports(upstream: tuple[str, int], settings: Settings) -> None:
    first = 21000 + 1000 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])  # workers run side by side
    ports = f"{first}-{first + 999} 127.0.0.1 31000-31999"
    one = parse_rule(f"127.0.0.1 {ports}")
    async with Forwarder(Config(rules=(one,), settings=settings)) as forwarder:
        assert len(forwarder.addresses) == 1000
        assert {address.route.rule for address in forwarder.addresses} == {one}
        changed = replace(one, options=RuleOptions(keepalive=KeepAlive(9)))
        await forwarder.reload(Config(rules=(changed,), settings=settings))
        assert len(forwarder.addresses) == 1000
        await forwarder.reload(Config(rules=(parse_rule(f"0.0.0.0 {ports}"),), settings=settings))
        assert {address.host for address in forwarder.addresses} == {"0.0.0.0"}
