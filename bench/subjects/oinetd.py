"""oinetd's engines and relay modes as subjects: `python -m oinetd -f -c FILE`, as an operator would run it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from importlib.util import find_spec

from bench.subjects.subject import Route, Setup, Subject, size_text
from bench.topology import Topology
from bench.ways import SERVER_NAME

__all__ = ["oinetd_subjects"]

_DEFAULT_BUFFER = 65536

# uvloop out of reach, oinetd takes asyncio's own loop.
_WITHOUT_UVLOOP = "import sys; sys.modules['uvloop'] = None; from oinetd.process.cli import main; sys.exit(main())"


class Oinetd(Subject):
    """One engine, relay mode, buffer size and number of threads.

    A size other than the default is part of the name, and a number of threads: `python@16K`, `native-copy@8K×2`.
    """

    family = "oinetd"
    ways = True

    def __init__(
        self,
        base: str,
        engine: str,
        relay: str,
        buffer_bytes: int | None = None,
        *,
        threads: int = 0,
        uvloop: bool = True,
    ) -> None:
        self.base = base
        self.engine = engine
        self.relay = relay
        self.buffer_bytes = buffer_bytes
        self.threads = threads
        self.uvloop = uvloop
        plain = buffer_bytes in (None, _DEFAULT_BUFFER)
        self.name = base if plain or buffer_bytes is None else f"{base}@{size_text(buffer_bytes)}"
        if threads:
            self.name += f"×{threads}"

    def unavailable(self, topology: Topology) -> str | None:
        if find_spec("oinetd") is None or find_spec("oinetd.process.cli") is None:
            return "oinetd is not installed: pip install -e ."
        if self.engine == "native" and find_spec("oinetd._fastpath") is None:
            return "oinetd's extension is not built: pip install -e . with a C compiler"
        return None

    def version(self) -> str:
        try:
            return package_version("oinetd")
        except PackageNotFoundError:
            return "source tree"

    def commands(self, setup: Setup) -> list[list[str]]:
        path = setup.directory / "oinetd.conf"
        path.write_text(self.configuration(setup))
        arguments = ["-f", "-c", str(path)]
        if self.uvloop:
            return [[sys.executable, "-m", "oinetd", *arguments]]
        return [[sys.executable, "-c", _WITHOUT_UVLOOP, *arguments]]

    def configuration(self, setup: Setup) -> str:
        lines = [f"engine {self.engine}", f"relay {self.relay}"]
        if self.buffer_bytes is not None:
            lines.append(f"buffersize {size_text(self.buffer_bytes)}")
        if self.engine == "native" and (threads := self.threads or setup.threads):
            lines.append(f"threads {threads}")
        for route in setup.routes:
            lines += _rule(route)
        return "\n".join(lines) + "\n"


def _rule(route: Route) -> list[str]:
    listen = f"{route.listen_host} {route.listen_port}" if route.listen_port else route.listen_host
    connect = f"{route.connect_host} {route.connect_port}" if route.connect_port else route.connect_host
    rule = f"{listen} {connect}"
    if route.way == "send-proxy":
        return [f"{rule} [send-proxy=v2]"]
    if route.way == "accept-proxy":
        return [f"{rule} [accept-proxy]", "trust 0.0.0.0/0"]
    if route.way == "sni":
        return [f"{rule} [sni={SERVER_NAME}]", f"{listen} 127.0.0.1 9 [sni=other.example.org]"]
    return [rule]


class Group(Oinetd):
    """The native lane with sixteen servers behind its rule, in place of one: all are addresses of the same server."""

    def __init__(self) -> None:
        super().__init__("native-group16", "native", "auto")
        self.family = "group"
        self.note = "sixteen servers, leastconn"

    def unavailable(self, topology: Topology) -> str | None:
        if not topology.server_addresses:
            return "its servers are addresses of a namespace: --topology netns"
        return super().unavailable(topology)

    def configuration(self, setup: Setup) -> str:
        lines = [f"engine {self.engine}", f"relay {self.relay}"]
        for number, route in enumerate(setup.routes):
            hosts = (route.connect_host, *setup.topology.server_addresses)
            lines += [f"upstream group{number} {host} {route.connect_port}" for host in hosts]
            lines.append(f"{route.listen_host} {route.listen_port} @group{number}")
        return "\n".join(lines) + "\n"


def oinetd_subjects(buffers: Sequence[int], threads: Sequence[int]) -> list[Subject]:
    """Splice has no buffer of its own and is there once; the modes that copy are there once for each size.

    Of several `threads`, the native ones are there for each.
    """
    sizes = list(buffers) or [_DEFAULT_BUFFER]
    counts = threads if len(threads) > 1 else [0]
    return [
        *(Oinetd("native-auto", "native", "auto", threads=count) for count in counts),
        Group(),
        *(Oinetd("native-splice", "native", "splice", threads=count) for count in counts),
        *(Oinetd("native-copy", "native", "copy", size, threads=count) for size in sizes for count in counts),
        *(Oinetd("python", "python", "copy", size) for size in sizes),
        *(Oinetd("python-asyncio", "python", "copy", size, uvloop=False) for size in sizes),
    ]
