"""The bench's own reference forwarders as subjects."""

from __future__ import annotations

import platform
from importlib.util import find_spec

from bench.programs import python_command
from bench.subjects.subject import Setup, Subject
from bench.topology import Topology

__all__ = ["references"]

BUFFER_BYTES = 65536
_WAYS = {
    "threads": "one thread per connection and direction, blocking sockets",
    "polling": "one thread and poll()",
    "tasks": "two asyncio tasks per connection, on uvloop",
}


class Reference(Subject):
    family = "reference"
    buffer_bytes = BUFFER_BYTES

    def __init__(self, way: str) -> None:
        self.way = way
        self.name = self.base = f"ref-{way}"
        self.note = _WAYS[way]

    def unavailable(self, topology: Topology) -> str | None:
        if self.way == "tasks" and find_spec("uvloop") is None:
            return "uvloop is not installed: pip install uvloop"
        return None

    def version(self) -> str:
        return f"Python {platform.python_version()}"

    def commands(self, setup: Setup) -> list[list[str]]:
        rules = [f"{route.listen}={route.connect}" for route in setup.routes]
        return [python_command(f"bench.reference.{self.way}", str(BUFFER_BYTES), *rules)]


def references() -> list[Subject]:
    return [Reference(way) for way in _WAYS]
