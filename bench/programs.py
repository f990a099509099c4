"""The programs of a run: started, waited for until they are ready, and always ended."""

from __future__ import annotations

import contextlib
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError
from bench.identity import MARKER, RunName

__all__ = [
    "ROOT",
    "START_PATIENCE_S",
    "Place",
    "Program",
    "bound",
    "children_of",
    "descriptor_limit",
    "listening_ports",
    "plain_python_command",
    "python_command",
    "wait_until",
]

ROOT = Path(__file__).resolve().parent.parent
"""Where `bench` and `oinetd` are imported from."""

DESCRIPTORS_MAX = 65536
"""The descriptor limit of every program where we may raise it, so that 10 000 connections fit a forwarder twice."""

START_PATIENCE_S = 10.0
STOP_PATIENCE_S = 5.0
_POLL_S = 0.01
_CAP_SYS_RESOURCE = 24

# The wrapper joins the control groups, raises the descriptor limit as far as allowed, and becomes the program: the pid
# that Popen knows is the program's own.
_WRAPPER = (
    'for group in $OINETD_BENCH_GROUPS; do echo $$ > "$group/cgroup.procs"; done; '
    f"ulimit -n {DESCRIPTORS_MAX} 2>/dev/null || ulimit -n $(ulimit -Hn); "
    'unset OINETD_BENCH_GROUPS; exec "$@"'
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a program runs: a network namespace, or the one of the bench itself (`namespace` empty).

    `holder` is a process whose PID, mount and control-group namespaces it has besides; 0: those of the bench.
    """

    namespace: str = ""
    holder: int = 0

    def enter(self, command: Sequence[str]) -> list[str]:
        """`command`, run here. With a holder it is a child of the process that is started: of `nsenter`."""
        if not self.namespace:
            return list(command)
        words = ["nsenter", f"--net=/run/netns/{self.namespace}"]
        if self.holder:
            words += [f"--{name}=/proc/{self.holder}/ns/{file}" for name, file in _NAMESPACES.items()]
            words.append(f"--wd={Path.cwd()}")  # another mount namespace begins at its root
        return [*words, "--", *command]


_NAMESPACES = {"mount": "mnt", "pid": "pid", "cgroup": "cgroup"}


def descriptor_limit() -> int:
    """The descriptors that each program of the bench has: the hard limit, raised by those who may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    effective = int(_status("CapEff") or "0", 16)
    return DESCRIPTORS_MAX if effective >> _CAP_SYS_RESOURCE & 1 else min(hard, DESCRIPTORS_MAX)


def _status(name: str) -> str:
    for line in Path("/proc/self/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return value.strip()
    return ""


def python_command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of the bench with this interpreter."""
    return [sys.executable, "-m", module, *arguments]


def plain_python_command(module: str, *arguments: str) -> list[str]:
    """As `python_command`, for a module that needs no package but the bench: without those of `site-packages`, whose
    hooks would be half of its start, hundreds of times in a run. Where the extension is installed there, it needs them.
    """
    built_here = any((ROOT / "bench").glob("_native.*.so"))
    return [sys.executable, *["-S"][: int(built_here)], "-m", module, *arguments]


def wait_until(condition: Callable[[], bool], patience_s: float, what: str) -> None:
    """Return when `condition` holds. Raises `BenchError` after `patience_s`."""
    deadline = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline:
            raise BenchError(f"{what}: nothing after {patience_s:g} s")
        time.sleep(_POLL_S)


_UNCONNECTED = {"tcp": "0A", "udp": "07"}
"""The state that /proc shows of a socket that listens; over UDP, of one that is bound and takes from everybody."""


def listening_ports(pid: int, protocol: str = "tcp") -> set[int]:
    """The ports listened on, over `tcp` or `udp`, in the network namespace of process `pid`."""
    ports = set()
    for table in (protocol, f"{protocol}6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _UNCONNECTED[protocol]:
                    ports.add(int(fields[1].rpartition(":")[2], 16))
    return ports


def children_of(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def bound(command: Sequence[str]) -> list[str]:
    """`command`, ended by the kernel when the bench is: for tools such as perf, which would go on by themselves."""
    return ["setpriv", "--pdeathsig", "KILL", *command]


class Program:
    """A child process with its output in a file; `stop` ends it and its whole process group."""

    def __init__(
        self,
        command: Sequence[str],
        run: RunName,
        log: Path,
        *,
        place: Place = Place(),
        groups: Sequence[Path] = (),
        env: Mapping[str, str] | None = None,
        pipe: bool = False,
    ) -> None:
        """Start `command`. With `pipe`, the bench writes to its standard input and reads its standard output."""
        self.command = list(command)
        self.log = log
        self.place = place
        self._stopped = False
        # A bench that is killed takes its programs with it; what a subject has started goes with its PID namespace.
        wrapped = bound(place.enter(["sh", "-c", _WRAPPER, "sh", *command]))
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "PYTHONUNBUFFERED": "1",
            **(env or {}),
            MARKER: str(run),
            "OINETD_BENCH_GROUPS": " ".join(map(str, groups)),
        }
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                wrapped,
                stdin=subprocess.PIPE if pipe else subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipe else output,
                stderr=output,
                env=environment,
                start_new_session=True,
                text=pipe,
            )

    @property
    def pid(self) -> int:
        """Of the program itself, as the bench sees it; in a PID namespace of its own it has another one there."""
        if not self.place.holder:
            return self.process.pid
        return next(iter(children_of(self.process.pid)), self.process.pid)

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def ask(self) -> str:
        """The line that a piped program answers a line with. Raises `BenchError` if it has ended instead."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # `read_line` says why
        return self.read_line()

    def begun(self) -> None:
        """Take a client of the bench from `up` to `go`."""
        self.read_line()
        self.ask()

    def read_line(self) -> str:
        """The next line of a piped program. Raises `BenchError` if it has ended instead."""
        assert self.process.stdout is not None
        line: str = self.process.stdout.readline()
        if not line:
            self.process.wait(STOP_PATIENCE_S)
            raise BenchError(self.failure())
        return line

    def read_rest(self) -> str:
        """What a piped program still writes, until it ends. Raises `BenchError` if it failed."""
        assert self.process.stdout is not None
        text: str = self.process.stdout.read()
        if self.process.wait(STOP_PATIENCE_S) != 0:
            raise BenchError(self.failure())
        return text

    def wait_listening(self, *ports: int, protocol: str = "tcp") -> None:
        """Return when the program's namespace listens on all `ports`. Raises `BenchError` if it ends or is late."""

        def ready() -> bool:
            if not self.running:
                raise BenchError(self.failure())
            return listening_ports(self.process.pid, protocol) >= set(ports)

        wait_until(ready, START_PATIENCE_S, f"{self.name} was to listen on {', '.join(map(str, ports))}")

    @property
    def name(self) -> str:
        return Path(self.command[0]).name

    def failure(self) -> str:
        """Why the program ended: its last output, or its command if there is none."""
        words = self.log.read_text(errors="replace").strip().splitlines()[-3:]
        said = " / ".join(words) if words else f"it said nothing ({shlex.join(self.command)})"
        return f"{self.name} ended with status {self.process.returncode}: {said}"

    def stop(self, *, kill: bool = False) -> None:
        """End the process group: TERM, and KILL after some seconds, or at once. A second call does nothing."""
        if self._stopped:
            return
        self._stopped = True
        for sign in (signal.SIGTERM, signal.SIGKILL)[kill:]:
            if not self.running:
                break
            self._signal(sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_PATIENCE_S)
        self._signal(signal.SIGKILL)  # what the leader left behind in its group
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def _signal(self, sign: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, sign)
