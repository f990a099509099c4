"""The capture as a process: `python -m bench.capture.sniffer --ports 80,8080 …`.

It writes `go` when the ring is open, captures packets until SIGTERM or SIGINT, and then writes one line of JSON:
counts, and every stream with its intervals.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import signal
import sys
from collections.abc import Sequence

from bench.capture.portfilter import PortFilter
from bench.capture.ring import Ring
from bench.capture.streams import Stream
from bench.errors import BenchError
from bench.extension import native

__all__ = ["BLOCK_BYTES", "SNAPLEN", "main", "sniffer_arguments"]

SNAPLEN = 128
"""The longest IPv4 and TCP headers that occur, and the first bytes of what they carry, for both tools."""

BLOCK_BYTES = 256 << 10


def sniffer_arguments(
    ports: Sequence[int], ring_bytes: int, *, block_bytes: int = BLOCK_BYTES, pcap: str = ""
) -> list[str]:
    """The command line of a sniffer with a ring of `ring_bytes`, rounded to whole blocks."""
    blocks = max(1, ring_bytes // block_bytes)
    words = ["--ports", ",".join(map(str, ports)), "--block-bytes", str(block_bytes), "--blocks", str(blocks)]
    return [*words, "--pcap", pcap] if pcap else words


def _processor_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _take(ring: Ring, options: argparse.Namespace, pcap: int, ended: int) -> dict[str, object]:
    capture = native().Capture(pcap, options.snaplen)
    begin = _processor_s()
    print("go", flush=True)
    over = False
    while not over:
        # A full ring is ready again at once: whether to end is asked each time round.
        ring.wait(None, ended)
        ring.drain(capture)
        over = _readable(ended)
    ring.finish(capture)
    if pcap >= 0:
        capture.flush()
    spent = _processor_s() - begin
    kernel = ring.count()
    return {
        "counts": capture.counts(),
        "kernel": {"packets": kernel.packets, "drops": kernel.drops, "freezes": kernel.freezes},
        "cpu_s": spent,
        "ring_bytes": ring.block_bytes * ring.block_count,
        "streams": [Stream.seen(figures).as_dict() for figures in capture.streams_seen()],
    }


def _readable(descriptor: int) -> bool:
    return bool(select.select([descriptor], [], [], 0)[0])


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.capture.sniffer")
    parser.add_argument("--ports", required=True, type=lambda text: [int(word) for word in text.split(",")])
    parser.add_argument("--block-bytes", type=int, default=BLOCK_BYTES)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--snaplen", type=int, default=SNAPLEN)
    parser.add_argument("--pcap", default="", help="write the packets to this file")
    options = parser.parse_args(words)
    ended, end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(end, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: None)
    pcap = os.open(options.pcap, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644) if options.pcap else -1
    try:
        with Ring(PortFilter(options.ports, options.snaplen), options.block_bytes, options.blocks) as ring:
            figures = _take(ring, options, pcap, ended)
    except (BenchError, OSError) as error:
        print(f"sniffer: {error}", file=sys.stderr)
        return 1
    print(json.dumps(figures), flush=True)
    return 0


if __name__ == "__main__":
    status = main()
    # What the interpreter does before it ends would be charged to the capture.
    os._exit(status)
