"""Which connections each thread of a forwarder has: those that its epoll watches."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from pathlib import Path

__all__ = ["clients_by_poller"]

_ESTABLISHED = "01"


def clients_by_poller(pids: Iterable[int], port: int) -> dict[tuple[int, int], set[int]]:
    """The ports of the clients of `port`, by process and number of the epoll instance that watches their sockets."""
    found: dict[tuple[int, int], set[int]] = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            clients = _clients(pid, port)
            for info in Path(f"/proc/{pid}/fdinfo").iterdir():
                with contextlib.suppress(OSError):
                    watched = re.findall(r"(?m)^tfd:\s*(\d+)", info.read_text())
                    ports = {clients[link] for fd in watched if (link := _link(pid, fd)) in clients}
                    if ports:
                        found[pid, int(info.name)] = ports
    return found


def _link(pid: int, fd: str) -> str:
    try:
        return Path(f"/proc/{pid}/fd/{fd}").readlink().name
    except OSError:
        return ""


def _clients(pid: int, port: int) -> dict[str, int]:
    """The client's port of each connection to `port`, by the name that /proc gives its socket."""
    clients = {}
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == _ESTABLISHED and int(fields[1].rpartition(":")[2], 16) == port:
            clients[f"socket:[{fields[9]}]"] = int(fields[2].rpartition(":")[2], 16)
    return clients
