"""Soft interrupts: whose processor time they fall into, and both figures whatever the kernel charges."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from bench.account import Account
from bench.lab.script import read_events
from bench.lab.tracing import out_of_reach
from bench.profiles import profiles_of
from bench.results import Result
from bench.softirq import accounted_apart, look, times_of

SCRIPT = """\
python3  500/501   [000]   10.000000000: irq:softirq_entry: vec=3 [action=NET_RX]
swapper     0/0     [001]   10.000001000: irq:softirq_entry: vec=1 [action=TIMER]
python3  500/501   [000]   10.000004000: irq:softirq_exit: vec=3 [action=NET_RX]
swapper     0/0     [001]   10.000011000: irq:softirq_exit: vec=1 [action=TIMER]
nginx    600/600   [000]   10.000020000: irq:softirq_entry: vec=3 [action=NET_RX]
nginx    600/600   [000]   10.000050000: irq:softirq_exit: vec=3 [action=NET_RX]
nginx    600/600   [001]   10.000060000: irq:softirq_exit: vec=3 [action=NET_RX]
"""


def times(begin_ns: int = 0, end_ns: int = 20 * 10**9) -> tuple[float, float]:
    return times_of(read_events(SCRIPT.splitlines()), {500}, begin_ns, end_ns)


def test_time_on_top_of_a_task_of_the_subject_is_told_from_that_of_others() -> None:
    assert times() == (pytest.approx(44e-6), pytest.approx(4e-6))


def test_only_what_is_within_the_window_counts() -> None:
    whole, own = times(10 * 10**9 + 2000, 10 * 10**9 + 25_000)
    assert (whole, own) == (pytest.approx((2 + 9 + 5) * 1e-6), pytest.approx(2e-6))


def test_the_kernels_account_is_read_from_its_configuration() -> None:
    assert accounted_apart("CONFIG_A=y\nCONFIG_IRQ_TIME_ACCOUNTING=y\n")
    assert not accounted_apart("# CONFIG_IRQ_TIME_ACCOUNTING is not set\n")


def shown(**changes: Any) -> list[str]:
    found = {
        "case": "P8", "unit": "s/GB", "units": 2.0, "cpu_s": 0.4, "own_s": 0.1, "all_s": 0.3, "apart": False,
        "without": "", **changes,
    }  # fmt: skip
    result = Result("throughput", {}, {}, {}, profiles={"softirq": {"x": found}})
    (profile,) = profiles_of(result)
    return profile.rows[0]


def test_processor_time_is_shown_with_and_without_them() -> None:
    assert shown() == ["x", "0.200", "0.150", "25 %", "0.050", "0.150"]
    assert shown(apart=True) == ["x", "0.250", "0.200", "20 %", "0.050", "0.150"]
    assert shown(own_s=None, without="no tracefs") == ["x", "0.200", "n/a", "n/a", "n/a", "0.150"]
    assert shown(own_s=None, apart=True, without="no tracefs") == ["x", "n/a", "0.200", "n/a", "n/a", "0.150"]
    assert shown(cpu_s=None) == ["x", "n/a", "n/a", "n/a", "n/a", "0.150"]


@pytest.mark.skipif(bool(out_of_reach()) or shutil.which("perf") is None, reason="needs root, perf and tracefs")
def test_a_window_of_this_machine(tmp_path: Path) -> None:
    seen = look(Account(None, lambda: [os.getpid()]), 0.05, tmp_path)
    assert seen.without == ""
    assert seen.own_s is not None
    assert 0 <= seen.own_s <= seen.all_s
    assert list(tmp_path.glob("*.data")) == []


def test_without_tracepoints_the_sum_of_all_cores_remains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.softirq.out_of_reach", lambda: "no tracefs")
    seen = look(Account(None, lambda: [os.getpid()]), 0.02, tmp_path)
    assert (seen.own_s, seen.without) == (None, "no tracefs")
    assert seen.all_s >= 0
