"""What the kernel and the far end say at one moment: written as they say it, read again for differences."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Difference", "Thread", "difference", "take_snapshot"]

STATUS_PATH = "/status"


@dataclass(frozen=True, slots=True)
class Thread:
    """A thread's account: nanoseconds on a processor and waiting for one, switches, each since it began."""

    name: str
    run_ns: int
    wait_ns: int
    voluntary: int
    involuntary: int


@dataclass(frozen=True, slots=True)
class Difference:
    """From one snapshot to the next. `requests` is None if nobody counts them.

    `sent_bytes` is what the interfaces of the service's namespace have sent, headers included. The sums over threads
    leave out those that began or ended between.
    """

    seconds: float
    sent_bytes: int
    requests: int | None
    cpu_s: float
    wait_s: float
    voluntary: int
    involuntary: int
    threads: dict[str, Thread]

    @property
    def gigabytes(self) -> float:
        return self.sent_bytes / 1e9


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a socket in the file system, which lies in no network namespace."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=5.0)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


def take_snapshot(directory: Path, pids: Iterable[int], status_socket: Path | None) -> None:
    """Write `clock`, `netdev`, `threads` and, where there is one to ask, nginx's `status` into `directory`."""
    directory.mkdir(parents=True)
    pids = list(pids)
    if status_socket is not None:
        connection = _UnixConnection(status_socket)
        with contextlib.closing(connection):
            connection.request("GET", STATUS_PATH)
            (directory / "status").write_bytes(connection.getresponse().read())
    (directory / "clock").write_text(f"{time.monotonic_ns()}\n")
    (directory / "netdev").write_text(Path(f"/proc/{pids[0]}/net/dev").read_text())
    (directory / "threads").write_text("".join(_thread_text(pid) for pid in pids))


def _thread_text(pid: int) -> str:
    parts = []
    for task in sorted(Path(f"/proc/{pid}/task").iterdir()):
        with contextlib.suppress(OSError):  # it ends just now
            status = (task / "status").read_text().splitlines()
            kept = [line for line in status if line.startswith(("Name:", "voluntary_", "nonvoluntary_"))]
            run = (task / "schedstat").read_text().strip()
            parts.append("\n".join([f"thread: {task.name}", *kept, f"schedstat: {run}"]) + "\n\n")
    return "".join(parts)


def read_threads(text: str) -> dict[str, Thread]:
    threads = {}
    for block in text.strip().split("\n\n"):
        fields = {key: value.strip() for key, _, value in (line.partition(":") for line in block.splitlines())}
        if "thread" in fields:
            run, wait, _count = map(int, fields["schedstat"].split())
            threads[fields["thread"]] = Thread(
                fields["Name"],
                run,
                wait,
                int(fields["voluntary_ctxt_switches"]),
                int(fields["nonvoluntary_ctxt_switches"]),
            )
    return threads


def read_netdev(text: str) -> int:
    """Bytes sent by all interfaces; by `lo` only where there is no other."""
    sent = {}
    for line in text.splitlines()[2:]:
        name, _, numbers = line.partition(":")
        sent[name.strip()] = int(numbers.split()[8])
    return sum(count for name, count in sent.items() if name != "lo") or sent.get("lo", 0)


def read_requests(text: str) -> int:
    """The third number under `server accepts handled requests` of nginx's stub_status."""
    found = re.search(r"^\s*(\d+)\s+(\d+)\s+(\d+)\s*$", text, re.MULTILINE)
    if found is None:
        raise ValueError("not nginx's status")
    return int(found.group(3))


def difference(before: Path, after: Path) -> Difference:
    """Between two snapshots."""

    def number(name: str, read: object = int) -> int:
        assert callable(read)
        return int(read((after / name).read_text())) - int(read((before / name).read_text()))

    first, last = (read_threads((directory / "threads").read_text()) for directory in (before, after))
    threads = {}
    for key in first.keys() & last.keys():
        old, new = first[key], last[key]
        threads[key] = Thread(
            new.name, new.run_ns - old.run_ns, new.wait_ns - old.wait_ns,
            new.voluntary - old.voluntary, new.involuntary - old.involuntary,
        )  # fmt: skip
    counted = (after / "status").exists()
    return Difference(
        seconds=number("clock") / 1e9,
        sent_bytes=number("netdev", read_netdev),
        requests=number("status", read_requests) - 1 if counted else None,  # the question itself is one
        cpu_s=sum(thread.run_ns for thread in threads.values()) / 1e9,
        wait_s=sum(thread.wait_ns for thread in threads.values()) / 1e9,
        voluntary=sum(thread.voluntary for thread in threads.values()),
        involuntary=sum(thread.involuntary for thread in threads.values()),
        threads=threads,
    )
