"""iperf3 as a load: the command and what its JSON says.

iperf3 before 3.16 has one thread however many streams there are: `-P 8` may then measure iperf3. The version is
recorded with every result.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError
from bench.tools import need

__all__ = ["Transfer", "client_command", "in_flight_max_bytes", "parse_transfer", "server_command"]

_BUFFERS = (Path("/proc/sys/net/ipv4/tcp_rmem"), Path("/proc/sys/net/ipv4/tcp_wmem"))
_HELD_MAX_BYTES = 2 << 20
"""What a forwarder and two wires hold of a stream besides."""

STOP_S = 0.5
"""How long the word to stop may take from the client to a server on a busy machine."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """One test as the receiver saw it; `lost_bytes` were sent and had not arrived when the clock stopped."""

    received_bytes: int
    seconds: float
    sent_bytes: int
    retransmits: int | None
    streams: int
    reverse: bool

    @property
    def gbit_s(self) -> float:
        return self.received_bytes * 8 / self.seconds / 1e9

    @property
    def lost_bytes(self) -> int:
        return self.sent_bytes - self.received_bytes

    @property
    def plausible(self) -> bool:
        """Whether what arrived is what was sent, short of what can be in flight.

        In reverse, the server goes on counting until it hears that the client has stopped, which takes a moment.
        """
        slack = in_flight_max_bytes() * self.streams
        if self.reverse:
            slack += int(STOP_S * self.received_bytes / self.seconds)
        return self.received_bytes > 0 and -slack < self.lost_bytes < slack


@functools.cache
def in_flight_max_bytes() -> int:
    """What may be on its way of each stream when iperf3 stops counting: full buffers on both legs, at either end."""
    return _HELD_MAX_BYTES + 2 * sum(int(path.read_text().split()[2]) for path in _BUFFERS)


def server_command(port: int) -> list[str]:
    return [need("iperf3"), "--server", "--port", str(port)]


def client_command(host: str, port: int, seconds: int, streams: int, reverse: bool) -> list[str]:
    """`reverse`: the server sends."""
    command = [need("iperf3"), "--client", host, "--port", str(port), "--json"]
    command += ["--time", str(seconds), "--parallel", str(streams), "--connect-timeout", "5000"]
    return [*command, "--reverse"] if reverse else command


def parse_transfer(text: str) -> Transfer:
    """The result of `iperf3 --json`. Raises `BenchError` with iperf3's own words where it failed."""
    try:
        figures = json.loads(text)
    except ValueError:
        raise BenchError(f"iperf3 wrote no JSON: {text.strip()[:200] or 'nothing'}") from None
    if error := figures.get("error"):
        raise BenchError(f"iperf3: {error}")
    try:
        sent, received = figures["end"]["sum_sent"], figures["end"]["sum_received"]
        return Transfer(
            received_bytes=int(received["bytes"]),
            seconds=float(received["seconds"]),
            sent_bytes=int(sent["bytes"]),
            retransmits=sent.get("retransmits"),
            streams=len(figures["end"]["streams"]),
            reverse=bool(figures["start"]["test_start"]["reverse"]),
        )
    except (KeyError, TypeError) as missing:
        raise BenchError(f"iperf3's JSON has no {missing}") from None
