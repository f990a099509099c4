"""What runs make outside their process, found by name: removed if the owner is dead, or by the owner at its end."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench.cgroup import group_roots, remove_group
from bench.identity import MARKER, RunName
from bench.programs import wait_until
from bench.topology import NETNS_DIR, remove_namespace

__all__ = ["Leftovers", "find_leftovers", "remove_leftovers"]


@dataclass
class Leftovers:
    """Things of dead runs."""

    processes: list[int] = field(default_factory=list)
    namespaces: list[str] = field(default_factory=list)
    groups: list[Path] = field(default_factory=list)
    directories: list[Path] = field(default_factory=list)

    def lines(self) -> list[str]:
        return [
            *(f"process {pid}" for pid in self.processes),
            *(f"namespace {name}" for name in self.namespaces),
            *(f"control group {path}" for path in self.groups),
            *(f"directory {path}" for path in self.directories),
        ]

    def __bool__(self) -> bool:
        return bool(self.processes or self.namespaces or self.groups or self.directories)


def is_dead(name: str) -> bool:
    """Whether `name` belongs to a run whose owner has ended."""
    run = RunName.parse(name)
    return run is not None and not run.owner_alive


def find_leftovers(of: RunName | None = None) -> Leftovers:
    """What belongs to the run `of`; else to any whose owner is dead."""

    def wanted(name: str) -> bool:
        return is_dead(name) if of is None else RunName.parse(name) == of

    found = Leftovers()
    found.namespaces = sorted(name for name in _names(NETNS_DIR) if wanted(name))
    roots = group_roots()
    if roots is not None:
        trees = {roots.cpu, roots.memory} - {None}
        found.groups = sorted(tree / name for tree in trees if tree for name in _names(tree) if wanted(name))
    marked = {pid for pid, run in _marked_processes() if wanted(run)}
    # A program may have written over its environment; the kernel's own books have it all the same.
    found.processes = sorted(marked | _in_groups(found.groups) | _in_namespaces(found.namespaces))
    temporary = Path(tempfile.gettempdir())
    found.directories = sorted(
        temporary / name for name in _names(temporary) if wanted(name) and _ours(temporary / name)
    )
    return found


def remove_leftovers(found: Leftovers) -> None:
    """Processes first: they hold the rest."""
    for pid in found.processes:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    for pid in found.processes:
        wait_until(lambda pid=pid: not _alive(pid), 5.0, f"process {pid} does not end")  # type: ignore[misc]
    for name in found.namespaces:
        remove_namespace(name)
    for path in found.groups:
        remove_group(path)
    for path in found.directories:
        shutil.rmtree(path, ignore_errors=True)


def _marked_processes() -> Iterator[tuple[int, str]]:
    """Processes that were started by a run, with the run's name."""
    prefix = f"{MARKER}=".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # not ours to look at, or ended meanwhile
            for variable in (entry / "environ").read_bytes().split(b"\0"):
                if variable.startswith(prefix):
                    yield int(entry.name), variable[len(prefix) :].decode(errors="replace")


def _in_groups(groups: Iterable[Path]) -> set[int]:
    pids: set[int] = set()
    for group in groups:
        with contextlib.suppress(OSError):
            pids |= {int(word) for word in (group / "cgroup.procs").read_text().split()}
    return pids - {0, os.getpid()}


def _in_namespaces(names: Iterable[str]) -> set[int]:
    """Processes in these network namespaces."""
    wanted = set()
    for name in names:
        with contextlib.suppress(OSError):
            wanted.add(os.stat(NETNS_DIR / name).st_ino)
    pids = set()
    for entry in os.listdir("/proc") if wanted else ():
        if entry.isdigit():
            with contextlib.suppress(OSError):  # not ours to look at, or ended meanwhile
                if os.stat(f"/proc/{entry}/ns/net").st_ino in wanted:
                    pids.add(int(entry))
    return pids - {os.getpid()}


def _alive(pid: int) -> bool:
    """Whether the process runs; one that its parent has not waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _names(directory: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return [entry.name for entry in directory.iterdir()]
    return []


def _ours(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return path.lstat().st_uid == os.geteuid()
    return False
