"""Forwarders that can be replaced while they run, each by the way that it has for that."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bench.errors import BenchError
from bench.programs import Place
from bench.subjects.oinetd import Oinetd
from bench.subjects.peers import Haproxy, Nginx
from bench.subjects.subject import Setup, Subject
from bench.subjects.trixie import TrixieHaproxy, TrixieNginx

__all__ = ["Replaceable", "Start", "replaceable_subjects"]

PATIENCE_S = 60.0
Start = Callable[[list[str]], object]
"""Starts a program where the subject runs, in its control group."""


class Replaceable(Subject):
    """A subject that another process can follow."""

    has_datagrams = True
    setup: Setup

    def replace(self, place: Place, pids: tuple[int, ...], start: Start) -> float | None:
        """Replace it, from outside; how many seconds its sessions took to move, if it tells."""
        raise NotImplementedError


class _Oinetd(Oinetd, Replaceable):
    """`oinetd upgrade`: a new process, and every connection with it."""

    def __init__(self, engine: str) -> None:
        super().__init__(f"oinetd-{engine}", engine, "auto")

    def configuration(self, setup: Setup) -> str:
        self.setup = setup
        (route,) = setup.routes
        listen, connect = (
            f"{route.listen_host} {route.listen_port}", f"{route.connect_host} {route.connect_port}",
        )  # fmt: skip
        udp = f"{route.listen_host} {route.listen_port}/udp {route.connect_host} {route.connect_port}/udp"
        return f"admin unix:{setup.directory}/admin.sock\nengine {self.engine}\n{listen} {connect}\n{udp}\n"

    def replace(self, place: Place, pids: tuple[int, ...], start: Start) -> float | None:
        admin = str(self.setup.directory / "admin.sock")
        words = place.enter([sys.executable, "-m", "oinetd", "upgrade", "--json", "--admin", admin])
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
        if done.returncode:
            raise BenchError(f"oinetd upgrade: {done.stderr.strip()[-300:]}")
        return float(json.loads(done.stdout)["moving_s"])


class _Haproxy(Replaceable):
    """A new process with `-x` takes the listeners from the old one, which `-sf` tells to finish."""

    has_datagrams = False
    setup: Setup

    def replaceable(self, setup: Setup, commands: list[list[str]]) -> list[list[str]]:
        self.setup = setup
        path = setup.directory / "haproxy.cfg"
        socket = f"    stats socket {setup.directory}/haproxy.sock mode 600 level admin expose-fd listeners\n"
        path.write_text(path.read_text().replace("global\n", f"global\n{socket}", 1))
        (self._command,) = commands
        return [self._noted(self._command)]

    def _noted(self, command: list[str]) -> list[str]:
        """The command, which writes down its pid as its own namespace has it."""
        return ["sh", "-c", f'echo $$ > {self.setup.directory}/pid; exec "$@"', "sh", *command]

    def replace(self, place: Place, pids: tuple[int, ...], start: Start) -> float | None:
        folder: Path = self.setup.directory
        old = (folder / "pid").read_text().strip()
        start(self._noted([*self._command, "-x", f"{folder}/haproxy.sock", "-sf", old]))
        return None


class _DebianHaproxy(_Haproxy, Haproxy):
    def commands(self, setup: Setup) -> list[list[str]]:
        return self.replaceable(setup, super().commands(setup))


class _TrixieHaproxy(_Haproxy, TrixieHaproxy):
    def commands(self, setup: Setup) -> list[list[str]]:
        return self.replaceable(setup, super().commands(setup))


class _Nginx(Replaceable):
    """HUP: new workers, and the old ones finish."""

    def with_datagrams(self, setup: Setup, commands: list[list[str]]) -> list[list[str]]:
        (route,) = setup.routes
        path = setup.directory / "nginx.conf"
        udp = f"    server {{ listen {route.listen} udp; proxy_pass {route.connect}; }}\n"
        path.write_text(path.read_text().rstrip().removesuffix("}") + udp + "}\n")
        return commands

    def replace(self, place: Place, pids: tuple[int, ...], start: Start) -> float | None:
        subprocess.run(["kill", f"-{signal.SIGHUP.value}", str(pids[0])], check=True, capture_output=True)
        return None


class _DebianNginx(_Nginx, Nginx):
    def commands(self, setup: Setup) -> list[list[str]]:
        return self.with_datagrams(setup, super().commands(setup))


class _TrixieNginx(_Nginx, TrixieNginx):
    def commands(self, setup: Setup) -> list[list[str]]:
        return self.with_datagrams(setup, super().commands(setup))


def replaceable_subjects() -> list[Replaceable]:
    return [
        _Oinetd("native"),
        _Oinetd("python"),
        _DebianHaproxy(splice=False),
        _TrixieHaproxy(splice=False),
        _DebianNginx(),
        _TrixieNginx(),
    ]
