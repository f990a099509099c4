"""pcap files: what we write tcpdump reads, and what tcpdump or we wrote tells the same streams as the packets did."""

from __future__ import annotations

import errno
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.capture.packets import ACK, FIN, SYN, Packet, block

Capture = pytest.importorskip("bench._native").Capture

TALK = [
    Packet(999, flags=SYN),
    Packet(1000, b"GET / HTTP/1.0\r\n\r\n"),
    Packet(1018, b"x" * 100, captured=90),
    Packet(1118, flags=FIN | ACK),
    Packet(5, b"over IPv6", source=("fd00::2", 40001), target=("fd00::1", 8081)),
]

needs_tcpdump = pytest.mark.skipif(shutil.which("tcpdump") is None, reason="tcpdump is not installed")


def write(path: Path, packets: list[Packet], *, blocks: int = 1) -> Capture:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        capture = Capture(descriptor, 128)
        for _ in range(blocks):
            capture.walk(block(packets))
        capture.flush()
    finally:
        os.close(descriptor)
    assert path.stat().st_size == capture.counts()["pcap_bytes"]
    return capture


@needs_tcpdump
def test_tcpdump_reads_it(tmp_path: Path) -> None:
    write(tmp_path / "talk.pcap", TALK)
    told = subprocess.run(
        ["tcpdump", "-n", "-tt", "-S", "-r", tmp_path / "talk.pcap"], capture_output=True, text=True, check=True
    )
    lines = told.stdout.splitlines()
    assert "LINUX_SLL2" in told.stderr
    assert len(lines) == len(TALK)
    assert lines[0].startswith("1700000000.000000 ")
    assert "In" in lines[0].split()
    assert "IP 10.0.1.2.40000 > 10.0.1.1.8080: Flags [S], seq 999" in lines[0]
    assert "seq 1000:1018, ack 0, " in lines[1]
    assert lines[1].endswith("HTTP: GET / HTTP/1.0") or "length 18" in lines[1]
    assert "seq 1018:1118" in lines[2]
    assert "IP6 fd00::2.40001 > fd00::1.8081: Flags [.], seq 5:14" in lines[4]


def test_read_back_it_tells_the_same(tmp_path: Path) -> None:
    capture = write(tmp_path / "talk.pcap", TALK)
    again = Capture()
    assert again.read_pcap((tmp_path / "talk.pcap").read_bytes()) == len(TALK)
    assert again.streams_seen() == capture.streams_seen()


@needs_tcpdump
def test_a_file_that_tcpdump_wrote(tmp_path: Path) -> None:
    """Rewritten by tcpdump, in microseconds."""
    capture = write(tmp_path / "talk.pcap", TALK)
    copy = tmp_path / "copy.pcap"
    subprocess.run(["tcpdump", "-r", tmp_path / "talk.pcap", "-w", copy], check=True, capture_output=True)
    again = Capture()
    again.read_pcap(copy.read_bytes())
    without_times = [
        [{key: value for key, value in told.items() if not key.endswith("_ns")} for told in each.streams_seen()]
        for each in (capture, again)
    ]
    assert without_times[0] == without_times[1]


def test_more_than_a_buffer(tmp_path: Path) -> None:
    write(tmp_path / "long.pcap", TALK, blocks=2000)
    again = Capture()
    assert again.read_pcap((tmp_path / "long.pcap").read_bytes()) == 2000 * len(TALK)


@pytest.mark.parametrize(("link", "header"), [
    (1, b"\2" * 12 + b"\x08\x00"),
    (1, b"\2" * 12 + b"\x81\x00\x00\x07\x08\x00"),
    (101, b""),
    (113, b"\0" * 14 + b"\x08\x00"),
    (276, b"\x08\x00" + b"\0" * 18),
])  # fmt: skip
def test_links(link: int, header: bytes) -> None:
    data = header + Packet(7, b"abc").data()
    content = struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, link)
    content += struct.pack("=4I", 5, 6, len(data), len(data)) + data
    capture = Capture()
    assert capture.read_pcap(content) == 1
    (told,) = capture.streams_seen()
    assert (told["payload"], told["first_ns"]) == (3, 5_000_006_000)


@given(st.binary(max_size=300))
def test_noise_behind_a_header(noise: bytes) -> None:
    Capture().read_pcap(struct.pack("=IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 65535, 276) + noise)


@pytest.mark.parametrize("content", [b"", b"\0" * 24, b"\x0a\x0d\x0d\x0a" + b"\0" * 60])
def test_what_is_no_pcap_file(content: bytes) -> None:
    with pytest.raises(ValueError, match="not a pcap file"):
        Capture().read_pcap(content)


def test_a_disk_that_is_full_is_told_and_does_not_end_the_capture() -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    try:
        capture = Capture(descriptor, 128)
        for _ in range(2000):
            capture.walk(block(TALK))
        assert capture.counts()["packets"] == 2000 * len(TALK)
        with pytest.raises(OSError, match="could not be written") as raised:
            capture.flush()
        assert raised.value.errno == errno.ENOSPC
    finally:
        os.close(descriptor)
