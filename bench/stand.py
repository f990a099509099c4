"""The test stand: a topology, a directory, control groups, and subjects put between client and server one by one."""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.account import Account
from bench.cgroup import Group
from bench.cores import Cores
from bench.errors import BenchError
from bench.identity import RunName
from bench.isolation import Isolation, changed_settings, settings_of
from bench.key import VARIABLE, new_key
from bench.leftovers import find_leftovers, remove_leftovers
from bench.path import PLAIN, PathQuality
from bench.programs import START_PATIENCE_S, Program, plain_python_command, wait_until
from bench.subjects import Destination, Route, Setup, Subject
from bench.topology import LISTEN_PORTS, Topology, topology_named

__all__ = ["WARM_UP_S", "Counts", "FarEnd", "Running", "Stand"]

WARM_UP_S = 0.25
"""Of every load, on the connections and by the threads that are then timed."""


@dataclass(frozen=True, slots=True)
class Running:
    """A subject at work. `hosts` and ports are what clients connect to, one for each server port asked for."""

    subject: Subject
    account: Account
    targets: tuple[tuple[str, int], ...]
    pids: tuple[int, ...]
    configuration: str = ""
    """The commands it was started with, and the files that they read."""
    changed: list[str] = field(default_factory=list)
    """Settings of the kernel that are others after the subject than before it; filled in when it has ended."""
    preamble: bytes = b""
    """What clients send first on each connection."""

    @property
    def host(self) -> str:
        return self.targets[0][0]

    @property
    def port(self) -> int:
        return self.targets[0][1]

    def work_elsewhere(self) -> list[str]:
        """See `Isolation.work_elsewhere`; without namespaces of its own nothing can be said."""
        return self.account.isolation.work_elsewhere() if self.account.isolation else []


def _configuration(directory: Path, programs: Sequence[Program]) -> str:
    lines = [f"$ {shlex.join(program.command)}" for program in programs]
    for path in sorted(directory.glob("*.c*f*")):
        lines += [f"# {path.name}", path.read_text().rstrip("\n")]
    return "\n".join(lines).replace(str(directory), "DIR")


class FarEnd:
    """The bench's own server at work, and what it has counted."""

    def __init__(self, port: int, program: Program) -> None:
        self.port = port
        self.program = program

    def counts(self) -> Counts:
        """Since it began. Not before client and forwarder have come to rest: see `Counts.since`."""
        answer = json.loads(self.program.ask())
        return Counts(answer, tuple(answer.pop("cpu_s")), time.monotonic())


@dataclass(frozen=True, slots=True)
class Counts:
    """What a server has counted at one moment: by name, and processor seconds of each of its threads."""

    numbers: dict[str, int]
    cpu_s: tuple[float, ...]
    at_s: float

    def since(self, earlier: Counts) -> dict[str, int]:
        return {name: value - earlier.numbers[name] for name, value in self.numbers.items()}

    def busy_since(self, earlier: Counts) -> list[float]:
        """The share of the time for which each thread was at work."""
        seconds = max(self.at_s - earlier.at_s, 1e-3)
        return [(now - then) / seconds for now, then in zip(self.cpu_s, earlier.cpu_s, strict=True)]


class Stand:
    """Everything that one run creates; the end of the `with` block removes it, also after an exception."""

    warm_up_s = WARM_UP_S

    def __init__(self, topology: str, threads: int = 0, path: PathQuality = PLAIN, cores: Sequence[str] = ()) -> None:
        """`topology` is `auto`, `netns` or `loopback`; `threads` is for the subjects, 0 their own choice; `cores` are
        those of client, forwarder and server."""
        self.run = RunName.new()
        self.threads = threads
        self.key = new_key()
        self.cores = Cores.given(cores) if cores else Cores.choose()
        self.topology: Topology = topology_named(topology, self.run, path)
        self._stack = contextlib.ExitStack()
        self._ports = iter(LISTEN_PORTS)
        self._logs = 0

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.directory = Path(tempfile.mkdtemp(prefix=f"{self.run}-"))
            # Daemons that give up root still read their configuration here.
            self.directory.chmod(0o755)
            stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
            stack.enter_context(self.topology)
            self.loads = self._group(stack, "loads")
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._stack.close()
        finally:
            self.sweep()

    def sweep(self) -> None:
        """Remove what bears this run's name and is in no stack: a signal can come between making and noting down."""
        remove_leftovers(find_leftovers(self.run))

    def _group(self, stack: contextlib.ExitStack, purpose: str) -> Group | None:
        group = Group.make(self.run, purpose)
        if group is not None:
            stack.callback(group.close)
        return group

    def log(self, name: str) -> Path:
        """A file for what a program says."""
        self._logs += 1
        return self.directory / f"{self._logs}-{name}.log"

    @property
    def load_account(self) -> Account:
        """What client and server use together; without control groups there is none to be had."""
        return Account(self.loads, list)

    def free_port(self) -> int:
        """A port to listen on that no program of this run has had, so that no old connection is in the way."""
        for port in self._ports:
            if self.topology.name != "loopback":
                return port
            with (
                socket.socket() as probe,
                socket.socket(type=socket.SOCK_DGRAM) as datagrams,
                contextlib.suppress(OSError),
            ):
                probe.bind(("127.0.0.1", port))
                datagrams.bind(("127.0.0.1", port))
                return port
        raise BenchError("the bench has used up its ports")

    @contextlib.contextmanager
    def server(
        self, command: Sequence[str], *ports: int, protocol: str = "tcp", pipe: bool = False
    ) -> Iterator[Program]:
        """A program in the server's place, ready when it listens on `ports`, over `tcp` or `udp`."""
        program = Program(
            self.cores.pinned("server", command),
            self.run,
            self.log("server"),
            place=self.topology.server,
            groups=self._load_groups(),
            env={VARIABLE: self.key},
            pipe=pipe,
        )
        try:
            program.wait_listening(*ports, protocol=protocol)
            yield program
        finally:
            program.stop()

    @contextlib.contextmanager
    def client(self, command: Sequence[str]) -> Iterator[Program]:
        """A program in the client's place; its output is read by the caller."""
        program = Program(
            self.cores.pinned("client", command),
            self.run,
            self.log("client"),
            place=self.topology.client,
            groups=self._load_groups(),
            env={VARIABLE: self.key},
            pipe=True,
        )
        try:
            yield program
        finally:
            program.stop()

    @contextlib.contextmanager
    def far_end(self, expects: str = "", path: Path | None = None) -> Iterator[FarEnd]:
        """The bench's own server, with as many threads as there are cores for it, on a port or on a unix socket.

        `expects`: what comes before the hello of a connection, see `bench.server`.
        """
        port = 0 if path else self.free_port()
        # In a namespace of its own it listens on all addresses that a group of servers has.
        host = "0.0.0.0" if self.topology.server_addresses else self.topology.server_address
        command = plain_python_command(
            "bench.server", f"unix:{path}" if path else host, str(port), str(self.cores.loads),
            *filter(None, [expects]),
        )  # fmt: skip
        with self.server(command, *filter(None, [port]), pipe=True) as program:
            if path:
                wait_until(path.exists, START_PATIENCE_S, f"the server was to listen on {path}")
            yield FarEnd(port, program)

    def _load_groups(self) -> list[Path]:
        return self.loads.directories if self.loads else []

    @contextlib.contextmanager
    def subject(
        self,
        subject: Subject,
        *servers: int | Destination,
        environment: dict[str, str] | None = None,
        same_ports: bool = False,
    ) -> Iterator[Running]:
        """`subject` between the client and each server, named by its port; `same_ports`: it listens on their numbers.

        Raises `BenchError` if it does not come up.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.topology.between())
            directory = Path(tempfile.mkdtemp(prefix="subject-", dir=self.directory))
            directory.chmod(0o755)
            routes = tuple(self._route(server, directory, same_ports) for server in servers)
            setup = Setup(self.topology, routes, directory, self.threads)
            group = self._group(stack, f"subject{self._logs}")
            place, isolation = self.topology.forwarder, None
            if place.namespace:
                isolation = Isolation(self.run, place, group, self.log("namespaces"))
                stack.callback(isolation.close)
                place = isolation.place
            changed: list[str] = []
            if isolation is not None:
                before = settings_of(self.topology.forwarder)
                stack.callback(lambda: changed.extend(changed_settings(before, settings_of(self.topology.forwarder))))
            subject.open(setup)
            stack.callback(subject.close, setup)
            programs: list[Program] = []
            for command in subject.commands(setup):
                program = Program(
                    self.cores.pinned("forwarder", command),
                    self.run,
                    self.log(subject.name),
                    place=place,
                    groups=group.directories if group else [],
                    # Sockets that a program would make in /run, where one that is no part of the bench may be at work.
                    env={"RUNTIME_DIRECTORY": str(directory), **subject.environment(), **(environment or {})},
                )
                stack.callback(program.stop)
                programs.append(program)
            if len(programs) == len(routes):  # a program for each route, or one for the only one
                for program, route in zip(programs, routes, strict=True):
                    program.wait_listening(route.listen_port, protocol=subject.protocol)
            elif programs:
                ports = [route.listen_port for route in routes if route.listen_port][: 1 if subject.grouped else None]
                programs[0].wait_listening(*ports, protocol=subject.protocol)
            pids = tuple(program.pid for program in programs)
            account = Account(group, lambda: pids, isolation)
            text = _configuration(directory, programs)
            yield Running(subject, account, tuple(map(subject.target, routes)), pids, text, changed)

    def _route(self, server: int | Destination, directory: Path, same_ports: bool) -> Route:
        here, there = self.topology.forwarder_address, self.topology.server_address
        if isinstance(server, int):
            return Route(here, server if same_ports else self.free_port(), there, server)
        listen = (f"unix:{directory}/{server.way}.sock", 0) if server.from_unix else (here, self.free_port())
        connect = (f"unix:{server.path}", 0) if server.path else (there, server.port)
        return Route(*listen, *connect, way=server.way)
