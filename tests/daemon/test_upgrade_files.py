"""Over an upgrade: the listeners in systemd's store, and the files of unix sockets."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from oinetd.lanes.native.plane import available
from tests.daemon.process import Oinetd, own_address, until
from tests.daemon.test_manager import handed
from tests.daemon.upgrading import ask, pid_of, upgrade
from tests.peers import free_port

pytestmark = pytest.mark.skipif(bool(available()), reason=available())

Start = Callable[..., Oinetd]


def test_a_listener_that_no_rule_needs_any_more_leaves_the_store(
    start: Start, tmp_path: Path, environ: dict[str, str]
) -> None:
    port, gone = free_port(), free_port()
    environ["FDSTORE"] = "9"
    text = f"127.0.0.1 {port} UPSTREAM\n"
    daemon = start(f"{text}127.0.0.1 {gone} UPSTREAM\n")
    until(lambda: daemon.manager.count(f"FDNAME=oinetd-tcp-127.0.0.1-{gone}"), "the second listener in the store")
    daemon.conf.write_text(daemon.conf.read_text().splitlines(keepends=True)[0])
    assert upgrade(tmp_path, environ).returncode == 0
    until(lambda: daemon.manager.count("FDSTOREREMOVE=1"), "the word to take it out")
    said = daemon.manager.read()
    assert f"FDSTOREREMOVE=1\nFDNAME=oinetd-tcp-127.0.0.1-{gone}" in said
    assert sum(each.startswith("FDSTORE=1") for each in said) == 2, "what is in the store already is not sent again"


@pytest.mark.parametrize("line", ["{} 127.0.0.1 9", "admin {}"])
def test_an_upgrade_that_fails_leaves_the_files_of_unix_sockets(
    start: Start, tmp_path: Path, environ: dict[str, str], line: str
) -> None:
    path = tmp_path / "sock"
    daemon = start(f"unix:{path} UPSTREAM\n")
    text = daemon.conf.read_text()
    with socket.create_server((own_address(), 0)) as taken:
        daemon.conf.write_text(text + line.format("{} {}".format(*taken.getsockname())) + "\n")
        assert upgrade(tmp_path, environ).returncode != 0
    assert ask(tmp_path, environ, "health").returncode == 0
    assert answers(path)
    daemon.conf.write_text("")  # a rule that the new process has no more goes with its file
    assert upgrade(tmp_path, environ).returncode == 0
    assert not path.exists()


def test_the_file_of_a_service_managers_unix_socket_stays(
    start: Start, tmp_path: Path, environ: dict[str, str]
) -> None:
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        daemon = start(f"unix:{path} UPSTREAM\n", **handed(listener))
        for _ in range(2):
            assert upgrade(tmp_path, environ).returncode == 0, daemon.said
            assert answers(path)
        os.kill(pid_of(tmp_path, environ), signal.SIGTERM)
        until(lambda: not list((tmp_path / "run").iterdir()), "the end of the last process")
        assert path.exists()


def test_listeners_have_their_new_options_only_when_everything_is_taken_over(
    start: Start, tmp_path: Path, environ: dict[str, str]
) -> None:
    def told() -> list[int]:
        wanted = (socket.TCP_DEFER_ACCEPT, socket.TCP_KEEPIDLE)
        return [listener.getsockopt(socket.IPPROTO_TCP, each) for each in wanted]

    with socket.create_server((own_address(), 0)) as listener, socket.create_server((own_address(), 0)) as taken:
        line = "{} {} UPSTREAM".format(*listener.getsockname())
        daemon = start(f"{line}\n", **handed(listener))
        before, text = told(), daemon.conf.read_text()
        text = text.replace("\n", " [defer-accept=3s, keepalive=7:1:1]\n", 1)
        daemon.conf.write_text(text + "{} {} 127.0.0.1 9\n".format(*taken.getsockname()))
        assert upgrade(tmp_path, environ).returncode != 0
        assert told() == before
        daemon.conf.write_text(text)
        assert upgrade(tmp_path, environ).returncode == 0
        assert daemon.wait() == 0
        assert told() == [3, 7]


def test_admin_sockets_that_the_new_process_does_not_want_are_closed(
    start: Start, tmp_path: Path, environ: dict[str, str]
) -> None:
    port, path = free_port(), tmp_path / "sock"
    kept = f"admin unix:{tmp_path}/run/oinetd.sock\n"
    (tmp_path / "run").mkdir()
    daemon = start(f"{kept}admin unix:{path}\nadmin 127.0.0.1 {port}\n")
    daemon.conf.write_text(kept)
    assert upgrade(tmp_path, environ).returncode == 0
    assert daemon.wait() == 0
    assert not path.exists()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def answers(path: Path) -> bool:
    """Whether there is an echo behind the socket."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"x")
        return client.recv(1) == b"x"
