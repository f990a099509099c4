"""Rules that lead back to themselves: circles are found and broken, chains that lead out are served."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator

import pytest

import oinetd.net.resolver
from oinetd import Forwarder, parse_config
from oinetd.core.record import Ending
from oinetd.lanes.native.plane import available
from oinetd.model import Protocol
from oinetd.net.sockets import lookup
from oinetd.upstream.loops import Bound, Leg, find_loops, is_local
from tests.forwarding import Seen, bound, echoes
from tests.peers import WORKER, dial, echo, free_port, free_range, server, until
from tests.udp.rig import Party, serving
from tests.udp.rig import echo as datagram_echo


@pytest.fixture(params=["native", "python"])
def engine(request: pytest.FixtureRequest) -> str:
    if request.param == "native" and available():
        pytest.skip(f"the extension: {available()}")
    return f"engine {'auto' if request.param == 'native' else 'python'}\n"


@pytest.fixture
def port() -> int:
    """A port on which nobody listens, over TCP and UDP."""
    return free_port()


@contextlib.asynccontextmanager
async def running(text: str) -> AsyncIterator[tuple[Forwarder, Seen]]:
    seen = Seen()
    async with Forwarder(parse_config(text), on_open=seen.opened.append, on_close=seen.closed.append) as forwarder:
        yield forwarder, seen


async def turned_away(to: tuple[str, int]) -> None:
    """Be a client who gets a reset, as early as while connecting."""
    with contextlib.suppress(ConnectionResetError):
        peer = await dial(to)
        try:
            await peer.read_to_reset()
        finally:
            peer.close()


ADDRESS, LATE = (f"10.213.{7 + WORKER}.{number}" for number in (1, 2))
"""Of each worker its own: one that adds an address would have it taken away by another one."""


@contextlib.contextmanager
def own_address(address: str) -> Iterator[str]:
    """Give this machine an address that is not of 127.0.0.0/8."""
    if os.geteuid() != 0:
        pytest.skip("adding an address needs root")
    added = subprocess.run(["ip", "addr", "add", f"{address}/32", "dev", "lo"], capture_output=True)
    if added.returncode:
        pytest.skip(f"no address can be added: {added.stderr!r}")
    try:
        yield address
    finally:
        subprocess.run(["ip", "addr", "del", f"{address}/32", "dev", "lo"], check=True)


@contextlib.contextmanager
def nowhere(address: str) -> Iterator[None]:
    """Let the address be unreachable: whatever stands behind the machine's gateway might answer for it."""
    if os.geteuid() != 0:
        pytest.skip("adding a route needs root")
    subprocess.run(["ip", "route", "add", "unreachable", f"{address}/32"], check=True)
    try:
        yield
    finally:
        subprocess.run(["ip", "route", "del", "unreachable", f"{address}/32"], check=True)


@pytest.fixture
def address() -> Iterator[str]:
    with own_address(ADDRESS) as added:
        yield added


def warnings_of(caplog: pytest.LogCaptureFixture, what: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if what in record.getMessage()]


@pytest.mark.parametrize(
    ("bind", "destination"),
    [
        ("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("0.0.0.0", "127.3.2.1"),
        ("0.0.0.0", "0.0.0.0"), ("::", "::1"), ("::", "127.0.0.1"), ("::", "::ffff:127.0.0.1"), ("::1", "::1"),
        ("0.0.0.0", "added"), ("::", "added"),
    ],
)  # fmt: skip
async def test_a_rule_to_itself_is_refused(
    engine: str, address: str, port: int, bind: str, destination: str, caplog: pytest.LogCaptureFixture
) -> None:
    destination = address if destination == "added" else destination
    async with running(f"{engine}{bind} {port} {destination} {port}\n") as (forwarder, seen):
        to = "::1" if bind.startswith("::") else "127.0.0.1"
        for _ in range(3):
            await turned_away((to, port))
        await until(lambda: len(seen.closed) >= 3, "the records")
        assert {(record.ending, record.errno) for record in seen.closed} == {(Ending.CONNECT_FAILED, errno.ELOOP)}
        assert forwarder.stats().accepted == 3, "nothing came back, not even once"
        assert forwarder.stats().failed == 3
    said = warnings_of(caplog, "ELOOP")
    assert len(said) == 1
    assert "own listeners" in said[0]
    assert f"{port}" in said[0]


async def test_a_circle_of_rules_is_broken(engine: str, port: int, caplog: pytest.LogCaptureFixture) -> None:
    text = f"{engine}127.0.0.1 {port} 127.0.0.2 {port}\n127.0.0.2 {port} 127.0.0.1 {port}\n"
    async with running(text) as (forwarder, seen):
        await turned_away(("127.0.0.1", port))
        await until(lambda: seen.closed, "the record")
        assert forwarder.stats().accepted == 1
    assert len(warnings_of(caplog, "ELOOP")) == 1


async def test_a_range_that_leads_into_itself_ends_at_the_last_port(engine: str) -> None:
    port = free_range(5)
    async with (
        server(echo) as upstream,
        running(f"{engine}127.0.0.1 {port}-{port + 3} 127.0.0.1 {port + 1}-{port + 4}\n") as (forwarder, seen),
    ):
        del upstream
        await turned_away(("127.0.0.1", port))
        await until(lambda: len(seen.closed) == 4, "the chain of four, whose end refuses")
        assert forwarder.stats().accepted == 4


async def test_a_chain_that_leads_out_is_served(engine: str, caplog: pytest.LogCaptureFixture, port: int) -> None:
    async with (
        server(echo) as upstream,
        running(f"{engine}127.0.0.1 0 127.0.0.2 {port}\n127.0.0.2 {port} {upstream[0]} {upstream[1]}\n") as (
            forwarder,
            _,
        ),
    ):
        assert await echoes(bound(forwarder))
    assert not warnings_of(caplog, "ELOOP")


async def test_another_process_on_the_same_port_is_served(
    engine: str, port: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        server(echo, place=("127.0.0.1", port)),
        running(f"{engine}127.0.0.2 {port} 127.0.0.1 {port}\n") as (forwarder, _),
    ):
        assert await echoes(bound(forwarder))
    assert not warnings_of(caplog, "ELOOP")


async def test_a_name_that_comes_to_be_ourselves(
    engine: str, port: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers = ["127.0.0.9"]  # where nobody listens
    monkeypatch.setattr(
        oinetd.net.resolver, "lookup", lambda host, port=0: lookup(answers[0] if host == "name.example" else host, port)
    )
    async with running(f"dns-refresh 0.01s\n{engine}127.0.0.1 {port} name.example {port}\n") as (forwarder, seen):
        await turned_away(("127.0.0.1", port))
        await until(lambda: seen.closed, "the record")
        assert seen.closed[0].errno == errno.ECONNREFUSED
        answers[0] = "127.0.0.1"
        rounds = 1
        while all(record.errno != errno.ELOOP for record in seen.closed):  # until the name was asked for again
            await turned_away(("127.0.0.1", port))
            rounds += 1
            await until(lambda: len(seen.closed) >= rounds, "the record")  # noqa: B023
        assert forwarder.stats().accepted == rounds, "nothing came back"
    assert len(warnings_of(caplog, "ELOOP")) == 1


async def test_the_other_addresses_of_a_name_are_tried(
    engine: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with server(echo) as upstream:
        both = (*lookup("127.0.0.2"), *lookup("127.0.0.1"))
        real = oinetd.net.resolver.lookup
        monkeypatch.setattr(
            oinetd.net.resolver, "lookup", lambda host, port=0: both if host == "name.example" else real(host, port)
        )
        async with running(f"{engine}127.0.0.2 {upstream[1]} name.example {upstream[1]}\n") as (forwarder, _):
            assert await echoes(bound(forwarder))
    assert len(warnings_of(caplog, "ELOOP")) == 1


@pytest.mark.parametrize("source", ["", " [src=127.0.0.1]"])
async def test_an_address_that_moves_to_this_machine(engine: str, port: int, source: str) -> None:
    """As a virtual address does that two machines share."""
    text = f"connect-timeout 0.2s\n{engine}0.0.0.0 {port} {LATE} {port}{source}\n"
    async with running(text) as (forwarder, seen):
        with nowhere(LATE):
            await turned_away(("127.0.0.1", port))
        await until(lambda: seen.closed, "the record")
        assert seen.closed[0].errno == errno.EHOSTUNREACH
        with own_address(LATE):
            await turned_away(("127.0.0.1", port))
            await until(lambda: any(record.errno == errno.ELOOP for record in seen.closed), "the loop is seen")
            await until(lambda: forwarder.stats().live == 0, "and over")
            assert forwarder.stats().accepted < 10, "a connection too many, perhaps, but no flood of them"


@pytest.mark.parametrize("bind", ["127.0.0.1", "0.0.0.0", "::"])
async def test_a_datagram_to_ourselves_goes_nowhere(
    engine: str, port: int, bind: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(f"{engine}{bind} {port}/udp 127.0.0.1 {port}/udp\n") as served:
        with Party() as client:
            for _ in range(5):
                client.send(b"round", ("127.0.0.1", port))
            await until(lambda: served.forwarder.stats().datagrams_lost == 5, "all are counted as lost")
            await served.has_told(closed=1)
            assert {record.errno for record in served.closed} == {errno.ELOOP}
            assert served.forwarder.stats().accepted == 1, "the client, told once"
    assert len(warnings_of(caplog, "ELOOP")) == 1


@pytest.mark.parametrize("bind", ["127.0.0.1", "0.0.0.0", "::"])
async def test_datagrams_from_our_own_listeners_are_dropped(
    engine: str, bind: str, caplog: pytest.LogCaptureFixture, port: int
) -> None:
    """As they come where somebody forges them: two rules to services that answer would answer each other for ever."""
    if os.geteuid() != 0:
        pytest.skip("forging a source needs root")
    with datagram_echo() as upstream:
        where = f"{upstream.address[0]} {upstream.address[1]}/udp"
        text = f"{engine}{bind} {port}/udp {where}\n127.0.0.2 0/udp {where}\n"
        async with serving(text) as served:
            second = served.forwarder.addresses[1].port
            forge(b"from the first", ("127.0.0.1", port), ("127.0.0.2", second))
            forge(b"from the second", ("127.0.0.2", second), ("127.0.0.1", port))
            forge(b"from itself", ("127.0.0.2", second), ("127.0.0.2", second))
            await until(lambda: served.forwarder.stats().datagrams_lost == 3, "all are counted as lost")
            with Party("127.0.0.3", second) as client:
                assert await client.ask(b"not ours", ("127.0.0.2", second)) == b"not ours"
            assert served.forwarder.stats().accepted == 1
    assert len(warnings_of(caplog, "dropping datagrams")) == 2, "once for each rule"


def forge(data: bytes, source: tuple[str, int], to: tuple[str, int]) -> None:
    """Send a datagram that claims to be from `source`."""
    total = 8 + len(data)
    header = source[1].to_bytes(2, "big") + to[1].to_bytes(2, "big") + total.to_bytes(2, "big") + bytes(2)
    packet = bytes.fromhex("4500") + (20 + total).to_bytes(2, "big") + bytes.fromhex("0000000040110000")
    packet += socket.inet_aton(source[0]) + socket.inet_aton(to[0]) + header + data
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.sendto(packet, (to[0], 0))


async def test_a_reload_makes_a_circle_and_breaks_it(engine: str, port: int, caplog: pytest.LogCaptureFixture) -> None:
    async with server(echo) as upstream:
        out = f"{engine}127.0.0.1 {port} 127.0.0.2 {port}\n127.0.0.2 {port} {upstream[0]} {upstream[1]}\n"
        back = f"{engine}127.0.0.1 {port} 127.0.0.2 {port}\n127.0.0.2 {port} 127.0.0.1 {port}\n"
        async with running(out) as (forwarder, _):
            assert await echoes(("127.0.0.1", port))
            await forwarder.reload(parse_config(back))
            await turned_away(("127.0.0.1", port))
            await until(lambda: warnings_of(caplog, "ELOOP"), "it is said")
            await forwarder.reload(parse_config(out))
            assert await echoes(("127.0.0.1", port))


def leg(
    bind: str, bind_port: int, to: str, to_port: int, protocol: Protocol = Protocol.TCP, v6only: bool = True
) -> Leg:
    return Leg(Bound(protocol, lookup(bind)[0].at(bind_port), False), protocol, (lookup(to)[0].at(to_port),))


def test_only_what_is_in_a_circle_is_marked() -> None:
    legs = [
        leg("127.0.0.1", 1, "127.0.0.1", 2),
        leg("127.0.0.1", 2, "127.0.0.1", 3),
        leg("127.0.0.1", 3, "127.0.0.1", 2),
        leg("127.0.0.1", 4, "127.0.0.1", 5),
        leg("127.0.0.1", 5, "192.0.2.1", 5),
        leg("127.0.0.1", 6, "127.0.0.1", 6, Protocol.UDP),
        leg("127.0.0.1", 7, "127.0.0.1", 6),
    ]
    assert [bool(found) for found in find_loops(legs)] == [False, True, True, False, False, True, False]


def test_a_long_chain_takes_no_time() -> None:
    legs = [leg("0.0.0.0", port, "10.0.0.1", port + 1) for port in range(1, 2000)]
    assert not any(find_loops(legs))
    legs.append(leg("0.0.0.0", 2000, "10.0.0.1", 1))
    assert all(find_loops(legs))


@pytest.mark.parametrize(
    ("bind", "v6only", "address", "taken"),
    [
        ("0.0.0.0", False, "::1", False), ("::", True, "127.0.0.1", False), ("::", False, "127.0.0.1", True),
        ("::", True, "::1", True), ("::ffff:10.0.0.1", False, "10.0.0.1", True), ("10.0.0.1", False, "10.0.0.2", False),
        ("127.0.0.1", False, "0.0.0.0", True), ("::1", True, "::", True), ("::1", True, "0.0.0.0", False),
    ],
)  # fmt: skip
def test_what_a_socket_takes(bind: str, v6only: bool, address: str, taken: bool) -> None:
    bound = Bound(Protocol.TCP, lookup(bind)[0].at(80), v6only)
    assert bound.takes(lookup(address)[0].at(80)) is taken


def test_addresses_of_this_machine(address: str) -> None:
    for host in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::", address, f"::ffff:{address}"):
        assert is_local(lookup(host)[0].at(80)), host
    for host in ("192.0.2.1", "2001:db8::1", "10.213.6.9"):
        assert not is_local(lookup(host)[0].at(80)), host
