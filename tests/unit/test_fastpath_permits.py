"""Gates: exact under many threads, and sources that come and go leave nothing behind."""

from __future__ import annotations

import random
import threading
from collections import Counter

import pytest

from oinetd.engine.cores import usable_cores
from oinetd.engine.native import ENDINGS, available
from oinetd.record import Ending

pytestmark = pytest.mark.skipif(bool(available()), reason=available())


def permits(max_connections: int = 0, max_per_source: int = 0):  # type: ignore[no-untyped-def]
    from oinetd._fastpath import Permits

    return Permits(max_connections, max_per_source)


def test_never_more_than_the_bound() -> None:
    gate = permits(10)
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
    gate = permits(0, 3)
    random_ = random.Random(7)
    hosts = [f"10.{i % 7}.{i // 7}.{i}" for i in range(200)] + [f"2001:db8::{i:x}" for i in range(200)]
    expected: Counter[str] = Counter()
    for _ in range(30_000):
        host = random_.choice(hosts)
        if random_.random() < 0.55:
            entered = gate.enter_source(host)
            assert entered == (expected[host] < 3)
            expected[host] += entered
        elif expected[host]:
            gate.leave_source(host)
            expected[host] -= 1
    for host in hosts:
        assert gate.of_source(host) == expected[host]


def test_an_ipv4_client_is_one_source_in_both_forms() -> None:
    gate = permits(0, 1)
    assert gate.enter_source("192.0.2.1")
    assert not gate.enter_source("::ffff:192.0.2.1")


def test_numbers_are_given_once() -> None:
    gate = permits()
    assert len({gate.next_id() for _ in range(1000)}) == 1000


def test_endings_are_numbered_as_the_data_plane_does() -> None:
    assert [ENDINGS.index(ending) for ending in (Ending.CLIENT_CLOSED, Ending.ABORTED, Ending.DENIED)] == [0, 7, 9]
    assert ENDINGS[16] is Ending.RESOLVE_FAILED
    assert len(ENDINGS) == 17


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
