"""What holds after every round, whatever happened in it."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.daemon.process import ROOT

__all__ = [
    "Broken",
    "Done",
    "Holdings",
    "check_holdings",
    "check_idle",
    "check_log",
    "check_said",
    "holdings",
    "port_of",
]

PIPES_MAX = 64
"""Descriptors of pipes that the pools of the reactors may keep."""
MEMORY_BYTES_MAX = 48 << 20
"""What the heap may keep for later."""


SESSION_S_MAX = 600.0
"""No session of a run lasts longer, whatever the clock says."""


_TRACEBACK = re.compile(r"Traceback \(most recent call last\):\n(?:  .*\n)+.*")
_LOGGED = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d .*\n")
_WAKEUP = re.compile(
    r"Exception ignored when trying to write to the signal wakeup fd:\n"
    r"Traceback \(most recent call last\):\n(?:(?:  .*)?\n)*OSError: \[Errno 105\].*\n"
)
"""The interpreter's own, without memory; oinetd/process/signals.py delivers the signal."""
_STARTING = re.compile(r'File "<frozen (?:runpy|site|importlib)')
_RUNNING = re.compile(rf'File "{re.escape(str(ROOT))}/oinetd/.*, in (?!<module>)')
_SHORT = ("OSError: [Errno 12]", "OSError: [Errno 14]", "MemoryError")
"""EFAULT, too: the kernel has no page to copy to what was read."""


class Broken(AssertionError):
    """An invariant does not hold."""


CUT: Final = ("drained", "aborted")
"""Endings that an operator chose: the last bytes may have been under way when their client had already said goodbye."""


@dataclass(frozen=True, slots=True)
class Done:
    """A connection that ended well for its client: its port, and what it sent and received.

    If it is not `whole`, oinetd may have reset it afterwards, and not all that it sent has arrived.
    """

    port: int
    up: int
    down: int
    whole: bool = True
    way: str = ""

    def is_told_by(self, up: int, down: int, cut: bool = False) -> bool:
        """Whether a closing line with these bytes is that of this connection; `cut` is one that an operator ended."""
        return down == self.down and (up == self.up or ((cut or not self.whole) and up < self.up))


@dataclass(frozen=True, slots=True)
class Holdings:
    """What the process holds."""

    sockets: int
    pipes: int
    others: int
    memory: int


def holdings(pid: int) -> Holdings:
    """What the process holds now."""
    counts: Counter[str] = Counter()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(link.readlink())
        except FileNotFoundError:
            continue
        kind = target.partition(":")[0]
        counts[kind if kind in ("socket", "pipe") else "other"] += 1
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return Holdings(counts["socket"], counts["pipe"], counts["other"], pages * 4096)


def check_holdings(before: Holdings, now: Holdings) -> None:
    """Nothing is held of connections that are gone. Raises `Broken`."""
    if now.sockets > before.sockets or now.others > before.others or now.pipes > before.pipes + PIPES_MAX:
        raise Broken(f"descriptors leaked: {before} before, {now} now")
    if now.memory > before.memory + MEMORY_BYTES_MAX:
        raise Broken(f"memory leaked: {before.memory >> 20} MiB before, {now.memory >> 20} MiB now")


def check_idle(counted: Iterable[Mapping[str, Any]]) -> None:
    """No rule and no server has a session any more. Raises `Broken`."""
    if busy := [f"{each['name']} has {each['live']}" for each in counted if each["live"]]:
        raise Broken(f"sessions that are gone are counted as live: {', '.join(busy)}")


def port_of(bind: str) -> int:
    """The port of a rule, as rules are told; 0 for a unix socket."""
    return 0 if bind.startswith("unix:") else int(bind.partition("/")[0].split()[-1].rpartition(":")[2])


def check_log(lines: Iterable[str], done: Iterable[Done], *, whole: bool) -> tuple[int, Counter[int], Counter[int]]:
    """Every session has one closing line, with the bytes that its client counted.

    Returns the number of sessions, and bytes up and down by the port of the rule, 0 for a unix socket.

    In a log that is not `whole` (oinetd was killed) the last sessions have none. Raises `Broken`.
    """
    opened: set[int] = set()
    closed: dict[int, tuple[int, int, int]] = {}
    cut: set[int] = set()
    ups, downs = Counter[int](), Counter[int]()
    ends: dict[int, list[str]] = defaultdict(list)
    for line in lines:
        try:
            said = json.loads(line)
        except ValueError:
            raise Broken(f"not a line of the log: {line}") from None
        if said["event"] == "opened":
            if said["id"] in opened:
                raise Broken(f"session {said['id']} was opened twice")
            opened.add(said["id"])
        elif said["event"] == "closed":
            if said["id"] in closed:
                raise Broken(f"session {said['id']} has two closing lines")
            if not 0 <= said["duration_s"] <= SESSION_S_MAX:
                raise Broken(f"session {said['id']} lasted {said['duration_s']} s")
            closed[said["id"]] = (said["client_port"], said["bytes_up"], said["bytes_down"])
            if said.get("ending") in CUT:
                cut.add(said["id"])
            ends[said["client_port"]].append(line)
            ups[said["bind_port"]] += said["bytes_up"]
            downs[said["bind_port"]] += said["bytes_down"]
    if extra := closed.keys() - opened:
        raise Broken(f"closing lines of sessions that were never opened: {sorted(extra)[:5]}")
    if whole and (missing := opened - closed.keys()):
        raise Broken(f"sessions without a closing line: {sorted(missing)[:5]}")
    if whole:
        told = defaultdict(list)
        for number, (port, up, down) in closed.items():
            told[port].append((up, down, number in cut))
        # A port has more than one connection in the course of time. The line of one that is whole fits nobody else; of
        # the others, whoever sent less has less to choose from.
        for each in sorted(done, key=lambda each: (not each.whole, each.up)):
            fitting = [line for line in told[each.port] if each.is_told_by(*line)]
            found = max(fitting, default=None)  # of those that fit, the one that has the most of its bytes
            if found is None:
                raise Broken(f"no closing line with the bytes of its client: {each}, but {ends[each.port]}")
            told[each.port].remove(found)
    return len(opened), ups, downs


def check_said(text: str) -> None:
    """Nothing went wrong that oinetd does not know of. Raises `Broken`.

    A new process that an upgrade starts while memory is short may end before any of oinetd's code runs: a page of a
    file counts for the group of whoever reads it first, and `read` then fails with ENOMEM (mm/filemap.c,
    filemap_add_folio, calls mem_cgroup_charge). What the interpreter says of that, while it loads the program, is no
    fault of it; that the old process goes on is what the other invariants say. Nor is what the module `site` says,
    which goes on without the file that it could not read (Lib/site.py, addpackage).
    """
    for found in _TRACEBACK.findall(_WAKEUP.sub("", _LOGGED.sub("", text))):  # the old process says something meanwhile
        loads = _STARTING.search(found) and not _RUNNING.search(found)
        if not (loads and found.splitlines()[-1].strip().startswith(_SHORT)):
            raise Broken(f"a traceback: {found[:1500]}")
