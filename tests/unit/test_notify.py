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


def test_listeners_are_stored_by_name_and_taken_out(inbox: socket.socket) -> None:
    manager = ServiceManager(abstract(inbox), stores=True)
    manager.keeps(["oinetd-tcp-gone-1"])
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        manager.store({"oinetd-tcp-a-1": one, "oinetd-tcp-b-2": two})
        manager.store({"oinetd-tcp-b-2": two})
        assert inbox.recv(1000) == b"FDSTOREREMOVE=1\nFDNAME=oinetd-tcp-gone-1"
        stored = {}
        for _ in range(2):
            text, fds, _, _ = socket.recv_fds(inbox, 1000, 4)
            with socket.socket(fileno=fds[0]) as copy:
                stored[text.decode()] = copy.getsockname()
        assert stored == {
            "FDSTORE=1\nFDNAME=oinetd-tcp-a-1\nFDPOLL=0": one.getsockname(),
            "FDSTORE=1\nFDNAME=oinetd-tcp-b-2\nFDPOLL=0": two.getsockname(),
        }
        assert inbox.recv(1000) == b"FDSTOREREMOVE=1\nFDNAME=oinetd-tcp-a-1"
    with pytest.raises(BlockingIOError):
        inbox.recv(1000)


@pytest.mark.parametrize(("said", "stores"), [("512", True), ("1", True), ("0", False), ("", False), ("x", False)])
def test_a_store_is_one_that_the_manager_tells_of(said: str, stores: bool) -> None:
    environ = {"NOTIFY_SOCKET": "@somewhere", "FDSTORE": said}
    manager = ServiceManager.of(environ, os.getpid())
    assert (manager.stores, "FDSTORE" in environ) == (stores, False)


def test_a_listener_with_another_socket_takes_the_place_of_the_first_in_the_store(inbox: socket.socket) -> None:
    manager, name = ServiceManager(abstract(inbox), stores=True), "oinetd-tcp-a-1"
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        manager.store({name: one})
        manager.store({name: one})
        heir = ServiceManager(abstract(inbox), stores=True)
        heir.keeps(manager.stored)
        heir.store({name: two})
        said = [inbox.recv(1000).decode().split("\n")[0] for _ in range(3)]
    assert said == ["FDSTORE=1", "FDSTOREREMOVE=1", "FDSTORE=1"]
    with pytest.raises(BlockingIOError):
        inbox.recv(1000)


def test_a_notice_for_which_there_is_no_descriptor_is_left_out(
    inbox: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*_: object) -> socket.socket:
        raise OSError(24, "Too many open files")

    manager = ServiceManager(abstract(inbox))
    monkeypatch.setattr(socket, "socket", none_left)
    manager.replaced_by(1)
