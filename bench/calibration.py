"""Compares the bench's client with a plain C client, which checks nothing: the client must not limit the result."""

from __future__ import annotations

import json
import statistics

from rich.console import Console
from rich.table import Table

from bench.compiler import compile_c
from bench.extension import native
from bench.key import KINDS
from bench.plan import Plan
from bench.programs import python_command
from bench.stand import FarEnd, Stand

__all__ = ["LEAST_RATIO", "calibrate"]

LEAST_RATIO = 0.9
ROUNDS = 9
_LOADS = (("rr", 1, 64), ("rr", 64, 64), ("rr", 1, 4096), ("crr", 1, 64), ("crr", 16, 64))
_OWN = {"rr": "exchange", "crr": "short"}
_START_S = 0.5
"""Of a client; for the reckoning of how long it takes."""
_CONTENT_S = 0.3


class _Pair:
    """Both clients against one server. One thread of load each: it is the client that is compared."""

    def __init__(self, stand: Stand, far: FarEnd, seconds: float) -> None:
        self.stand, self.far, self.seconds = stand, far, seconds
        self.host = stand.topology.server_address
        self.program = str(compile_c("client", stand.directory))
        self.key = native().Key(bytes.fromhex(stand.key))

    def plain(self, kind: str, connections: int, size: int) -> float:
        hello = self.key.hello(KINDS[_OWN[kind]], 1, size, size).hex()
        command = [
            self.program, kind, self.host, str(self.far.port), str(connections), str(size), str(self.seconds), hello,
        ]  # fmt: skip
        with self.stand.client(command) as program:
            return float(program.read_rest())

    def own(self, kind: str, connections: int, size: int) -> float:
        command = python_command(
            "bench.client", _OWN[kind], self.host, str(self.far.port), "--connections", str(connections),
            "--up", str(size), "--down", str(size), "--seconds", str(self.seconds), "--warm-up", "0.05",
        )  # fmt: skip
        with self.stand.client(command) as program:
            program.begun()
            program.read_line()
            figures = json.loads(program.read_rest())
        return float(figures["operations"] / figures["elapsed_s"])


def calibrate(seconds: float, console: Console) -> int:
    """Both clients in turn, the order changing; 0 if the own one reaches `LEAST_RATIO` everywhere."""
    table = Table(title="operations per second against the bench's server, no forwarder", title_justify="left")
    for title in ("load", "plain C", "bench", "ratio"):
        table.add_column(title, justify="left" if title == "load" else "right")
    worst = float("inf")
    planned_s = len(_LOADS) * ROUNDS * 2 * (seconds + _START_S)
    with Stand("loopback") as stand, stand.far_end() as far, Plan(console, planned_s) as plan:
        pair = _Pair(stand, far, seconds)
        for kind, connections, size in _LOADS:
            name = f"{'round trips' if kind == 'rr' else 'connect/close'}, {size} B × {connections}"
            plan.now(name)
            pairs: list[tuple[float, float]] = []
            for number in range(ROUNDS):
                if number % 2:
                    own = pair.own(kind, connections, size)
                    pairs.append((pair.plain(kind, connections, size), own))
                else:
                    pairs.append((pair.plain(kind, connections, size), pair.own(kind, connections, size)))
                plan.did(2 * (seconds + _START_S))
            plain_rate, own_rate = (statistics.median(rates) for rates in zip(*pairs, strict=True))
            ratio = own_rate / plain_rate
            worst = min(worst, ratio)
            table.add_row(name, f"{plain_rate:,.0f}", f"{own_rate:,.0f}", f"{ratio:.2f}")
        made, checked = pair.key.cost(_CONTENT_S)
    console.print(table)
    console.print(
        f"content: one core makes {made:.1f} GB/s and checks {checked:.1f} GB/s; of the ends' processor time that is "
        f"{1 / made:.3f} and {1 / checked:.3f} s for 10⁹ bytes",
        highlight=False,
    )
    if worst < LEAST_RATIO:
        console.print(f"the bench's client is below {LEAST_RATIO} of the plain one: its figures are in doubt")
        return 1
    return 0
