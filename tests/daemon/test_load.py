"""Many connections: reloads that nobody notices, and too few descriptors."""

from __future__ import annotations

import itertools
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from tests.daemon.process import PATIENCE_S, Client, EchoServer, Oinetd, own_address, until

Start = Callable[..., Oinetd]

RELOADS = 15
CLIENTS = 4
BYTES = bytes(range(256)) * 16


class Crowd:
    """Clients that connect, are echoed and leave, one connection after the other, until `stop`."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.served = 0
        self.faults: list[BaseException] = []
        self._address = address
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                with Client(self._address) as client:
                    client.sock.sendall(BYTES)
                    client.sock.shutdown(socket.SHUT_WR)
                    got = client.read(len(BYTES) + 1)
                    assert got == BYTES, f"{len(got)} bytes came back of {len(BYTES)}"
            except BaseException as fault:
                self.faults.append(fault)
                return
            with self._lock:
                self.served += 1

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)


@pytest.fixture
def crowd() -> Iterator[Callable[[tuple[str, int]], Crowd]]:
    crowds: list[Crowd] = []

    def gather(address: tuple[str, int]) -> Crowd:
        crowds.append(Crowd(address))
        return crowds[-1]

    yield gather
    for one in crowds:
        one.stop()


@pytest.mark.parametrize("engine", ["python", "auto"])
def test_nobody_notices_reloads(
    oinetd: Start, echo: EchoServer, crowd: Callable[[tuple[str, int]], Crowd], tmp_path: Path, engine: str
) -> None:
    host, log = own_address(), tmp_path / "log"
    rule = f"engine {engine}\nlogfile {log}\n{host} 7001 {echo.host} {echo.port}"
    texts = (
        f"{rule}\n",
        f"{rule} [idle-timeout=1h, listen-backlog=128]\n{host} 7002 {echo.host} {echo.port}\n",
        f"logformat json\n{rule}\nallow 127.*\n",
    )
    daemon = oinetd(texts[0]).ready()
    people = crowd((host, 7001))
    with Client((host, 7001)) as witness:
        for number in range(RELOADS):
            served = people.served
            assert "reloaded" in daemon.reload(texts[(number + 1) % len(texts)])
            assert witness.echo(b"still here") == b"still here"
            until(lambda: people.served > served + CLIENTS or people.faults, "more clients")  # noqa: B023
    people.stop()
    assert people.faults == []
    assert daemon.stop() == 0
    # Every connection has its two lines, whatever the format was at the time.
    lines = log.read_text().splitlines()
    opened = [line for line in lines if line.endswith("\topened") or '"event":"opened"' in line]
    assert len(opened) == people.served + 1
    assert len(lines) == 2 * len(opened)


def test_the_log_is_rotated_under_load(
    oinetd: Start, crowd: Callable[[tuple[str, int]], Crowd], tmp_path: Path
) -> None:
    host, log = own_address(), tmp_path / "log"
    daemon = oinetd(f"logfile {log}\n{host} 7001 UPSTREAM\n").ready()
    people = crowd((host, 7001))
    for number in range(5):
        served = people.served
        until(lambda: people.served > served + CLIENTS or people.faults, "more clients")  # noqa: B023
        log.rename(tmp_path / f"log.{number}")
        daemon.signal(signal.SIGUSR1)
        until(log.exists, "the new log")
    people.stop()
    assert people.faults == []
    assert daemon.stop() == 0
    text = "".join((tmp_path / name).read_text() for name in ("log.0", "log.1", "log.2", "log.3", "log.4", "log"))
    assert text.count("\topened\n") == people.served
    assert text.count("\n") == 2 * people.served


@pytest.mark.parametrize("engine", ["python", "auto"])
def test_too_few_descriptors(oinetd: Start, engine: str) -> None:
    room, more = 20, 5
    daemon = oinetd(f"engine {engine}\n127.0.0.1 0 UPSTREAM\n").ready()
    with Client(daemon.address) as client:
        client.echo(b"hello")
    process = psutil.Process(daemon.pid)
    until(lambda: all(one.status != "ESTABLISHED" for one in process.net_connections()), "the end of the first session")
    at_rest = process.num_fds()
    leave_descriptors(daemon.pid, 2 * room)  # a session takes two
    with ExitStack() as clients:
        early = [clients.enter_context(Client(daemon.address)) for _ in range(room)]
        assert [client.echo(b"hello") for client in early] == [b"hello"] * room
        late_ones = [clients.enter_context(Client(daemon.address)) for _ in range(more)]
        daemon.wait_said("cannot accept")
        # While it waits for room it does not spin: for most of the time the CPU is not in its hands.
        began, used, sleeps = time.monotonic(), sum(process.cpu_times()[:2]), sleeps_of(daemon.pid)
        until(lambda: sleeps_of(daemon.pid) > sleeps + 3, "some tries")
        assert sum(process.cpu_times()[:2]) - used < (time.monotonic() - began) / 2 + 0.05
        # Nobody who came is turned away: with room, those who waited are served.
        for client in early:
            client.close()
        assert [client.echo(b"thanks") for client in late_ones] == [b"thanks"] * more
    until(lambda: process.num_fds() <= at_rest, "the end of the sessions")
    with Client(daemon.address) as late:
        assert late.echo(b"late") == b"late"
    assert daemon.stop() == 0
    assert daemon.said.count("cannot accept") <= 2


def sleeps_of(pid: int) -> int:
    """How often the threads of a process have gone to sleep by themselves."""
    found = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        status = (task / "status").read_text()
        found += int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])
    return found


@pytest.mark.parametrize("engine", ["python", "auto"])
def test_more_connections_asked_for_than_there_are_descriptors(oinetd: Start, engine: str) -> None:
    limit = 128
    daemon = oinetd(
        f"engine {engine}\nmax-connections 1000\n127.0.0.1 0 UPSTREAM\n",
        before=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)),
    ).ready()
    possible = int(daemon.wait_said(r"warning: max-connections 1000: .* allows (\d+)\n")[1])
    assert 0 < possible < limit // 2
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(daemon.address)) for _ in range(possible + 20)]
        for client in clients:
            client.sock.sendall(b"hello")
        # Each waits for its turn, and nobody is sent away.
        for client in clients:
            assert client.read(5) == b"hello"
            client.close()
    assert "cannot accept" not in daemon.said
    assert daemon.stop() == 0


def leave_descriptors(pid: int, count: int) -> None:
    """Lower the limit of a process so that it can open `count` more."""
    taken = {int(entry) for entry in os.listdir(f"/proc/{pid}/fd")}
    free = (number for number in itertools.count() if number not in taken)
    limit = next(itertools.islice(free, count, None))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, limit))


def test_the_soft_limit_of_descriptors_is_raised(oinetd: Start) -> None:
    hard = min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    daemon = oinetd(
        "127.0.0.1 0 UPSTREAM\n", before=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    ).ready()
    assert resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    assert daemon.stop() == 0
