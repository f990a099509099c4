"""iperf3 beside the bench's own load, for comparison with figures of others: the command and what its JSON says.

It does not look at what arrives. Before 3.16 it has one thread however many streams there are: `-P 8` may then measure
iperf3. The version is recorded with every result.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from bench.errors import BenchError
from bench.tools import need

__all__ = ["Transfer", "client_command", "parse_transfer", "server_command"]


@dataclass(frozen=True, slots=True)
class Transfer:
    """One test as the receiver saw it."""

    received_bytes: int
    seconds: float
    sent_bytes: int
    retransmits: int | None
    streams: int
    reverse: bool

    @property
    def gbit_s(self) -> float:
        return self.received_bytes * 8 / self.seconds / 1e9


def server_command(port: int) -> list[str]:
    return [need("iperf3"), "--server", "--port", str(port)]


def client_command(host: str, port: int, seconds: int, streams: int, reverse: bool) -> list[str]:
    """`reverse`: the server sends."""
    command = [need("iperf3"), "--client", host, "--port", str(port), "--json"]
    command += ["--time", str(seconds), "--parallel", str(streams), "--connect-timeout", "5000"]
    return [*command, "--reverse"] if reverse else command


def parse_transfer(text: str) -> Transfer:
    """The result of `iperf3 --json`. Raises `BenchError` with iperf3's own words if it failed."""
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
