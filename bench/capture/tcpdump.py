"""tcpdump, the capture to be compared with: its command, what it says at its end, the file it writes."""

from __future__ import annotations

import mmap
import re
from collections.abc import Sequence
from pathlib import Path

from bench.capture.ring import KernelCount
from bench.capture.streams import Stream
from bench.errors import BenchError
from bench.extension import native
from bench.tools import need

__all__ = ["LISTENING", "parse_counts", "read_pcap", "tcpdump_command"]

LISTENING = "listening on"
"""What it says when it is ready."""


def tcpdump_command(ports: Sequence[int], ring_bytes: int, snaplen: int, output: Path) -> list[str]:
    """Packets of all interfaces into a file; the ring is of the same size as that it is compared with."""
    chosen = " or ".join(f"port {port}" for port in ports)
    return [
        need("tcpdump"), "-i", "any", "-n", "-Z", "root", "-s", str(snaplen), "-B", str(ring_bytes // 1024),
        "-w", str(output), f"tcp and ({chosen})",
    ]  # fmt: skip


def parse_counts(said: str) -> KernelCount:
    """From its last words; raises `BenchError` if they are not there."""
    found = {what: int(count) for count, what in re.findall(r"(\d+) packets (received|dropped by kernel)", said)}
    if len(found) != 2:
        raise BenchError(f"tcpdump did not say what it has lost: {said.strip()[-200:]}")
    return KernelCount(found["received"], found["dropped by kernel"])


def read_pcap(path: Path) -> list[Stream]:
    """The streams of a pcap file. Raises `BenchError` if it is none."""
    capture = native().Capture()
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            capture.read_pcap(content)
    except (OSError, ValueError) as error:
        raise BenchError(f"{path}: {error}") from None
    return [Stream.seen(fields) for fields in capture.streams_seen()]
