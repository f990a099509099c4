"""What the daemon does when it is told to end, to open its log anew, to say what is going on."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.daemon.process import Client, Oinetd, text_of, until

RULE = "127.0.0.1 0 UPSTREAM\n"

Start = Callable[..., Oinetd]


def test_it_forwards_and_ends(oinetd: Start) -> None:
    daemon = oinetd(RULE).ready()
    with Client(daemon.address) as client:
        assert client.echo(b"hello") == b"hello"
    assert daemon.stop() == 0
    assert daemon.manager.count("STOPPING=1") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_idle_it_ends_at_once(oinetd: Start, number: int) -> None:
    daemon = oinetd("drain-timeout 1h\n" + RULE).ready()
    daemon.signal(number)
    assert daemon.wait() == 0


def test_sessions_may_end_by_themselves(oinetd: Start, tmp_path: Path) -> None:
    daemon = oinetd(f"drain-timeout 1h\nlogfile {tmp_path}/log\n" + RULE).ready()
    with Client(daemon.address) as client:
        assert client.echo(b"before") == b"before"
        daemon.signal(signal.SIGTERM)
        until(lambda: daemon.manager.count("STOPPING=1"), "the drain")
        with pytest.raises(ConnectionRefusedError):
            Client(daemon.address)
        assert client.echo(b"during") == b"during"
    assert daemon.wait() == 0
    assert (tmp_path / "log").read_text().splitlines()[1].endswith("\t12\t12\tdone-remote-closed")


def test_sessions_that_do_not_end_are_cut_off(oinetd: Start, tmp_path: Path) -> None:
    daemon = oinetd(f"drain-timeout 0.1s\nlogfile {tmp_path}/log\n" + RULE).ready()
    with Client(daemon.address) as client:
        assert client.echo(b"before") == b"before"
        assert daemon.stop() == 0
        assert not client.ended()
    assert (tmp_path / "log").read_text().splitlines()[1].endswith("\t6\t6\tdone-local-closed")


def test_a_second_signal_ends_at_once(oinetd: Start, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    daemon = oinetd(f"drain-timeout 1h\nlogfile {tmp_path}/log\npidlogfile {pid_file}\n" + RULE).ready()
    with Client(daemon.address) as client:
        assert client.echo(b"before") == b"before"
        daemon.signal(signal.SIGTERM)
        until(lambda: daemon.manager.count("STOPPING=1"), "the drain")
        daemon.signal(signal.SIGINT)
        assert daemon.wait() == 0
        assert not client.ended()
    assert (tmp_path / "log").read_text().splitlines()[1].endswith("\t6\t6\tdone-local-closed")
    assert not pid_file.exists()


def test_usr1_opens_the_log_anew(oinetd: Start, tmp_path: Path) -> None:
    log, moved = tmp_path / "log", tmp_path / "log.1"
    daemon = oinetd(f"logfile {log}\n" + RULE).ready()
    with Client(daemon.address) as client:
        client.echo(b"one")
        until(lambda: text_of(log).endswith("opened\n"), "the first line")
        log.rename(moved)
        daemon.signal(signal.SIGUSR1)
        until(log.exists, "the new file")
    until(lambda: text_of(log).endswith("done-remote-closed\n"), "the second line")
    assert daemon.stop() == 0
    assert moved.read_text().count("\n") == 1
    assert log.read_text().count("\n") == 1


def test_usr2_says_what_is_going_on(oinetd: Start) -> None:
    daemon = oinetd(RULE).ready()
    with Client(daemon.address) as client:
        client.echo(b"seven b")
        daemon.signal(signal.SIGUSR2)
        daemon.wait_said(r"1 rule, 1 session live, 1 accepted, 0 refused, 0 failed, 7 bytes up, 7 down")
        port = client.sock.getsockname()[1]
        daemon.wait_said(
            rf"session 1: 127.0.0.1 port {port}, 127.0.0.1 0 -> .*, \d+ s old, idle for \d+ s, 7 bytes up, 7 down"
        )
    assert daemon.stop() == 0


@pytest.fixture
def starting(oinetd: Start, tmp_path: Path) -> tuple[Oinetd, Callable[[], None]]:
    """A daemon that waits for its configuration, with its handlers in place, and what lets it go on."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    daemon = oinetd(f"pidlogfile {tmp_path}/pid\n" + RULE, "-c", str(fifo))

    def handles() -> bool:
        caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{daemon.pid}/status").read_text())
        return caught is not None and bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)

    def go_on() -> None:
        with fifo.open("w") as file:
            file.write(daemon.conf.read_text())

    until(handles, "its handlers")
    return daemon, go_on


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_signals_during_the_start_do_no_harm(starting: tuple[Oinetd, Callable[[], None]], number: int) -> None:
    daemon, go_on = starting
    daemon.signal(number)
    go_on()
    daemon.ready()
    with Client(daemon.address) as client:
        assert client.echo(b"hello") == b"hello"
    assert daemon.stop() == 0


def test_a_reload_that_is_wanted_during_the_start_follows_it(
    starting: tuple[Oinetd, Callable[[], None]],
) -> None:
    daemon, go_on = starting
    daemon.signal(signal.SIGHUP)
    go_on()
    until(lambda: daemon.manager.count("RELOADING=1"), "the reload")
    go_on()
    daemon.wait_said("reloaded")
    assert daemon.stop() == 0


def test_it_can_be_stopped_during_the_start(starting: tuple[Oinetd, Callable[[], None]], tmp_path: Path) -> None:
    daemon, _ = starting
    assert daemon.stop() == 0
    assert daemon.manager.read() == []
    assert not (tmp_path / "pid").exists()
