"""What the bench reckons: medians, lines, percentiles, orders, and the formats it writes."""

from __future__ import annotations

import gzip
import itertools
import random
from collections import Counter
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.account import Switches, read_smaps
from bench.flamegraph import flamegraph
from bench.gobench import line, parse
from bench.histogram import bucket_of, lower_bound, percentile_ns, percentiles_us
from bench.plan import interleave
from bench.pprof import encode, varint
from bench.stacks import Stacks
from bench.statistics import fit_line, summarise


def test_the_interval_of_few_samples_is_their_range() -> None:
    summary = summarise([3.0, 1.0, 2.0])
    assert summary is not None
    assert (summary.median, summary.low, summary.high, summary.count, summary.confidence) == (2.0, 1.0, 3.0, 3, 0.0)
    assert summarise([]) is None


def test_the_interval_of_ten_samples_leaves_out_the_extremes() -> None:
    summary = summarise([float(value) for value in range(10)])
    assert summary is not None
    # From the second to the ninth: outside lie 2 * (1 + 10) of 1024 cases.
    assert (summary.median, summary.low, summary.high) == (4.5, 1.0, 8.0)
    assert summary.confidence == pytest.approx(1 - 22 / 1024)


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=40))
def test_the_median_lies_in_its_interval(values: list[float]) -> None:
    summary = summarise(values)
    assert summary is not None
    assert min(values) <= summary.low <= summary.median <= summary.high <= max(values)


def test_a_line_is_found_again() -> None:
    points = [(float(size), 8000 + 0.12 * size) for size in (1, 64, 2048, 1 << 16, 1 << 20)]
    fitted = fit_line(points)
    assert fitted is not None
    assert fitted.intercept == pytest.approx(8000)
    assert fitted.slope == pytest.approx(0.12)
    assert fit_line([(1.0, 2.0), (1.0, 3.0)]) is None


@given(st.integers(0, 2**38 - 1))
def test_a_bucket_holds_its_values_within_a_128th(value: int) -> None:
    bucket = bucket_of(value)
    assert lower_bound(bucket) <= value < lower_bound(bucket + 1)
    assert lower_bound(bucket + 1) - lower_bound(bucket) <= max(1, value / 128)


def test_percentiles_are_those_of_the_values() -> None:
    chance = random.Random(4)
    values = sorted(int(chance.lognormvariate(11, 1)) for _ in range(20_000))
    histogram = sorted(Counter(map(bucket_of, values)).items())
    for percent in (50.0, 90.0, 99.0, 99.9):
        exact = values[round(len(values) * percent / 100) - 1]
        assert percentile_ns(histogram, percent) == pytest.approx(exact, rel=0.01)
    assert percentiles_us([])["p99.9_us"] is None


def test_every_other_round_is_reversed() -> None:
    assert list(interleave("abc", 3)) == list(zip([0] * 3 + [1] * 3 + [2] * 3, "abccbaabc", strict=True))


def test_switches_of_a_thread_that_ended_are_unknown() -> None:
    before = Switches({1: (10, 1, 2), 2: (5, 0, 0)})
    assert Switches({1: (15, 2, 3), 2: (5, 0, 0), 3: (1, 1, 1)}).since(before) == (8, 2)
    assert Switches({1: (15, 2, -1), 2: (5, 0, -1)}).since(before) == (6, None)
    assert Switches({1: (15, 2, 3)}).since(before) is None


def test_memory_is_read_in_bytes() -> None:
    text = "00400000-7ffe Rss: 1\nRss: 9000 kB\nPss: 5120 kB\nPss_Anon: 1 kB\nPrivate_Dirty: 2 kB\n"
    assert read_smaps(text, "Pss") == 5 << 20
    assert read_smaps(text, "Private_Clean", "Private_Dirty") == 2048
    assert read_smaps("", "Pss") == 0


def test_go_benchmark_text_is_read_again() -> None:
    row = line("Relay/engine=native/len(payload)=64", 120_000, {"ns_op": 21_345.4, "allocs_op": 0.5, "bytes_op": None})
    ((name, operations, values),) = parse([row, "goos: linux", "PASS"])
    assert name.startswith("BenchmarkRelay/engine=native/len(payload)=64-")
    assert operations == 120_000
    assert values == {"ns/op": 21345, "allocs/op": 0.5}


STACKS: Stacks = Counter({("main", "loop", "recv"): 3, ("main", "loop", "send"): 2, ("main",): 1})


def fields(message: bytes) -> list[tuple[int, int | bytes]]:
    """A protocol buffer's fields, numbers and bytes."""
    found: list[tuple[int, int | bytes]] = []
    place = 0

    def number() -> int:
        nonlocal place
        value = 0
        for shift in itertools.count(0, 7):
            byte = message[place]
            place += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise AssertionError

    while place < len(message):
        key = number()
        if key & 7 == 0:
            found.append((key >> 3, number()))
        else:
            assert key & 7 == 2
            size = number()
            found.append((key >> 3, message[place : place + size]))
            place += size
    return found


def test_the_profile_holds_what_was_sampled() -> None:
    profile = fields(gzip.decompress(encode({"native-copy": STACKS}, 2_000_000, 1_700_000_000_000_000_000)))
    strings = [value.decode() for field, value in profile if field == 6 and isinstance(value, bytes)]
    assert strings[0] == ""
    functions = {}
    for field, value in profile:
        if field == 5:
            assert isinstance(value, bytes)
            told = dict(fields(value))
            functions[told[1]] = strings[int(told[2])]
    samples = {}
    for field, value in profile:
        if field == 2:
            assert isinstance(value, bytes)
            parts = fields(value)
            locations, values = (next(data for number, data in parts if number == wanted) for wanted in (1, 2))
            assert isinstance(locations, bytes)
            assert isinstance(values, bytes)
            count = values[0]
            assert values[1:] == varint(count * 2_000_000)
            samples[tuple(functions[location] for location in reversed(locations))] = count
    assert samples == STACKS


def test_the_flame_graph_is_svg_with_every_function() -> None:
    drawn = ElementTree.fromstring(flamegraph(STACKS + Counter({("main", "<&>"): 1}), "a & b"))
    tips = [each.text or "" for each in drawn.iter("{http://www.w3.org/2000/svg}title")]
    assert "loop: 5 samples, 71.4 %" in tips
    assert any(tip.startswith("<&>: 1 ") for tip in tips)
    assert flamegraph(Counter(), "nothing").endswith("</svg>\n")
