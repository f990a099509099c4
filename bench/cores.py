"""Which cores client, forwarder and server run on: cores of their own if there are enough, else all of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from bench.errors import BenchError
from bench.tools import available, need

__all__ = ["Cores"]

LEAST_CORES = 6
"""From here on each of the three has two cores at least; below that, cores of one's own would stand idle."""


@dataclass(frozen=True, slots=True)
class Cores:
    """The cores of each place, by the words of `taskset`; empty if nothing is pinned."""

    client: str = ""
    forwarder: str = ""
    server: str = ""
    loads: int = 1
    """Threads of client and of server, each."""

    @classmethod
    def choose(cls, usable: Sequence[int] | None = None) -> Cores:
        cores = sorted(os.sched_getaffinity(0)) if usable is None else list(usable)
        if len(cores) < LEAST_CORES or not available("taskset"):
            return cls(loads=max(1, len(cores)))
        third = len(cores) // 3
        parts = cores[:third], cores[third : len(cores) - third], cores[len(cores) - third :]
        client, forwarder, server = (",".join(map(str, part)) for part in parts)
        return cls(client, forwarder, server, third)

    @classmethod
    def given(cls, lists: Sequence[str]) -> Cores:
        """The lists of client, forwarder and server, such as `0`, `1` and `0`. Raises `BenchError` for another core."""
        need("taskset")
        usable = os.sched_getaffinity(0)
        for cores in lists:
            for core in cores.split(","):
                if not core.isdecimal() or int(core) not in usable:
                    raise BenchError(f"--cores: {core or 'nothing'} is none of {', '.join(map(str, sorted(usable)))}")
        client, forwarder, server = lists
        return cls(client, forwarder, server, len(set(client.split(","))))

    def pinned(self, place: str, command: Sequence[str]) -> list[str]:
        """`command`, on the cores of `place`."""
        cores: str = getattr(self, place)
        return ["taskset", "--cpu-list", cores, *command] if cores else list(command)

    def facts(self) -> dict[str, str]:
        """What is recorded with a result."""
        if not self.client:
            return {"pinning": "none: too few cores"}
        return {"pinning": f"client {self.client}; forwarder {self.forwarder}; server {self.server}"}
