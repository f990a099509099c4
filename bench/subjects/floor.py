"""The floor of every table: no forwarder at all, and the kernel's own address translation."""

from __future__ import annotations

import os
import subprocess

from bench.errors import BenchError
from bench.programs import Place
from bench.subjects.subject import Route, Setup, Subject
from bench.tools import PACKAGES, available, version
from bench.topology import Topology

__all__ = ["Direct", "Nftables"]


class Direct(Subject):
    """The client connects to the server; between namespaces the packets are routed through the forwarder's."""

    name = base = "direct"
    family = "floor"
    note = "no forwarder: its CPU time is none, that of client and server together is the floor"

    def unavailable(self, topology: Topology) -> str | None:
        return None

    def commands(self, setup: Setup) -> list[list[str]]:
        return []

    def target(self, route: Route) -> tuple[str, int]:
        return route.connect_host, route.connect_port


class Nftables(Subject):
    """Destination NAT in the forwarder's namespace; the kernel does it while client and server are charged."""

    name = base = "nftables"
    family = "floor"
    note = "DNAT in the kernel: it has no process, its work is within the CPU time of client and server"

    def unavailable(self, topology: Topology) -> str | None:
        if not topology.forwarder.namespace:
            return "rewrites the host's own packets on loopback; it needs --topology netns"
        if os.geteuid() != 0:
            return "needs root"
        return None if available("nft") else f"nft is not installed: apt install {PACKAGES['nft']}"

    def version(self) -> str:
        return version("nft")

    def commands(self, setup: Setup) -> list[list[str]]:
        return []

    def open(self, setup: Setup) -> None:
        rules = "\n".join(
            f"    ip daddr {route.listen_host} tcp dport {route.listen_port} dnat to {route.connect}"
            for route in setup.routes
        )
        _nft(
            setup.topology.forwarder,
            "table ip bench {\n  chain to_server {\n    type nat hook prerouting priority dstnat;\n"
            f"{rules}\n  }}\n}}\n",
        )

    def close(self, setup: Setup) -> None:
        _nft(setup.topology.forwarder, "delete table ip bench\n")


def _nft(place: Place, ruleset: str) -> None:
    done = subprocess.run(
        place.enter([available("nft") or "nft", "-f", "-"]),
        input=ruleset,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise BenchError(f"nft: {done.stderr.strip()}")
