"""Compares the bench's client with a plain C client: the client must not limit the result."""

from __future__ import annotations

import json
import statistics

from rich.console import Console
from rich.table import Table

from bench.compiler import compile_c
from bench.programs import python_command
from bench.stand import Stand

__all__ = ["LEAST_RATIO", "calibrate"]

LEAST_RATIO = 0.9
ROUNDS = 9
_LOADS = (("rr", 1, 64), ("rr", 64, 64), ("rr", 1, 4096), ("crr", 1, 1), ("crr", 16, 1))
_OWN = {"rr": "round-trips", "crr": "connections"}


def calibrate(seconds: float, console: Console) -> int:
    """Both clients in turn, the order changing; 0 if the own one reaches `LEAST_RATIO` everywhere."""
    table = Table(title="operations per second against an echo server, no forwarder", title_justify="left")
    for title in ("load", "plain C", "bench", "ratio"):
        table.add_column(title, justify="left" if title == "load" else "right")
    worst = float("inf")
    with Stand("loopback") as stand, stand.native_server("echo") as port:
        host = stand.topology.server_address
        plain = str(compile_c("client", stand.directory))

        def run_plain(kind: str, connections: int, size: int) -> float:
            command = [plain, kind, host, str(port), str(connections), str(size), str(seconds)]
            with stand.client(command) as program:
                return float(program.read_rest())

        def run_own(kind: str, connections: int, size: int) -> float:
            command = python_command(
                "bench.client", _OWN[kind], host, str(port), "--connections", str(connections), "--size", str(size),
                "--seconds", str(seconds),
            )  # fmt: skip
            with stand.client(command) as program:
                program.read_line()
                figures = json.loads(program.read_rest())
            return float(figures["operations"] / figures["elapsed_s"])

        for kind, connections, size in _LOADS:
            pairs: list[tuple[float, float]] = []
            for number in range(ROUNDS):
                if number % 2:
                    own = run_own(kind, connections, size)
                    pairs.append((run_plain(kind, connections, size), own))
                else:
                    pairs.append((run_plain(kind, connections, size), run_own(kind, connections, size)))
            plain_rate, own_rate = (statistics.median(rates) for rates in zip(*pairs, strict=True))
            ratio = own_rate / plain_rate
            worst = min(worst, ratio)
            name = f"{'round trips' if kind == 'rr' else 'connect/close'}, {size} B × {connections}"
            table.add_row(name, f"{plain_rate:,.0f}", f"{own_rate:,.0f}", f"{ratio:.2f}")
    console.print(table)
    if worst < LEAST_RATIO:
        console.print(f"the bench's client is below {LEAST_RATIO} of the plain one: its figures are in doubt")
        return 1
    return 0
