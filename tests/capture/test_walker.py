"""The walker of a ring's blocks: whatever a block says, nothing outside it is read, and what is whole is taken."""

from __future__ import annotations

import ctypes
import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.capture.packets import BLOCK_HEADER_BYTES, STATUS_LOSING, Packet, block

Capture = pytest.importorskip("bench._native").Capture

PACKETS = st.lists(
    st.builds(
        Packet,
        st.integers(0, 2**32 - 1),
        st.binary(max_size=120),
        captured=st.one_of(st.none(), st.integers(52, 90)),
    ),
    max_size=12,
)

libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


@contextmanager
def before_a_wall(content: bytes) -> Iterator[memoryview]:
    """`content` where the next byte may not be touched: one read too far ends the process."""
    size = -(-len(content) // mmap.PAGESIZE) * mmap.PAGESIZE
    pages = mmap.mmap(-1, size + mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    assert libc.mprotect(address + size, mmap.PAGESIZE, 0) == 0
    view = memoryview(pages)
    part = view[size - len(content) : size]
    part[:] = content
    try:
        yield part
    finally:
        part.release()
        view.release()
        assert libc.mprotect(address + size, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE) == 0


def counts(content: bytes | bytearray) -> dict[str, int]:
    capture = Capture()
    with before_a_wall(bytes(content)) as part:
        capture.walk(part)
    capture.streams_seen()
    return capture.counts()


@given(PACKETS, st.integers(0, 3))
def test_every_packet_of_a_sound_block(packets: list[Packet], gap: int) -> None:
    told = counts(block(packets, gap=gap * 16))
    assert told["packets"] == told["segments"] == len(packets)
    assert (told["blocks"], told["others"], told["malformed"]) == (1, 0, 0)


@given(st.binary(max_size=400))
def test_noise(content: bytes) -> None:
    told = counts(content)
    assert told["packets"] <= len(content)


@given(PACKETS, st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=8))
def test_damaged_blocks(packets: list[Packet], damage: list[tuple[int, int]]) -> None:
    content = block(packets)
    for at, value in damage:
        content[at % len(content)] = value
    assert counts(content)["blocks"] == 1


@given(PACKETS.filter(bool), st.integers(1, 400))
def test_blocks_that_end_too_early(packets: list[Packet], cut: int) -> None:
    whole = block(packets)
    told = counts(whole[: max(0, len(whole) - cut)])
    assert told["packets"] <= len(packets)
    # The last bytes may be padding, which nobody misses.
    assert told["packets"] == len(packets) or told["malformed"] == 1


def test_a_count_that_is_too_high() -> None:
    content = block([Packet(1, b"a"), Packet(2, b"b")])
    struct.pack_into("=I", content, 12, 4_000_000_000)
    assert counts(content)["packets"] == 2
    assert counts(content)["malformed"] == 1


def test_a_packet_that_points_beyond_the_block() -> None:
    content = block([Packet(1, b"a"), Packet(2, b"b")])
    struct.pack_into("=I", content, BLOCK_HEADER_BYTES, 2**32 - 16)
    told = counts(content)
    assert (told["packets"], told["malformed"]) == (1, 1)


def test_a_snapshot_longer_than_the_packet() -> None:
    content = block([Packet(1, b"a")])
    struct.pack_into("=I", content, BLOCK_HEADER_BYTES + 16, 3)
    assert counts(content)["malformed"] == 1


@pytest.mark.parametrize("data", [b"", b"\x45", bytes(60), b"\x60" + bytes(70), b"\x45" + bytes(19), b"\x00" * 20])
def test_what_is_not_tcp_is_counted_as_such(data: bytes) -> None:
    told = counts(block([data]))
    assert (told["packets"], told["others"], told["segments"]) == (1, 1, 0)


def test_fragments_are_not_followed() -> None:
    data = bytearray(Packet(1, b"abc").data())
    data[6:8] = struct.pack("!H", 0x2000)  # more to come
    assert counts(block([bytes(data)]))["others"] == 1


def test_extension_headers_of_ipv6() -> None:
    plain = Packet(1, b"abc", source=("fd00::2", 1), target=("fd00::1", 2)).data()
    options = bytes([6, 0]) + bytes(6)
    length = struct.pack("!H", len(plain) - 40 + 8)
    data = plain[:4] + length + bytes([0]) + plain[7:40] + options + plain[40:]
    assert counts(block([data]))["segments"] == 1
    endless = plain[:4] + struct.pack("!H", 800) + bytes([0]) + plain[7:40] + (bytes(8) * 20)
    assert counts(block([endless]))["others"] == 1


def test_the_mark_of_a_loss() -> None:
    content = block([Packet(1, b"a"), Packet(2, b"b")])
    struct.pack_into("=I", content, BLOCK_HEADER_BYTES + 20, STATUS_LOSING)
    assert counts(content)["losing"] == 1


def ring(*blocks: tuple[list[Packet], int], size: int = 4096) -> bytearray:
    return bytearray(b"".join(bytes(block(packets, size=size, status=status)) for packets, status in blocks))


def test_a_ring_is_taken_in_turn_and_given_back() -> None:
    capture = Capture()
    one, two, three = [Packet(1, b"a")], [Packet(2, b"b")], [Packet(3, b"c")]
    memory = ring((one, 1), (two, 1), (three, 0))
    assert capture.drain(memory, 4096) == 2
    assert [struct.unpack_from("=I", memory, at * 4096 + 8)[0] for at in range(3)] == [0, 0, 0]
    assert capture.drain(memory, 4096) == 0
    # The kernel fills the third block, and then the first again.
    memory[:] = ring((one, 1), (two, 0), (three, 1))
    assert capture.drain(memory, 4096) == 2
    assert capture.counts()["packets"] == 4
    assert capture.drain(memory, 4096) == 0


def test_a_full_ring_is_one_turn_and_no_more() -> None:
    capture = Capture()
    memory = ring(*[([Packet(1, b"a")], 1)] * 4)
    assert capture.drain(memory, 4096) == 4
    assert capture.counts()["blocks"] == 4


def test_a_ring_has_at_least_a_block() -> None:
    with pytest.raises(ValueError, match="at least one block"):
        Capture().drain(bytearray(100), 4096)
    with pytest.raises(ValueError, match="at least one block"):
        Capture().drain(bytearray(100), 4)
