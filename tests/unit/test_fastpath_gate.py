"""Gates: exact under many threads, and sources that come and go leave nothing behind."""

from __future__ import annotations

import ipaddress
import random
import threading
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oinetd.core.admission import LocalGate
from oinetd.lanes.native.cores import usable_cores
from oinetd.lanes.native.plane import available
from oinetd.model import SourcePrefix

WHOLE = SourcePrefix(32, 128)
"""Each address is a source."""

STEPS_MAX = 24
"""Entries that a look-up compares at most, in a table with a bucket for each source: for a hash that spreads evenly, a
chain so long comes once in more than 10^20 tables."""

pytestmark = pytest.mark.skipif(bool(available()), reason=available())


def make_gate(max_connections: int = 0, max_per_source: int = 0):  # type: ignore[no-untyped-def]
    from oinetd._fastpath import Gate

    return Gate(max_connections, max_per_source)


def test_never_more_than_the_bound() -> None:
    gate = make_gate(10)
    highest = 0
    turned_away = 0

    def come_and_go() -> None:
        nonlocal highest, turned_away
        for _ in range(3000):
            if gate.enter():
                highest = max(highest, gate.live)
                gate.leave()
            else:
                turned_away += 1

    inside = [gate.enter() for _ in range(8)]
    threads = [threading.Thread(target=come_and_go) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(inside)
    assert highest <= 10
    assert gate.live == 8
    assert [gate.enter() for _ in range(4)] == [True, True, False, False]


def test_sources_are_counted_like_a_counter() -> None:
    gate = make_gate(0, 3)
    random_ = random.Random(7)
    hosts = [f"10.{i % 7}.{i // 7}.{i}" for i in range(200)] + [f"2001:db8::{i:x}" for i in range(200)]
    expected: Counter[str] = Counter()
    for _ in range(30_000):
        host = random_.choice(hosts)
        if random_.random() < 0.55:
            entered = gate.enter_source(host, WHOLE)
            assert entered == (expected[host] < 3)
            expected[host] += entered
        elif expected[host]:
            gate.leave_source(host, WHOLE)
            expected[host] -= 1
    for host in hosts:
        assert gate.of_source(host, WHOLE) == expected[host]


def test_an_ipv4_client_is_one_source_in_both_forms() -> None:
    gate = make_gate(0, 1)
    assert gate.enter_source("192.0.2.1", SourcePrefix())
    assert not gate.enter_source("::ffff:192.0.2.1", SourcePrefix())


def fnv(packed: bytes) -> int:
    value = 2166136261
    for byte in packed:
        value = (value ^ byte) * 16777619 & 0xFFFFFFFF
    return value ^ value >> 15


NETWORK = bytes.fromhex("20010db800000001")

CHOSEN = {
    "one after the other": lambda i: NETWORK + i.to_bytes(8, "big"),
    "of many networks": lambda i: NETWORK[:4] + i.to_bytes(4, "big") + bytes(8),
    "a large stride": lambda i: NETWORK + (i << 32).to_bytes(8, "big"),
    "two halves that cancel each other": lambda i: (i * 0x9E3779B97F4A7C15 % 2**64).to_bytes(8, "little") * 2,
}


def check_chains(hosts: list[str]) -> None:
    gate = make_gate()
    for host in hosts:
        assert gate.enter_source(host, WHOLE)
    steps = [gate.source_steps(host, WHOLE) for host in hosts]
    assert max(steps) <= STEPS_MAX
    assert sum(steps) / len(steps) < 3
    for host in hosts:
        gate.leave_source(host, WHOLE)
    assert {gate.source_steps(host, WHOLE) for host in hosts[:100]} == {0}


@pytest.mark.parametrize("pattern", sorted(CHOSEN))
def test_chosen_addresses_make_no_long_chain(pattern: str) -> None:
    check_chains([str(ipaddress.IPv6Address(CHOSEN[pattern](i))) for i in range(8000)])


def test_addresses_that_collide_without_a_key_make_no_long_chain() -> None:
    """The same low bits of FNV-1a, which a stranger can compute."""
    random_ = random.Random(3)
    hosts: list[str] = []
    while len(hosts) < 1000:
        packed = NETWORK + random_.randbytes(8)
        if fnv(packed) & 0xFF == 5:
            hosts.append(str(ipaddress.IPv6Address(packed)))
    check_chains(hosts)


def test_each_table_has_a_key_of_its_own() -> None:
    hosts = [str(ipaddress.IPv6Address(NETWORK + i.to_bytes(8, "big"))) for i in range(1000)]
    gates = make_gate(), make_gate()
    for gate in gates:
        for host in hosts:
            gate.enter_source(host, WHOLE)
    first, second = ([gate.source_steps(host, WHOLE) for host in hosts] for gate in gates)
    assert first != second


def test_a_network_of_ipv6_is_one_source() -> None:
    gate = make_gate(0, 4)
    entered = [gate.enter_source(f"2001:db8::{i:x}", SourcePrefix()) for i in range(1, 41)]
    assert entered.count(True) == 4
    assert gate.enter_source("2001:db8:0:1::1", SourcePrefix())


def test_link_local_addresses_are_sources_of_their_own() -> None:
    gate = make_gate(0, 1)
    assert all(gate.enter_source(f"fe80::{i:x}%lo", SourcePrefix()) for i in range(1, 5))


def test_connections_that_were_counted_with_another_prefix_leave_what_they_entered() -> None:
    gate = make_gate(0, 10)
    assert gate.enter_source("2001:db8::1", WHOLE)
    assert gate.enter_source("2001:db8::1", SourcePrefix())
    gate.leave_source("2001:db8::1", WHOLE)
    assert (gate.of_source("2001:db8::1", WHOLE), gate.of_source("2001:db8::1", SourcePrefix())) == (0, 1)


ADDRESSES = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
    st.ip_addresses(v=4).map("::ffff:{}".format),
    st.integers(0, 0xFF).map("fe80::1:{:x}".format),
    st.integers(0, 0xFFFF).map("2001:db8::{:x}".format),
)
PREFIXES = st.builds(SourcePrefix, st.integers(0, 32), st.integers(0, 128))


@given(addresses=st.lists(ADDRESSES, max_size=30), prefix=PREFIXES, bound=st.integers(1, 3))
def test_both_lanes_see_the_same_sources(addresses: list[str], prefix: SourcePrefix, bound: int) -> None:
    native, local = make_gate(0, bound), LocalGate()
    local.set_limits(0, bound)
    for address in addresses:
        assert native.enter_source(address, prefix) == local.enter_source(address, prefix)


@pytest.mark.parametrize("prefix", [(33, 0), (0, 129)])
def test_a_prefix_that_is_longer_than_an_address(prefix: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="prefix"):
        make_gate().enter_source("192.0.2.1", prefix)


def test_numbers_are_given_once() -> None:
    gate = make_gate()
    assert len({gate.next_id() for _ in range(1000)}) == 1000


def test_cores(tmp_path) -> None:  # type: ignore[no-untyped-def]
    proc = tmp_path / "cgroup"
    root = tmp_path / "fs"
    (root / "a" / "b").mkdir(parents=True)
    proc.write_text("0::/a/b\n")
    (root / "a" / "b" / "cpu.max").write_text("max 100000\n")
    everything = usable_cores(tmp_path / "none", root)
    assert usable_cores(proc, root) == everything >= 1
    (root / "a" / "cpu.max").write_text("50000 100000\n")
    assert usable_cores(proc, root) == 0.5
    proc.write_text("4:cpu,cpuacct:/x\n0::/\n")
    (root / "cpu" / "x").mkdir(parents=True)
    (root / "cpu" / "x" / "cpu.cfs_quota_us").write_text("75000\n")
    (root / "cpu" / "x" / "cpu.cfs_period_us").write_text("100000\n")
    assert usable_cores(proc, root) == 0.75
