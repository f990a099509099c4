"""The notify protocol, against sockets of all kinds."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from oinetd.process.service_manager import ServiceManager


@pytest.fixture
def inbox() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("")  # the kernel chooses an abstract name
        sock.setblocking(False)
        yield sock


def abstract(sock: socket.socket) -> str:
    name: bytes = sock.getsockname()
    return "@" + name[1:].decode()


def test_every_notice(inbox: socket.socket) -> None:
    manager = ServiceManager(abstract(inbox))
    manager.ready("all\nis well")
    manager.reloading()
    manager.status("busy")
    manager.alive()
    manager.stopping("bye")
    notices = [inbox.recv(1000).decode() for _ in range(5)]
    assert notices[0] == f"READY=1\nMAINPID={os.getpid()}\nSTATUS=all is well"
    assert notices[1].startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert notices[2:] == ["STATUS=busy", "WATCHDOG=1", "STOPPING=1\nSTATUS=bye"]


def test_a_socket_in_the_file_system(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        ServiceManager(str(tmp_path / "notify")).alive()
        assert sock.recv(100) == b"WATCHDOG=1"


def test_nobody() -> None:
    manager = ServiceManager()
    assert not manager
    manager.ready("")
    manager.reloading()
    manager.alive()


def test_one_that_is_gone_or_was_never_there(tmp_path: Path) -> None:
    for address in (str(tmp_path / "gone"), "@oinetd-nobody-is-here", "vsock:2:1234", "/" + "x" * 200):
        ServiceManager(address).ready("well")


def test_one_that_does_not_read(inbox: socket.socket) -> None:
    manager = ServiceManager(abstract(inbox))
    depth = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text())
    for _ in range(depth + 10):
        manager.alive()  # never waits, and loses what there is no room for
    count = 0
    try:
        while inbox.recv(100) == b"WATCHDOG=1":
            count += 1
    except BlockingIOError:
        pass
    assert 0 < count <= depth + 1


@pytest.mark.parametrize(
    ("more", "watchdog_s"),
    [
        ({}, 0.0),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "77"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "78"}, 0.0),
        ({"WATCHDOG_USEC": "soon"}, 0.0),
    ],
)
def test_the_environment(more: dict[str, str], watchdog_s: float) -> None:
    environ = {"NOTIFY_SOCKET": "@x", "HOME": "/", **more}
    manager = ServiceManager.of(environ, 77)
    assert manager
    assert manager.watchdog_s == watchdog_s
    assert environ == {"HOME": "/"}


def test_a_watchdog_without_a_manager() -> None:
    assert ServiceManager.of({"WATCHDOG_USEC": "30000000"}, 77).watchdog_s == 0.0
