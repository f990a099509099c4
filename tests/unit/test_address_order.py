"""Which address is tried next, by both lanes alike: turns, families, and those that failed."""

from __future__ import annotations

import errno
import random
import socket
from typing import Protocol

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oinetd.bounds import ADDRESSES_MAX
from oinetd.lanes.native.plane import available, compile_policy
from oinetd.model import Settings
from oinetd.net.sockets import Address
from oinetd.upstream.address_order import HOLD_MAX_MS, HOLD_MS, AddressOrder, is_of_the_server

NOW = 1_000_000

PLACES = ("2001:db8::1", "2001:db8::2", "192.0.2.1", "192.0.2.2", "192.0.2.3")


class Order(Protocol):
    """What both lanes have."""

    def begin(self) -> int: ...
    def pick(self, tried: int, turn: int, now_ms: int) -> int: ...
    def failed(self, at: int, now_ms: int) -> None: ...
    def worked(self, at: int) -> None: ...


class NativeOrder:
    """That of the native lane, with the names of the other."""

    def __init__(self, addresses: tuple[Address, ...], before: NativeOrder | None = None) -> None:
        places = tuple(address.sockaddr for address in addresses)
        old = before.rules if before is not None else None
        self.rules = compile_policy(1, None, Settings(), addresses=places, before=old)
        self.begin = self.rules.begin_search
        self.pick = self.rules.pick_address
        self.failed = self.rules.note_failed
        self.worked = self.rules.note_worked


KINDS = [AddressOrder] if available() else [AddressOrder, NativeOrder]


def address(host: str) -> Address:
    return Address(socket.AF_INET6, (host, 80, 0, 0)) if ":" in host else Address(socket.AF_INET, (host, 80))


def addresses(*hosts: str) -> tuple[Address, ...]:
    return tuple(address(host) for host in hosts)


def all_in_order(order: Order, turn: int, now_ms: int = NOW) -> list[int]:
    """The addresses in the order in which one search tries them."""
    found: list[int] = []
    tried = 0
    while (at := order.pick(tried, turn, now_ms)) >= 0:
        tried |= 1 << at
        found.append(at)
    return found


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> type[AddressOrder]:
    return request.param  # type: ignore[no-any-return]


def test_addresses_take_turns(kind: type[AddressOrder]) -> None:
    order = kind(addresses("192.0.2.1", "192.0.2.2", "192.0.2.3"))
    begun = [order.begin() for _ in range(12)]
    firsts = [order.pick(0, turn, NOW) for turn in begun]
    assert [firsts.count(at) for at in range(3)] == [4, 4, 4]


def test_families_alternate_and_the_resolvers_first_goes_first(kind: type[AddressOrder]) -> None:
    order = kind(addresses("2001:db8::1", "2001:db8::2", "192.0.2.1", "192.0.2.2", "192.0.2.3"))
    assert all_in_order(order, 0) == [0, 2, 1, 3, 4]
    assert all_in_order(order, 1) == [1, 3, 0, 4, 2]
    other = kind(addresses("192.0.2.1", "2001:db8::1"))
    assert {other.pick(0, turn, NOW) for turn in range(9)} == {0}


def test_one_that_failed_is_tried_last_for_a_while(kind: type[AddressOrder]) -> None:
    order = kind(addresses("192.0.2.1", "192.0.2.2"))
    order.failed(0, NOW)
    assert [all_in_order(order, turn, NOW + HOLD_MS - 1) for turn in (0, 1)] == [[1, 0], [1, 0]]
    assert all_in_order(order, 0, NOW + HOLD_MS) == [0, 1]
    order.failed(0, NOW + HOLD_MS)  # again: for twice the time
    assert all_in_order(order, 0, NOW + 3 * HOLD_MS - 1) == [1, 0]
    assert all_in_order(order, 0, NOW + 3 * HOLD_MS) == [0, 1]
    order.worked(0)
    assert all_in_order(order, 0, NOW + 3 * HOLD_MS) == [0, 1]
    order.failed(0, NOW + 4 * HOLD_MS)  # one success forgets all
    assert all_in_order(order, 0, NOW + 5 * HOLD_MS) == [0, 1]


def test_the_time_is_bounded(kind: type[AddressOrder]) -> None:
    order, now = kind(addresses("192.0.2.1", "192.0.2.2")), NOW
    for _ in range(20):
        order.failed(0, now)
        now += HOLD_MAX_MS
    assert all_in_order(order, 0, now) == [0, 1]


def test_where_all_failed_the_oldest_failure_goes_first(kind: type[AddressOrder]) -> None:
    order = kind(addresses("192.0.2.1", "192.0.2.2", "192.0.2.3"))
    for at, when in ((0, 3), (1, 1), (2, 2)):
        order.failed(at, NOW + when)
    assert all_in_order(order, 0, NOW + 4) == [1, 2, 0]


def test_what_is_known_of_an_address_outlives_the_others(kind: type[AddressOrder]) -> None:
    order = kind(addresses("192.0.2.1", "192.0.2.2"))
    order.failed(0, NOW)
    later = kind(addresses("192.0.2.3", "192.0.2.1"), order)
    assert all_in_order(later, 1) == [0, 1]


def test_one_address_and_none(kind: type[AddressOrder]) -> None:
    assert all_in_order(kind(()), 0) == []
    order = kind(addresses("192.0.2.1"))
    order.failed(0, NOW)
    assert (order.begin(), order.begin(), all_in_order(order, 0)) == (0, 0, [0])


@pytest.mark.skipif(bool(available()), reason="without the extension there is one lane")
@given(st.integers(0, 2**32), st.integers(1, len(PLACES)))
def test_both_lanes_choose_alike(seed: int, count: int) -> None:
    """Whatever happened before."""
    chance = random.Random(seed)
    hosts = chance.sample(PLACES, count)
    ours, native = AddressOrder(addresses(*hosts)), NativeOrder(addresses(*hosts))
    now = NOW
    for _ in range(60):
        now += chance.choice((0, 1, 500, HOLD_MS, 3 * HOLD_MS, HOLD_MAX_MS))
        turn = ours.begin()
        assert native.begin() == turn
        assert all_in_order(ours, turn, now) == all_in_order(native, turn, now)
        at = chance.randrange(count)
        for order in (ours, native):
            order.failed(at, now) if seed & 1 else order.worked(at)
        seed = chance.getrandbits(8)
        if seed < 20:
            hosts = chance.sample(PLACES, count)
            ours, native = AddressOrder(addresses(*hosts), ours), NativeOrder(addresses(*hosts), native)


@pytest.mark.skipif(bool(available()), reason="it is the extension's")
def test_both_lanes_have_room_for_as_many() -> None:
    many = addresses(*(f"192.0.2.{number}" for number in range(1, ADDRESSES_MAX + 2)))
    assert len(all_in_order(NativeOrder(many[:-1]), 0)) == ADDRESSES_MAX
    with pytest.raises(ValueError, match="at most 16"):
        NativeOrder(many)


def test_which_failures_are_the_servers() -> None:
    assert all(map(is_of_the_server, (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ETIMEDOUT)))
    assert not any(map(is_of_the_server, (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.EADDRNOTAVAIL)))
