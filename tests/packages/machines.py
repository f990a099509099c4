"""Machines in network namespaces on one switch, with the real oinetd, keepalived or BIRD in them."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self

import pytest

from tests.daemon.process import PATIENCE_S, ROOT, until

__all__ = ["Load", "Machine", "Network", "needs"]

SERVER: Final = """\
import socket, sys, threading
name, address, port = sys.argv[1].encode(), sys.argv[2], int(sys.argv[3])
def serve(sock):
    with sock:
        try:
            while piece := sock.recv(4096):
                sock.sendall(name + b" " + piece)
        except OSError:
            pass
server = socket.create_server((address, port), backlog=512)
while True:
    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
"""


def needs(*programs: tuple[str, str]) -> None:
    """Skip the test unless it runs as root and these programs (with their packages) are there."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    for program, package in programs:
        if shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin") is None:
            pytest.skip(f"{program} is missing (Debian: apt install {package})")


def health_words(admin: Path) -> list[str]:
    """The command that asks an oinetd how it is."""
    words = [sys.executable, "-m", "oinetd", "health"]
    usage = subprocess.run([*words, "--help"], capture_output=True, text=True, cwd=ROOT, check=False)
    if "--admin" not in usage.stdout:
        pytest.skip("this oinetd has no command `health`")
    return [*words, "--admin", str(admin)]


class Machine:
    """One namespace, with the processes that were started in it."""

    def __init__(self, network: Network, name: str, *addresses: str) -> None:
        self.network = network
        self.name = f"{network.prefix}{name}"
        self.folder = network.folder / name
        self.folder.mkdir()
        self.processes: list[subprocess.Popen[bytes]] = []
        link = f"{network.prefix}{name}"[:15]
        network.ip("netns", "add", self.name)
        network.ip(
            "-n", network.switch, "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", self.name
        )
        network.ip("-n", network.switch, "link", "set", link, "master", "br0", "up")
        self.link = link
        self.ip("link", "set", "lo", "up")
        self.ip("link", "set", "eth0", "up")
        for address in addresses:
            self.ip("address", "add", address, "dev", "eth0")

    def ip(self, *words: str) -> str:
        return self.network.ip("-n", self.name, *words)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["nsenter", f"--net=/run/netns/{self.name}", *words],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    def start(self, *words: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start a program in it; what it says goes to a file."""
        log = self.folder / f"log-{len(self.processes)}-{Path(words[0]).name}"
        with log.open("wb") as said:
            process = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{self.name}", *words],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**os.environ, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **environment},
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    @property
    def admin(self) -> Path:
        return self.network.run_folder / f"{self.name}.sock"

    def oinetd(self, text: str) -> subprocess.Popen[bytes]:
        """Start oinetd with this configuration, and wait until it is well."""
        conf = self.folder / "oinetd.conf"
        conf.write_text(f"admin unix:{self.admin}\n{text}")
        process = self.start(sys.executable, "-m", "oinetd", "-f", "-c", str(conf))
        words = health_words(self.admin)
        until(lambda: self.run(*words).returncode == 0 or process.poll() is not None, "oinetd")
        assert process.poll() is None, self.said()
        return process

    def server(self, address: str, port: int) -> None:
        """Start a server that answers with this machine's name."""
        self.start(sys.executable, "-c", SERVER, self.name.removeprefix(self.network.prefix), address, str(port))
        until(lambda: self.run("ss", "-Hltn", f"sport = :{port}").stdout, "the server")

    def said(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-1500:] for path in sorted(self.folder.glob("log-*")))

    def stop(self, process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> None:
        """Stop one process and what it started, and wait for it."""
        if process.poll() is None:
            os.killpg(process.pid, number)
        process.wait(PATIENCE_S)

    def dies(self) -> None:
        """As a power cut: nothing more comes from it."""
        self.network.ip("-n", self.network.switch, "link", "set", self.link, "down")

    def close(self) -> None:
        for process in self.processes:
            self.stop(process, signal.SIGKILL)
        subprocess.run(["ip", "netns", "del", self.name], check=False, capture_output=True)


class Network:
    """A switch, and the machines on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.prefix = f"o{os.getpid() % 100000}"
        # Programs that run scripts as root look at every folder above: /tmp is everybody's.
        self.run_folder = Path(f"/run/oinetd-test-{os.getpid()}")
        self.run_folder.mkdir(mode=0o755)
        self.switch = f"{self.prefix}switch"
        self.machines: list[Machine] = []
        self.ip("netns", "add", self.switch)
        self.ip("-n", self.switch, "link", "add", "br0", "type", "bridge")
        self.ip("-n", self.switch, "link", "set", "br0", "up")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for machine in self.machines:
            machine.close()
        subprocess.run(["ip", "netns", "del", self.switch], check=False, capture_output=True)
        shutil.rmtree(self.run_folder, ignore_errors=True)

    @staticmethod
    def ip(*words: str) -> str:
        done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
        return done.stdout

    def machine(self, name: str, *addresses: str) -> Machine:
        """Add a machine with these addresses."""
        self.machines.append(Machine(self, name, *addresses))
        return self.machines[-1]


class Load:
    """New connections to an address at a steady pace, from a thread in a machine's namespace.

    A connection asks once and ends, after `patience_s` at the latest. Of each is kept when it began, whether it was
    made, and which server answered.
    """

    def __init__(
        self,
        machine: Machine,
        address: tuple[str, int],
        pace_s: float,
        sources: tuple[str, ...] = (),
        patience_s: float = 1.0,
    ) -> None:
        self.results: list[tuple[float, str, str]] = []
        self._address, self._pace_s, self._sources = address, pace_s, sources or ("",)
        self._patience_s = patience_s
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(machine.name,))

    @property
    def rate(self) -> float:
        """New connections a second, from the first to the last."""
        return len(self.results) / (self.results[-1][0] - self.results[0][0])

    @contextmanager
    def running(self) -> Iterator[Self]:
        self._thread.start()
        try:
            yield self
        finally:
            self._ends.set()
            self._thread.join()

    def _run(self, namespace: str) -> None:
        fd = os.open(f"/run/netns/{namespace}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            os_setns(fd)
        finally:
            os.close(fd)
        number, due = 0, time.monotonic()
        # By the clock, so that a slow connection does not slow down the others.
        while not self._ends.wait(max(0.0, due - time.monotonic())):
            due += self._pace_s
            source = self._sources[number % len(self._sources)]
            number += 1
            began = time.monotonic()
            self.results.append((began, source, self._call(source)))

    def _call(self, source: str) -> str:
        """The name of the server; or `connect` or `exchange`, whichever failed."""
        step = "connect"
        try:
            with socket.socket() as sock:
                sock.settimeout(self._patience_s)
                if source:
                    sock.bind((source, 0))
                sock.connect(self._address)
                step = "exchange"
                sock.sendall(b"who")
                return sock.recv(100).split()[0].decode()
        except (OSError, IndexError):
            return f"failed: {step}"

    def wait_for(self, condition: Callable[[str], bool], what: str) -> float:
        """When the first connection began, from now on, for whose result `condition` holds."""
        start = len(self.results)

        def found() -> float:
            return next((began for began, _, result in self.results[start:] if condition(result)), 0.0)

        return until(found, what)


def os_setns(fd: int) -> None:
    """`setns` of this thread, which os has since Python 3.12."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, 0x40000000):
        raise OSError(ctypes.get_errno(), "setns")
