"""Forwarders that bound a bandwidth: the way of a route is the bound, as oinetd's option is written, or `plain`."""

from __future__ import annotations

from collections.abc import Sequence

from bench.programs import descriptor_limit
from bench.subjects.oinetd import Oinetd
from bench.subjects.peers import Haproxy
from bench.subjects.subject import Route, Setup, Subject, size_text
from bench.subjects.trixie import RELEASE, Trixie
from bench.topology import Topology
from bench.ways import PLAIN

__all__ = ["bandwidth_subjects", "over_udp"]

_KEYS = {"bandwidth-per-source": ("src", "ip"), "bandwidth-per-rule": ("fe_id", "integer")}
"""What haproxy's filter counts by, and the type of its table."""
_FILTER_SINCE = (2, 7)


class _Oinetd(Oinetd):
    def __init__(self, base: str, engine: str, relay: str, size: int | None = None, protocol: str = "tcp") -> None:
        super().__init__(base, engine, relay, size)
        self.protocol = protocol

    def configuration(self, setup: Setup) -> str:
        suffix = "/udp" if self.protocol == "udp" else ""
        lines = [f"engine {self.engine}", f"relay {self.relay}"]
        if self.buffer_bytes is not None:
            lines.append(f"buffersize {size_text(self.buffer_bytes)}")
        if setup.threads and self.engine == "native":
            lines.append(f"threads {setup.threads}")
        for route in setup.routes:
            rule = f"{route.listen_host} {route.listen_port}{suffix} {route.connect_host} {route.connect_port}{suffix}"
            lines.append(rule if route.way == PLAIN else f"{rule} [{route.way}]")
        return "\n".join(lines) + "\n"


class _Haproxy(Haproxy):
    """With the filter `bwlim-out`, which copies: it has no splice under a bound."""

    def __init__(self) -> None:
        super().__init__(splice=False)

    def unavailable(self, topology: Topology) -> str | None:
        missing = super().unavailable(topology)
        if missing is None and _number(self.version()) < _FILTER_SINCE:
            return "bandwidth limits came with HAProxy 2.7: python -m bench peers"
        return missing

    def commands(self, setup: Setup) -> list[list[str]]:
        lines = ["global", f"    maxconn {(descriptor_limit() - 100) // 2}", "    tune.bufsize 65536"]
        if setup.threads:
            lines.append(f"    nbthread {setup.threads}")
        lines += ["defaults", "    mode tcp"]
        lines += [f"    timeout {what}" for what in ("connect 10s", "client 1h", "server 1h")]
        for index, route in enumerate(setup.routes):
            lines += _listen(index, route)
        path = setup.directory / "haproxy.cfg"
        path.write_text("\n".join(lines) + "\n")
        return [[self.path, "-db", "-f", str(path)]]


def _listen(index: int, route: Route) -> list[str]:
    lines = [f"listen route{index}", f"    bind {route.listen}", f"    server there {route.connect}"]
    if route.way == PLAIN:
        return lines
    bound, _, size = route.way.partition("=")
    limit = f"default-limit {size.lower()} default-period 1s"
    if bound in _KEYS:
        key, kind = _KEYS[bound]
        table = f"    stick-table type {kind} size 1k expire 1h store bytes_out_rate(1s)"
        lines = [f"backend table{index}", table, *lines]
        limit = f"limit {size.lower()} key {key} table table{index}"
    return [*lines, f"    filter bwlim-out out {limit}", "    tcp-request content set-bandwidth-limit out"]


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


class _TrixieHaproxy(Trixie, _Haproxy):
    def __init__(self) -> None:
        super().__init__()
        self.name = self.base = f"haproxy-{RELEASE}"


def bandwidth_subjects(buffers: Sequence[int] = ()) -> list[Subject]:
    """Those that copy are there once for each size of buffer."""
    sizes = list(buffers) or [65536]
    return [
        _Oinetd("native-auto", "native", "auto"),
        _Oinetd("native-splice", "native", "splice"),
        *(_Oinetd("native-copy", "native", "copy", size) for size in sizes),
        *(_Oinetd("python", "python", "copy", size) for size in sizes),
        _Haproxy(),
        _TrixieHaproxy(),
    ]


def over_udp(subject: Subject) -> Subject | None:
    """The same for datagrams; None if it has nothing for them. There is one way to relay those in each lane."""
    if not isinstance(subject, _Oinetd):
        return None
    return _Oinetd(subject.base, subject.engine, subject.relay, subject.buffer_bytes, "udp")
