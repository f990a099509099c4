"""Relays that cheat are told from honest ones: their samples say why, and the run ends with status 1."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from bench.results import Result

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

ROOT = Path(__file__).resolve().parents[2]
CHEATS = Path(__file__).with_name("cheats.py")


def bench(command: str, out: Path, *modes: str, more: tuple[str, ...] = ()) -> tuple[int, Result, str]:
    """One short run with a peer for each mode; its status, its result and what it printed."""
    peers = [
        word for mode in modes for word in ("--peer", f"{mode}={sys.executable} {CHEATS} {mode} {{listen}} {{connect}}")
    ]
    words = [sys.executable, "-m", "bench", command, "--quick", "--rounds", "1", "--seconds", "0.3", "--no-check",
             "--subjects", "direct", *peers, *more, "--out", str(out)]  # fmt: skip
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    found = list(out.glob("*.json"))
    assert found, done.stdout + done.stderr
    (path,) = found
    return done.returncode, Result.load(path), done.stdout + done.stderr


def check(status: int, result: Result, said: str, expected: Mapping[str, str]) -> None:
    """Each mode has an invalid sample with these words, and `direct` and `honest` have none."""
    assert status == 1, said
    for subject in result.subjects:
        texts = "; ".join(text for case in result.cases() for text in result.invalid(subject.name, case))
        if wanted := expected.get(subject.name):
            assert wanted in texts, (subject.name, texts, said)
            assert f"INVALID {subject.name}" in said
        else:
            assert texts == "", (subject.name, said)


BULK = {
    "lossy": "bytes were lost",
    "early": "closed early",
    "swap": "changed, swapped",
    "first": "streams silent",
    "reorder": "changed, swapped",
    "duplicate": "bytes were doubled",
    "change": "changed, swapped",
    "no-half-close": "half-close not passed on",
}


def test_streams_that_do_not_arrive_as_they_were_sent(tmp_path: Path) -> None:
    check(*bench("throughput", tmp_path, *BULK, "honest", more=("--no-iperf3", "--cases", "P8")), BULK)


def test_streams_that_come_back_otherwise(tmp_path: Path) -> None:
    expected = {"lossy": "with a gap", "duplicate": "doubled", "early": "closed early"}
    check(*bench("throughput", tmp_path, *expected, more=("--no-iperf3", "--cases", "P1 reverse")), expected)


def test_answers_that_the_server_did_not_give_and_work_that_is_not_counted(tmp_path: Path) -> None:
    expected = {
        "cache": "answered that the server never saw",
        "outside": "work outside the subject's processes",
        "slow-warm-up": "drift",
    }
    check(*bench("latency", tmp_path, *expected, "honest", more=("--cases", "64B × 1", "--seconds", "0.6")), expected)


def test_connections_that_were_there_before(tmp_path: Path) -> None:
    expected = {"reuse": "used for more than one client", "pool": "made before the client's"}
    check(*bench("rate", tmp_path, *expected, "honest", more=("--cases", "connect/close × 1")), expected)


def test_datagrams_that_are_doubled_or_changed(tmp_path: Path) -> None:
    expected = {"udp-double": "datagrams were doubled", "udp-change": "datagrams were changed"}
    more = ("--cases", "64B × 1, one under way each;64B × 1, 1000 offered a second", "--rate", "1000")
    check(*bench("udp", tmp_path, *expected, more=more), expected)


def test_a_stall_of_one_in_a_thousand_shows_at_a_fixed_rate(tmp_path: Path) -> None:
    status, result, said = bench("latency", tmp_path, "delay", more=("--rate", "2000", "--seconds", "1"))
    assert status == 0, said
    (case,) = result.cases()
    assert case.endswith("offered 2000/s")
    (stalled,) = result.values("delay", case, "p99.9_us")
    assert stalled > 200_000, said  # the stall itself is 250 ms; nothing is asserted of what is fast
