"""The namespaces that a subject runs in, and whether all of its work is done in there.

A holder process is the first one of a PID namespace, with a mount and a control-group namespace of its own. Its end is
the end of everything that was started in there, by the kernel's own hand. What the subject starts, as a child or as a
daemon, stays in there; so its processor time is that of the control group, and a process that has left the group, or
one elsewhere that holds sockets of the subject's network, is work that the figures do not show.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from bench.cgroup import Group
from bench.identity import RunName
from bench.programs import Place, Program, children_of, wait_until

__all__ = ["Isolation", "changed_settings", "settings_of"]

_PATIENCE_S = 10.0
_TABLES = ("tcp", "tcp6", "udp", "udp6")
_VOLATILE = (
    "fs.", "kernel.random.", "kernel.ns_last_pid", "kernel.pty.", "kernel.sched_", "net.netfilter.nf_conntrack_count",
    "net.ipv4.conf.", "net.ipv6.conf.", "net.ipv4.neigh.", "net.ipv6.neigh.", "vm.stat", "kernel.tainted",
    "sunrpc.", "kernel.perf_event_max_sample_rate",
)  # fmt: skip
"""Settings that change by themselves, or count something."""


_LIVE: set[int] = set()
"""The PID namespaces that this bench has made, by inode."""


class Isolation:
    """A PID, mount and control-group namespace; `close` ends all that is in there."""

    def __init__(self, run: RunName, network: Place, group: Group | None, log: Path) -> None:
        self.group = group
        # --mount-proc: what runs in there sees no process but its own.
        command = ["unshare", "--pid", "--kill-child=KILL", "--mount-proc", "--cgroup", "--", "sleep", "infinity"]
        self._holder = Program(command, run, log, place=network, groups=group.directories if group else [])
        try:
            wait_until(self._ready, _PATIENCE_S, "the namespaces of the subject")
        except BaseException:
            self._holder.stop(kill=True)
            raise
        (self._first,) = children_of(self._holder.process.pid)
        self._namespace = os.stat(f"/proc/{self._first}/ns/pid").st_ino
        self.place = Place(network.namespace, self._first)
        _LIVE.add(self._namespace)

    def _ready(self) -> bool:
        """Whether the first process has become `sleep`: then the rest is done."""
        for pid in children_of(self._holder.process.pid):
            with contextlib.suppress(OSError):
                return Path(f"/proc/{pid}/comm").read_text().strip() == "sleep"
        return False

    def close(self) -> None:
        _LIVE.discard(self._namespace)
        self._holder.stop(kill=True)  # the first process of a PID namespace takes no other signal

    @property
    def own(self) -> frozenset[int]:
        """The processes that are the bench's and not the subject's."""
        return frozenset((self._holder.process.pid, self._first))

    def pids(self) -> list[int]:
        """Every process of the subject, as numbered outside."""
        if self.group is not None:
            return [pid for pid in self.group.pids() if pid not in self.own]
        return [pid for pid in self._inside() if pid not in self.own]

    def _inside(self) -> Iterator[int]:
        for entry in os.listdir("/proc"):
            if entry.isdigit() and _pid_namespace(int(entry)) == self._namespace:
                yield int(entry)

    def work_elsewhere(self) -> list[str]:
        """What works for the subject and is not counted as its own; empty where all is as it should be."""
        inside = set(self._inside())
        found = self.left_group(inside)
        sockets = self._sockets()
        # A second instance of a subject, for memory or allocations, has the network of the first.
        instances = _LIVE - {self._namespace}
        for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
            if pid in inside or pid == os.getpid() or _pid_namespace(pid) in instances:
                continue
            if _holds(pid, sockets):
                found.append(
                    f"work outside the subject's processes: {_name(pid)} (process {pid}), which it did not start, "
                    "holds its connections"
                )
        return found

    def left_group(self, inside: set[int] | None = None) -> list[str]:
        """The processes of the subject that are in other control groups; looked for while a load runs, too."""
        if self.group is None:
            return []
        inside = set(self._inside()) if inside is None else inside
        members = set(self.group.pids())
        names = sorted(
            {name for pid in inside - members - self.own if (name := _name(pid)) and not _ended(pid)}
        )  # fmt: skip
        return [f"work outside the subject's processes: {name} has left its control group" for name in names]

    def _sockets(self) -> set[str]:
        """What the descriptors of sockets in the subject's network point to."""
        found = set()
        for table in _TABLES:
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{self._first}/net/{table}").read_text().splitlines()[1:]:
                    found.add(f"socket:[{line.split()[9]}]")
        return found


def _pid_namespace(pid: int) -> int:
    with contextlib.suppress(OSError):
        return os.stat(f"/proc/{pid}/ns/pid").st_ino
    return 0


def _holds(pid: int, sockets: set[str]) -> bool:
    with contextlib.suppress(OSError):
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{descriptor}") in sockets:
                    return True
    return False


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def _ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def settings_of(place: Place) -> dict[str, str]:
    """The kernel's settings as seen from `place`, without those that change by themselves."""
    done = subprocess.run(place.enter(["sysctl", "-a"]), capture_output=True, text=True, check=False)
    pairs = (line.partition(" = ")[::2] for line in done.stdout.splitlines())
    return {key: value for key, value in pairs if key and not key.startswith(_VOLATILE)}


def changed_settings(before: dict[str, str], after: dict[str, str]) -> list[str]:
    return [
        f"{key} was {before[key]} and is {after[key]}"
        for key in sorted(before.keys() & after.keys())
        if before[key] != after[key]
    ]
