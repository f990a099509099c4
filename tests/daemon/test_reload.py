"""SIGHUP: what changes, what stays, and that a mistake changes nothing."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.daemon.process import Client, EchoServer, Oinetd, own_address, text_of, until

Start = Callable[..., Oinetd]


@pytest.fixture
def hosts() -> tuple[str, str]:
    return own_address(), own_address()


def refuses(address: tuple[str, int]) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(address) == errno.ECONNREFUSED


def test_rules_come_and_go_and_connections_stay(oinetd: Start, echo: EchoServer, hosts: tuple[str, str]) -> None:
    old, new = hosts
    upstream = f"{echo.host} {echo.port}\n"
    daemon = oinetd(f"{old} 7001 {upstream}{old} 7002 {upstream}").ready()
    with Client((old, 7001)) as kept, Client((old, 7002)) as orphan:
        assert kept.echo(b"before") == orphan.echo(b"before") == b"before"
        assert "reloaded" in daemon.reload(f"{old} 7001 {upstream}{new} 7002 {upstream}")
        assert kept.echo(b"after") == orphan.echo(b"after") == b"after"
        assert refuses((old, 7002))
        for address in ((old, 7001), (new, 7002)):
            with Client(address) as client:
                assert client.echo(b"hello") == b"hello"
    assert daemon.stop() == 0


def test_a_new_destination_serves_new_connections(oinetd: Start, hosts: tuple[str, str]) -> None:
    address = (hosts[0], 7001)
    with greeting_server(b"old") as old_port, greeting_server(b"new") as new_port:
        daemon = oinetd(f"{address[0]} 7001 127.0.0.1 {old_port}\n").ready()
        with Client(address) as client:
            assert client.read(3) == b"old"
        assert "reloaded" in daemon.reload(f"{address[0]} 7001 127.0.0.1 {new_port}\n")
        with Client(address) as client:
            assert client.read(3) == b"new"
        assert daemon.stop() == 0


@contextlib.contextmanager
def greeting_server(word: bytes) -> Iterator[int]:
    """A server that says one word to one client."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(word)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def test_access_rules_of_the_new_file_count(oinetd: Start, echo: EchoServer, hosts: tuple[str, str]) -> None:
    rule = f"{hosts[0]} 7001 {echo.host} {echo.port}\n"
    daemon = oinetd(rule).ready()
    with Client((hosts[0], 7001)) as before:
        assert before.echo(b"hello") == b"hello"
        daemon.reload(rule + "deny 127.*\n")
        with Client((hosts[0], 7001)) as refused:
            refused.ended()
        assert before.echo(b"still") == b"still"
    assert daemon.stop() == 0


def test_the_log_moves_with_the_reload(oinetd: Start, echo: EchoServer, tmp_path: Path, hosts: tuple[str, str]) -> None:
    rule = f"{hosts[0]} 7001 {echo.host} {echo.port}\n"
    daemon = oinetd(f"logfile {tmp_path}/one\n{rule}").ready()
    with Client((hosts[0], 7001)) as client:
        client.echo(b"hello")
        daemon.reload(f"logfile {tmp_path}/two\nlogformat json\n{rule}")
    until(lambda: text_of(tmp_path / "two").endswith("}\n"), "the new log")
    assert (tmp_path / "one").read_text().endswith("\topened\n")
    assert daemon.stop() == 0
    assert (tmp_path / "one").read_text().count("\n") == (tmp_path / "two").read_text().count("\n") == 1


MISTAKES = {
    "unknown word": ("logfiel /tmp/x\n", r"oinetd\.conf:1:1: .*\n.*\n +\^{7}"),
    "bad number": ("HOST 7001 127.0.0.1 http80\n", r"oinetd\.conf:1:\d+: "),
    "port out of range": ("HOST 70000 127.0.0.1 80\n", r"oinetd\.conf:1:\d+: "),
    "bad option": ("HOST 7001 127.0.0.1 80 [relay=fast]\n", r"oinetd\.conf:1:\d+: "),
    "missing include": ("include none.conf\n", r"oinetd\.conf:1:9: .*none\.conf"),
    "include in a circle": ("include oinetd.conf\n", r"oinetd\.conf:1:9: .*includes itself"),
    "directory as include": ("include FOLDER\n", r"oinetd\.conf:1:9: "),
    "mistake in an include": ("include bad.inc\n", r"bad\.inc:2:1: "),
    "unresolvable name": ("HOST 7003 no-such-host.invalid 80\n", r"oinetd\.conf:1: ?.*no-such-host\.invalid"),
    "rules in conflict": ("HOST 7003 127.0.0.1 80\nHOST 7003 127.0.0.1 81\n", r"oinetd\.conf:2:"),
    "address of another machine": ("192.0.2.1 7003 127.0.0.1 80\n", r"oinetd\.conf:1: cannot listen on 192\.0\.2\.1"),
    "directory as log": ("logfile FOLDER\n", r"logfile .*: is a directory"),
    "log in no directory": ("logfile FOLDER/none/log\n", r"logfile .*: there is no directory"),
    "pid file in no directory": ("pidlogfile FOLDER/none/pid\n", r"pid file .*none/pid: No such file or directory"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_changes_nothing(
    oinetd: Start, echo: EchoServer, tmp_path: Path, hosts: tuple[str, str], kind: str
) -> None:
    host, other = hosts
    (tmp_path / "bad.inc").write_text("# fine\nnonsense here\n")
    log, pid_file = tmp_path / "log", tmp_path / "pid"
    good = f"logfile {log}\npidlogfile {pid_file}\n{host} 7001 {echo.host} {echo.port}\n"
    text, expected = MISTAKES[kind]
    text = text.replace("HOST", host).replace("FOLDER", str(tmp_path))
    daemon = oinetd(good).ready()
    before = descriptors(daemon.pid)
    with Client((host, 7001)) as client:
        assert client.echo(b"before") == b"before"
        # The new file also takes the old rule away and brings a good one: neither may happen.
        said = daemon.reload(f"{text}{other} 7002 {echo.host} {echo.port}\n")
        assert "error: reload failed, configuration unchanged: " in said
        assert re.search(expected, said), said
        assert client.echo(b"after") == b"after"
        assert refuses((other, 7002))
        with Client((host, 7001)) as another:
            assert another.echo(b"new") == b"new"
    assert pid_file.read_text() == f"{daemon.pid}\n"
    until(lambda: log.read_text().count("done-remote-closed") == 2, "the lines in the old log")
    until(lambda: descriptors(daemon.pid) == before, "the same descriptors as before")
    assert "reloaded" in daemon.reload(good)
    assert daemon.stop() == 0


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_a_taken_port_changes_nothing(oinetd: Start, echo: EchoServer, hosts: tuple[str, str]) -> None:
    host, other = hosts
    rule = f"{host} 7001 {echo.host} {echo.port}\n"
    daemon = oinetd(rule).ready()
    with socket.create_server((other, 7001)):
        said = daemon.reload(f"{rule}{other} 7002 {echo.host} {echo.port}\n{other} 7001 {echo.host} {echo.port}\n")
        assert re.search(rf"oinetd\.conf:3: cannot listen on {other}:7001: the port is in use", said)
        assert refuses((other, 7002))
    with Client((host, 7001)) as client:
        assert client.echo(b"hello") == b"hello"
    assert daemon.stop() == 0


def test_a_file_that_is_gone_changes_nothing(oinetd: Start, hosts: tuple[str, str]) -> None:
    daemon = oinetd(f"{hosts[0]} 7001 UPSTREAM\n").ready()
    daemon.conf.rename(daemon.conf.with_suffix(".away"))
    assert re.search(r"oinetd\.conf: .*No such file or directory", daemon.reload())
    with Client((hosts[0], 7001)) as client:
        assert client.echo(b"hello") == b"hello"
    daemon.conf.with_suffix(".away").rename(daemon.conf)
    assert "reloaded" in daemon.reload()
    assert daemon.stop() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody without permission")
def test_files_that_cannot_be_read_change_nothing(oinetd: Start, hosts: tuple[str, str]) -> None:
    daemon = oinetd(f"{hosts[0]} 7001 UPSTREAM\n", "-u", "nobody").ready()
    daemon.conf.chmod(0o600)
    assert re.search(r"oinetd\.conf: .*Permission denied", daemon.reload())
    with Client((hosts[0], 7001)) as client:
        assert client.echo(b"hello") == b"hello"
    assert daemon.stop() == 0


def test_many_at_once_are_answered_together(oinetd: Start, echo: EchoServer, hosts: tuple[str, str]) -> None:
    host = hosts[0]
    daemon = oinetd(f"{host} 7001 {echo.host} {echo.port}\n").ready()
    last = f"{host} 7002 {echo.host} {echo.port}\n"
    daemon.conf.write_text(last)
    for _ in range(50):
        daemon.signal(signal.SIGHUP)
    # The notices are read meanwhile: the kernel holds ten of them.
    until(
        lambda: daemon.manager.read() and refuses((host, 7001)) and not refuses((host, 7002)),
        "the last file",
    )
    # The stop may find another one under way, for a signal that came last.
    assert daemon.stop() == 0
    states = [notice.split("\n")[0] for notice in daemon.manager.read()[1:]]
    reloads = states[: states.index("STOPPING=1")]
    assert 1 <= reloads.count("RELOADING=1") <= 50
    # Never two at the same time: each is over before the next one begins.
    assert set(reloads[::2]) == {"RELOADING=1"}
    assert set(reloads[1::2]) <= {"READY=1"}


def test_a_reload_that_waits_for_a_name_does_not_keep_it_from_ending(oinetd: Start, tmp_path: Path) -> None:
    daemon = oinetd("127.0.0.1 0 UPSTREAM\n").ready()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    daemon.conf.unlink()
    fifo.rename(daemon.conf)  # whoever reads it waits for somebody who writes
    daemon.signal(signal.SIGHUP)
    until(lambda: daemon.manager.count("RELOADING=1"), "the reload")
    assert daemon.stop() == 0
    assert daemon.manager.count("STOPPING=1") == 1
