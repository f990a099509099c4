"""Delay, loss and bandwidth between client, forwarder and server: what a wire would have.

netem does it if the kernel has it. Without it, loss is dropped by nftables at random and bandwidth is limited by a
token bucket; delay is not to be had then, and is refused.
"""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from bench.errors import BenchError
from bench.identity import RunName
from bench.programs import Place
from bench.tools import need

__all__ = ["PLAIN", "PathQuality", "kernel_has_netem"]

_QUEUE_PACKETS = 100_000
"""Of netem: a queue that holds a window of a long fat path, so that what is lost is what was asked for."""
_BURST_MS = 5
"""A token bucket lets that much go at once."""


@dataclass(frozen=True, slots=True)
class PathQuality:
    """Of the whole path from client to server: `rtt_ms` both legs together, there and back.

    Half of delay and loss are on each leg. `mbit` limits either leg, in each direction. 0 stands for none.
    """

    rtt_ms: float = 0.0
    loss_percent: float = 0.0
    mbit: float = 0.0

    @property
    def shaped(self) -> bool:
        return bool(self.rtt_ms or self.loss_percent or self.mbit)

    def facts(self) -> dict[str, str]:
        """What is recorded with a result; nothing for a plain path."""
        found = {}
        if self.rtt_ms:
            found["round trip added"] = f"{self.rtt_ms:g} ms"
        if self.loss_percent:
            found["loss"] = f"{self.loss_percent:g} %"
        if self.mbit:
            found["bandwidth"] = f"{self.mbit:g} Mbit/s"
        return found

    def check(self) -> None:
        """Raise `BenchError` if this machine cannot do it."""
        if not self.shaped:
            return
        need("tc")
        if self.rtt_ms and not kernel_has_netem():
            raise BenchError("this kernel has no netem (CONFIG_NET_SCH_NETEM): delay is not to be had here")
        if self.loss_percent and not kernel_has_netem():
            need("nft")

    def apply(self, client: Place, server: Place, forwarder: Place) -> None:
        """Set it on both ends of both pairs. Each packet passes one end on each leg: a quarter of the round trip."""
        if not self.shaped:
            return
        ends = (
            (client, "to-forwarder"), (server, "to-forwarder"), (forwarder, "to-client"), (forwarder, "to-server"),
        )  # fmt: skip
        for place, device in ends:
            for command in self._commands(device):
                _run(place, command)
        if self.loss_percent and not kernel_has_netem():
            for place, _ in ends[:2]:
                _run(place, ["nft", "-f", "-"], self._drops())

    def _commands(self, device: str) -> list[list[str]]:
        if kernel_has_netem():
            words = ["tc", "qdisc", "add", "dev", device, "root", "netem", "limit", str(_QUEUE_PACKETS)]
            if self.rtt_ms:
                words += ["delay", f"{self.rtt_ms / 4:g}ms"]
            if self.loss_percent:
                words += ["loss", f"{self.loss_percent / 2:g}%"]
            if self.mbit:
                words += ["rate", f"{self.mbit:g}mbit"]
            return [words]
        if not self.mbit:
            return []
        burst = max(1600 * 8, int(self.mbit * 1e6 / 8 * _BURST_MS / 1e3))
        # A segment of 64 KiB does not fit a small bucket: it is cut up as a wire would.
        return [
            ["ethtool", "-K", device, "tso", "off", "gso", "off"],
            ["tc", "qdisc", "add", "dev", device, "root", "tbf", "rate", f"{self.mbit:g}mbit", "burst", str(burst),
             "latency", "50ms"],
        ]  # fmt: skip

    def _drops(self) -> str:
        """Rules that drop that share of what goes out and what comes in, at one end of each leg.

        They stand in place of those of the subject before: client and server stay for the whole run.
        """
        share = round(self.loss_percent / 2 * 1000)
        return (
            "table ip bench_loss\ndelete table ip bench_loss\ntable ip bench_loss {\n"
            "  chain out { type filter hook output priority 0; "
            f"numgen random mod 100000 < {share} drop; }}\n"
            "  chain in { type filter hook prerouting priority 0; "
            f"iif != lo numgen random mod 100000 < {share} drop; }}\n}}\n"
        )


PLAIN = PathQuality()


def _run(place: Place, command: Sequence[str], text: str = "") -> None:
    words = [need(command[0]), *command[1:]]
    done = subprocess.run(place.enter(words), input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchError(f"{' '.join(command[:2])}: {done.stderr.strip()}")


@functools.cache
def kernel_has_netem() -> bool:
    """Whether a netem queue can be made, tried on the loopback device of a namespace of its own."""
    from pyroute2 import netns

    if os.geteuid() != 0:
        return False
    name = f"{RunName.new()}-netem"
    netns.create(name)
    try:
        words = [need("tc"), "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"]
        done = subprocess.run(Place(name).enter(words), capture_output=True, check=False)
        return done.returncode == 0
    finally:
        netns.remove(name)
