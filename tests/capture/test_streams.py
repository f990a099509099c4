"""Sequence numbers as the native capture follows them: against a set of positions, which is slow and plainly right."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.capture.streams import Stream, covered_within, missing_within
from tests.capture.packets import ACK, FIN, RST, SYN, Packet, block

Capture = pytest.importorskip("bench._native").Capture

INITIAL = st.one_of(st.integers(0, 2**32 - 1), st.integers(2**32 - 3000, 2**32 - 1))
SEGMENTS = st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 400)), max_size=60)
LENGTH = 3400


def seen(*packets: Packet) -> list[Stream]:
    capture = Capture()
    capture.walk(block(packets))
    assert capture.counts()["malformed"] == 0
    return [Stream.seen(told) for told in capture.streams_seen()]


def intervals_of(positions: set[int]) -> tuple[tuple[int, int], ...]:
    found: list[tuple[int, int]] = []
    for position in sorted(positions):
        if found and found[-1][1] == position:
            found[-1] = (found[-1][0], position + 1)
        else:
            found.append((position, position + 1))
    return tuple(found)


@given(INITIAL, SEGMENTS)
def test_any_segments_in_any_order(initial: int, segments: list[tuple[int, int]]) -> None:
    body = bytes(index % 251 for index in range(LENGTH))
    packets = [Packet(initial + 1 + start, body[start : start + size]) for start, size in segments]
    (stream,) = seen(Packet(initial, flags=SYN), *packets)
    positions = {position for start, size in segments for position in range(start, start + size)}
    assert stream.intervals == intervals_of(positions)
    assert stream.covered == len(positions)
    assert stream.payload == sum(size for _, size in segments)
    assert stream.repeated == stream.payload - len(positions)
    assert stream.packets == len(segments) + 1
    end = max(positions, default=-1) + 1
    assert stream.gaps == missing_within(stream.intervals, 0, end)
    assert sum(stop - start for start, stop in stream.gaps) == end - len(positions)
    head = bytes.fromhex(stream.head)
    assert head == body[: len(head)]
    assert len(head) == next((at for at in range(24) if at not in positions), 24)


@given(INITIAL, SEGMENTS)
def test_without_the_syn_positions_count_from_the_first_segment(initial: int, segments: list[tuple[int, int]]) -> None:
    packets = [Packet(initial + start, bytes(size)) for start, size in segments]
    streams = seen(*packets)
    if not segments:
        assert streams == []
        return
    positions = {position - segments[0][0] for start, size in segments for position in range(start, start + size)}
    assert streams[0].intervals == intervals_of(positions)
    assert not streams[0].begun
    assert streams[0].head == ""


@given(INITIAL, st.lists(st.integers(1, 2**30), min_size=1, max_size=24))
def test_numbers_wrap_and_positions_do_not(initial: int, steps: list[int]) -> None:
    at, expected, packets = 0, set(), [Packet(initial, flags=SYN)]
    for step in steps:
        packets.append(Packet(initial + 1 + at, b"x"))
        expected.add(at)
        at += step
    (stream,) = seen(*packets)
    assert stream.intervals == intervals_of(expected)


@given(INITIAL)
def test_syn_and_fin_count_for_one_each(initial: int) -> None:
    forth, back = (("10.0.1.2", 40000), ("10.0.1.1", 8080))
    packets = [
        Packet(initial, flags=SYN, source=forth, target=back),
        Packet(7, flags=SYN | ACK, ack=initial + 1, source=back, target=forth),
        Packet(initial + 1, b"question", ack=8, source=forth, target=back),
        Packet(8, b"answer", ack=initial + 9, source=back, target=forth),
        Packet(initial + 9, flags=FIN | ACK, ack=14, source=forth, target=back),
        Packet(14, flags=FIN | ACK, ack=initial + 10, source=back, target=forth),
        Packet(initial + 10, ack=15, source=forth, target=back),
    ]
    one, other = seen(*packets)
    assert (one.length, other.length) == (8, 6)
    assert (one.acknowledged, other.acknowledged) == (9, 7)
    assert (one.opposite, other.opposite) == (1, 0)
    assert one.begun
    assert one.ended
    assert one.gaps == []
    assert bytes.fromhex(other.head) == b"answer"


def test_a_gap_at_the_end_is_seen_by_the_answer() -> None:
    streams = seen(
        Packet(99, flags=SYN),
        Packet(7, flags=SYN | ACK, ack=100, source=("10.0.1.1", 8080), target=("10.0.1.2", 40000)),
        Packet(100, b"x" * 50),
        Packet(8, ack=100 + 80, source=("10.0.1.1", 8080), target=("10.0.1.2", 40000)),
    )
    # The last of what was acknowledged may have been a FIN.
    assert streams[0].extent == 79
    assert streams[0].gaps == [(50, 79)]


def test_a_syn_sent_again_begins_nothing_and_another_one_does() -> None:
    first = Packet(99, flags=SYN)
    assert len(seen(first, first, Packet(100, b"a"))) == 1
    one, two = seen(first, Packet(100, b"abc"), Packet(5000, flags=SYN), Packet(5001, b"de"))
    assert (one.covered, two.covered) == (3, 2)
    assert (one.base, two.base) == (100, 5001)


def test_a_reset_carries_no_data_and_moves_nothing() -> None:
    (stream,) = seen(Packet(99, flags=SYN), Packet(100, b"abc"), Packet(4_000_000, b"reason", flags=RST))
    assert stream.reset
    assert stream.intervals == ((0, 3),)


def test_many_streams_are_kept_apart() -> None:
    capture = Capture()
    for number in range(3000):
        source = (f"10.1.{number // 250}.{number % 250}", 1024 + number)
        capture.walk(
            block([Packet(number, flags=SYN, source=source), Packet(number + 1, bytes(number % 7 + 1), source=source)])
        )
    streams = [Stream.seen(told) for told in capture.streams_seen()]
    assert [stream.covered for stream in streams] == [number % 7 + 1 for number in range(3000)]
    assert [stream.source_port for stream in streams] == [1024 + number for number in range(3000)]


@pytest.mark.parametrize("ends", [("10.0.1.2", "10.0.1.1"), ("fd00::2", "fd00::1")])
def test_cut_packets_count_in_full(ends: tuple[str, str]) -> None:
    """The snapshot ends in the payload; what the header says was carried counts, and the rest is not looked at."""
    source, target = (ends[0], 40000), (ends[1], 8080)
    body = bytes(range(200))
    headers = len(Packet(0, source=source, target=target).data())
    (stream,) = seen(
        Packet(99, flags=SYN, source=source, target=target),
        Packet(100, body, source=source, target=target, captured=headers + 10),
    )
    assert stream.intervals == ((0, 200),)
    assert bytes.fromhex(stream.head) == body[:10]
    assert (stream.source, stream.target) == ends


@pytest.mark.parametrize("ends", [("10.0.1.2", "10.0.1.1"), ("fd00::2", "fd00::1")])
def test_offloaded_packets_beyond_64_kib(ends: tuple[str, str]) -> None:
    """Their header's length field is 0: what the kernel tells of the packet counts."""
    source, target = (ends[0], 40000), (ends[1], 8080)
    packet = Packet(1, b"", source=source, target=target, claimed=150_000)
    data = bytearray(packet.data())
    data[2:4] = b"\0\0" if ends[0][2] == "." else data[2:4]
    data[4:6] = b"\0\0" if ends[0][2] != "." else data[4:6]
    content = block([bytes(data)])
    struct.pack_into("=I", content, 48 + 16, packet.wire)
    capture = Capture()
    capture.walk(content)
    (told,) = capture.streams_seen()
    assert told["payload"] == 150_000


@given(
    st.lists(st.tuples(st.integers(-50, 300), st.integers(1, 40)), max_size=20),
    st.integers(0, 100),
    st.integers(0, 300),
)
@settings(max_examples=200)
def test_missing_and_covered_are_complements(segments: list[tuple[int, int]], first: int, size: int) -> None:
    positions = {position for start, length in segments for position in range(start, start + length)}
    wanted = set(range(first, first + size))
    intervals = intervals_of(positions)
    assert set().union(*(range(*gap) for gap in missing_within(intervals, first, first + size))) == wanted - positions
    assert covered_within(intervals, first, first + size) == len(wanted & positions)
