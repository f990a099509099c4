"""Whether a sample is what it says: the content of streams, and the judgements over what both ends have counted."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.ambient import ambient_texts
from bench.commands.arguments import cores
from bench.cores import Cores
from bench.errors import BenchError
from bench.identity import RunName
from bench.isolation import changed_settings
from bench.path import PathQuality, kernel_has_netem
from bench.topology import topology_named
from bench.validity import (
    bulk_faults,
    drift_fault,
    exchange_faults,
    idle_operations_fault,
    idle_work_fault,
    short_faults,
    stream_fault,
)

_bench = pytest.importorskip("bench._native")
KEY = _bench.Key(bytes(range(16)))
BLOCK = 65536


@given(at=st.integers(0, 4 * BLOCK), count=st.integers(1, 3000), split=st.integers(0, 3000))
def test_a_stream_is_the_same_in_whatever_pieces(at: int, count: int, split: int) -> None:
    whole = KEY.stream(3, 1, at, count)
    first = min(split, count)
    assert KEY.stream(3, 1, at, first) + KEY.stream(3, 1, at + first, count - first) == whole
    assert KEY.check(3, 1, at, whole)


@given(at=st.integers(0, 4 * BLOCK), count=st.integers(1, 3000), change=st.integers(0, 1 << 30))
def test_one_changed_bit_is_seen(at: int, count: int, change: int) -> None:
    data = bytearray(KEY.stream(3, 1, at, count))
    data[change % count] ^= 1 << change % 8
    assert not KEY.check(3, 1, at, bytes(data))


def test_no_two_places_are_alike() -> None:
    piece = 16
    places = [(connection, direction, at) for connection in (1, 2) for direction in (1, 2)
              for at in range(0, 3 * BLOCK, 4096)]  # fmt: skip
    assert len({KEY.stream(*place, piece) for place in places}) == len(places)
    other = _bench.Key(bytes(16))
    assert other.stream(1, 1, 0, piece) != KEY.stream(1, 1, 0, piece)


SERVER = {"requests": 10, "wrong": 0, "accepted": 10, "bytes_in": 100, "bytes_out": 100}


def exchanged(**changes: Any) -> dict[str, Any]:
    return {"every": 10, "begun": 10, "wrong": 0, "faults": [], "streams": [10], "failures": 0, **changes}


def test_an_honest_exchange_has_no_fault() -> None:
    assert exchange_faults(exchanged(), SERVER) == []
    assert short_faults(exchanged(), SERVER) == []


@pytest.mark.parametrize(
    ("figures", "server", "text"),
    [
        ({}, {"requests": 7}, "3 requests were answered that the server never saw"),
        ({"wrong": 2}, {}, "2 of 10 answers were not what the server had sent"),
        ({}, {"wrong": 1}, "1 requests reached the server changed"),
        ({"every": 9}, {}, "1 of 10 requests were not answered"),
        ({}, {"requests": 12}, "2 requests reached the server that no client had sent: doubled"),
        ({"half_close": "silent"}, {}, "half-close not passed on: silent"),
        ({"faults": ["closed early"]}, {}, "connections closed early: 1 of 1"),
        ({}, {"reused": 1}, "used for more than one client"),
        ({}, {"early": 1}, "made before the client's"),
        ({}, {"repeated": 1}, "doubled"),
        ({}, {"foreign": 1}, "did not carry what the client had sent"),
    ],
)
def test_faults_of_exchanges(figures: dict[str, Any], server: dict[str, int], text: str) -> None:
    assert any(text in found for found in exchange_faults(exchanged(**figures), {**SERVER, **server}))


def test_faults_of_short_connections() -> None:
    assert short_faults(exchanged(failures=2, faults=["refused"]), SERVER) == ["2 of 10 connections failed (refused)"]
    assert short_faults(exchanged(), {**SERVER, "accepted": 14}) == [
        "4 connections to the server that no client had asked for"
    ]


def flow(**changes: Any) -> dict[str, Any]:
    return {"moved": 100, "wrong_at": None, "fault": 0, **changes}


def bulk(**changes: Any) -> dict[str, Any]:
    return {"faults": [], "streams": [100], "flows": [flow()], **changes}


def test_each_byte_of_bulk_is_accounted_for() -> None:
    assert bulk_faults(bulk(), SERVER, up=True) == bulk_faults(bulk(), SERVER, up=False) == []
    assert bulk_faults(bulk(), {**SERVER, "bytes_in": 99}, up=True) == ["1 of 100 bytes were lost"]
    assert bulk_faults(bulk(), {**SERVER, "bytes_in": 101}, up=True) == ["1 of 100 bytes were doubled"]
    assert bulk_faults(bulk(), {**SERVER, "bytes_out": 101}, up=False) == ["1 of 101 bytes were lost"]
    assert "about byte 70" in bulk_faults(bulk(flows=[flow(wrong_at=70)]), SERVER, up=False)[0]


def test_a_stream_that_is_left_out_is_seen() -> None:
    assert stream_fault([100, 100, 5])
    assert not stream_fault([100, 100, 5], busy=True)
    assert stream_fault([100, 100, 0], busy=True)
    assert stream_fault([100.0, 95.0, 6.0]) == ["1 of 3 streams got less than a tenth of the mean"]
    assert stream_fault([100.0, 40.0]) == stream_fault([5.0]) == stream_fault([0.0, 0.0]) == []


def test_a_rate_that_drifts_is_seen_and_noise_is_not() -> None:
    warm, timed = [10.0] * 20, [11.0] * 80
    assert drift_fault(warm + timed, 0.01, 0.2, 0.8) == []
    assert "as fast as in the warm-up" in drift_fault([1.0] * 20 + timed, 0.01, 0.2, 0.8)[0]
    assert "as fast as at the end" in drift_fault([30.0] * 20 + timed, 0.01, 0.2, 0.8)[0]
    assert drift_fault([1.0] * 10 + [8.0] + [1.0] * 9 + timed, 0.01, 0.2, 0.8) == []
    assert drift_fault(timed, 0.01, 0.0, 0.8) == []
    assert drift_fault([3.0] * 20 + timed, 0.01, 0.2, 0.8, busy=True) == []
    assert drift_fault([1.0] * 20 + timed, 0.01, 0.2, 0.8, busy=True)


def test_work_without_processor_time_is_done_elsewhere() -> None:
    assert idle_work_fault(0.001, 2.0)
    assert idle_operations_fault(0.0002, 5000)
    assert idle_operations_fault(0.05, 5000) == idle_operations_fault(None, 5000) == idle_operations_fault(0.0, 9) == []
    assert idle_work_fault(0.2, 2.0) == idle_work_fault(None, 2.0) == idle_work_fault(0.0, 0.01) == []


def test_what_the_machine_does_is_said_and_is_no_fault() -> None:
    facts = {"others_cores": 1.5, "steal_share": 0.2}
    texts = ambient_texts(facts, 0.97, [0.2, 0.99])
    assert [text.partition(":")[0] for text in texts] == [
        "busy", "busy", "the client was the limit", "the server was the limit",
    ]  # fmt: skip
    assert ambient_texts({"others_cores": 0.05, "steal_share": 0.0}, 0.5, [0.5]) == []
    assert ambient_texts({"others_cores": None}, 0.0, []) == []


def test_cores_are_shared_out_where_there_are_enough() -> None:
    assert Cores.choose([0, 1]) == Cores(loads=2)
    assert Cores.choose([0, 1]).pinned("client", ["x"]) == ["x"]
    many = Cores.choose(range(8))
    if many.client:  # taskset is there
        assert (many.client, many.forwarder, many.server, many.loads) == ("0,1", "2,3,4,5", "6,7", 2)
        assert many.pinned("server", ["x"]) == ["taskset", "--cpu-list", "6,7", "x"]


def test_cores_are_those_of_the_command_line() -> None:
    core = str(min(os.sched_getaffinity(0)))
    if not Cores.choose(range(8)).client:
        pytest.skip("taskset is not installed")
    assert Cores.given([core, core, core]) == Cores(core, core, core, loads=1)
    assert cores("0,1/2/3") == ["0,1", "2", "3"]
    for wrong in ("", "x", "100000"):
        with pytest.raises(BenchError, match="--cores"):
            Cores.given([core, wrong, core])
    with pytest.raises(argparse.ArgumentTypeError):
        cores("0/1")


def test_settings_that_a_subject_changed_are_named() -> None:
    assert changed_settings({"a": "1", "b": "2"}, {"a": "1", "b": "3", "c": "4"}) == ["b was 2 and is 3"]


def test_delay_loss_and_bandwidth_need_namespaces() -> None:
    assert PathQuality(rtt_ms=20, mbit=100).facts() == {"round trip added": "20 ms", "bandwidth": "100 Mbit/s"}
    with pytest.raises(BenchError, match="--topology netns"):
        topology_named("loopback", RunName.new(), PathQuality(loss_percent=1))


@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
@pytest.mark.skipif(
    any(shutil.which(name) is None for name in ("tc", "nft", "ethtool")), reason="needs iproute2, nftables"
)
def test_the_path_is_the_same_for_each_subject() -> None:
    """One after the other: the second one has the loss of one, not of two."""
    path = PathQuality(loss_percent=2, mbit=50)
    with topology_named("netns", RunName.new(), path) as topology:
        for _ in range(2):
            with topology.between():
                seen = {
                    place.namespace: "".join(
                        subprocess.run(place.enter(words), capture_output=True, text=True, check=True).stdout
                        for words in (["tc", "qdisc", "show"], ["nft", "list", "ruleset"])
                    )
                    for place in (topology.client, topology.server, topology.forwarder)
                }
        for place in (topology.client, topology.server):
            text = seen[place.namespace]
            assert "50Mbit" in text, text
            if kernel_has_netem():
                assert "loss 1%" in text, text
            else:
                assert text.count("numgen random mod 100000") == 2, text
                assert "< 1000 drop" in text, text
        assert [count for text in seen.values() if (count := text.count("50Mbit")) == 2], seen  # the forwarder's ends
