"""How many machines are needed: the model of docs/several-machines.md and its worked example, from stored results."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from bench.results import Result

__all__ = ["capacity_section"]

BUSY = 0.6
"""The part of a processor and of a network card that is planned with: peaks have the rest."""
FILLED = 0.7
"""The part of the memory that is planned with."""
PORTS = 64_000
_OINETD = "native-auto"


@dataclass(frozen=True, slots=True)
class Costs:
    """What one machine spends: processor seconds for a short connection and for a GB, bytes for an idle connection."""

    connection_s: float
    gb_s: float
    idle_bytes: float

    @classmethod
    def measured(cls, results: Mapping[str, Result]) -> Costs | None:
        """The medians of the results; None if something was not measured."""
        if not {"rate", "throughput"} <= set(results):
            return None
        rate, idle = results["rate"], [case for case in results["rate"].cases() if case.endswith(" idle")]
        figures = [
            rate.figure(_OINETD, "connect/close × 64", "cpu_us"),
            results["throughput"].figure(_OINETD, "P1", "cpu_s_per_gb"),
            *(
                rate.figure(_OINETD, idle[0], f"{whose}_bytes_each") if idle else None
                for whose in ("private", "kernel")
            ),
        ]
        medians = [figure.median for figure in figures if figure is not None]
        if len(medians) < len(figures):
            return None
        return cls(medians[0] / 1e6, medians[1], medians[2] + medians[3])

    @property
    def idle_kib(self) -> float:
        return self.idle_bytes / 1024


def capacity_section(results: Mapping[str, Result]) -> str | None:
    """The generated part of docs/several-machines.md, ending in a newline; None if the results lack a figure of it."""
    costs = Costs.measured(results)
    if costs is None:
        return None
    connection_us = f"{costs.connection_s * 1e6:.1f} µs"
    rows = [
        ["limit", "one machine", "machines"],
        ["---", "---", "---"],
        [
            "processor",
            f"{connection_us} for a short connection, {costs.gb_s:.3f} s for a GB",
            f"(new connections/s × {connection_us} + GB/s × {costs.gb_s:.3f} s) / (cores × {BUSY})",
        ],
        ["network", "its card", f"Gbit/s / (card × {BUSY})"],
        [
            "memory",
            f"{costs.idle_kib:.1f} KiB for an idle connection, most of it the kernel's sockets",
            f"connections × {costs.idle_kib:.1f} KiB / (memory × {FILLED})",
        ],
        [
            "ports",
            f"{PORTS:,} connections from one source address to one destination address and port",
            f"connections / ({PORTS:,} × source addresses × servers)",
        ],
    ]
    table = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*table, "", *_example(costs)]) + "\n"


def _example(costs: Costs) -> list[str]:
    """The model with numbers: a million connections."""
    connections, new, gbit, servers, cores, memory_gib, card = 1_000_000, 20_000, 10.0, 4, 4, 16, 10.0
    sources = 4
    busy = new * costs.connection_s + gbit / 8 * costs.gb_s
    held_gib = connections * costs.idle_bytes / 2**30
    processor, network = busy / (cores * BUSY), gbit / (card * BUSY)
    memory, ports = held_gib / (memory_gib * FILLED), connections / (PORTS * servers)
    machines = math.ceil(max(processor, network, memory, ports / sources))
    each = connections // machines
    return [
        f"plus one that may die, plus one that is being restarted. {BUSY} and {FILLED} leave room for peaks.",
        "",
        f"**A million connections**, of which {new:,} a second are new, {gbit:.0f} Gbit/s, {servers} servers, machines "
        f"with {cores} cores, {memory_gib} GiB and a {card:.0f} Gbit/s card:",
        "",
        f"- Processor: {new:,} × {costs.connection_s * 1e6:.1f} µs + {gbit / 8:.2f} × {costs.gb_s:.3f} s = {busy:.1f} "
        f"cores of {cores} × {BUSY}: {processor:.1f}.",
        f"- Network: {gbit:.0f} / ({card:.0f} × {BUSY}) = {network:.1f}.",
        f"- Memory: {connections:,} × {costs.idle_kib:.1f} KiB = {held_gib:.1f} GiB of {memory_gib * FILLED:.1f}: "
        f"{memory:.1f}.",
        f"- Ports: {connections:,} / ({PORTS:,} × {servers}) = {ports:.1f} with one source address a machine; with "
        f"{sources} (`src=`), {ports / sources:.1f}.",
        "",
        f"So {machines} machines carry it with {sources} source addresses each, and {machines + 2} are what to buy: "
        f"one may die while another one is restarted. Descriptors: each of the {machines} has {each:,} connections, "
        f"`LimitNOFILE=` above {2 * each:,}, and "
        "`net.netfilter.nf_conntrack_max` above that if connections are tracked.",
    ]
