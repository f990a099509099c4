"""Signals that come while one process follows another."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from oinetd.lanes.native.plane import available
from tests.daemon.process import Client, Oinetd, until
from tests.daemon.upgrading import ask, group_lives, upgrade
from tests.peers import free_port

pytestmark = pytest.mark.skipif(bool(available()), reason=available())

Start = Callable[..., Oinetd]


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGHUP])
def test_a_log_that_is_rotated_during_an_upgrade_is_opened_again(
    start: Start, tmp_path: Path, environ: dict[str, str], number: signal.Signals
) -> None:
    """The signal reaches the old process alone, after it has handed the descriptor over."""
    port, log, moved = free_port(), tmp_path / "log", tmp_path / "log.1"
    daemon = start(f"logfile {log}\n127.0.0.1 {port} UPSTREAM\n")
    program = tmp_path / "rotates"
    program.write_text(
        f'#!/bin/sh\nmv {log} {moved}\nkill -{int(number)} {daemon.pid}\nexec {sys.executable} -I -m oinetd "$@"\n'
    )
    program.chmod(0o755)
    assert upgrade(tmp_path, environ, "--to", str(program)).returncode == 0, daemon.said
    before = moved.read_text()
    with Client(("127.0.0.1", port)) as client:
        assert client.echo(b"x") == b"x"
    until(lambda: log.exists() and log.read_text().count("\n") == 2, "the lines in the new file")
    assert moved.read_text() == before


def test_a_reload_that_is_asked_for_during_an_upgrade_is_answered_by_the_new_process(
    start: Start, tmp_path: Path, environ: dict[str, str]
) -> None:
    port, fifo = free_port(), tmp_path / "fifo"
    daemon = start(f"127.0.0.1 {port} UPSTREAM\n")
    os.mkfifo(fifo)
    program = tmp_path / "waits"
    program.write_text(f'#!/bin/sh\nread line < {fifo}\nexec {sys.executable} -I -m oinetd "$@"\n')
    program.chmod(0o755)
    with ThreadPoolExecutor(2) as threads:
        upgraded = threads.submit(upgrade, tmp_path, environ, "--to", str(program))
        with fifo.open("w") as go:  # the new process has started
            reloaded = threads.submit(ask, tmp_path, environ, "reload")
            daemon.wait_said(r"admin: .*reload")
            go.write("now\n")
        assert upgraded.result().returncode == 0, daemon.said
        assert (reloaded.result().returncode, reloaded.result().stderr) == (0, "")


def test_a_hangup_meanwhile_is_done_by_the_new_process(start: Start, tmp_path: Path, environ: dict[str, str]) -> None:
    """It comes after that process has read the file."""
    port, other = free_port(), free_port()
    daemon = start(f"127.0.0.1 {port} UPSTREAM\n")
    text = daemon.conf.read_text()
    (tmp_path / "next").write_text(text + text.replace(str(port), str(other)))
    (tmp_path / "old").write_text(str(daemon.pid))
    program = meanwhile(tmp_path, "go", f"os.replace({str(tmp_path / 'next')!r}, {str(daemon.conf)!r})", signal.SIGHUP)
    assert upgrade(tmp_path, environ, "--to", program).returncode == 0, daemon.said
    daemon.wait_said(r"upgrade: process \d+ serves[^\0]*reloaded")
    with Client(("127.0.0.1", other)) as client:
        assert client.echo(b"x") == b"x"
    assert daemon.wait() == 0


@pytest.mark.parametrize("when", ["go", "finish"])
def test_a_stop_after_the_new_process_is_ready_goes_to_it(
    start: Start, tmp_path: Path, environ: dict[str, str], when: str
) -> None:
    """Whether the last frame tells it or comes too late for that."""
    daemon = start(f"127.0.0.1 {free_port()} UPSTREAM\n")
    (tmp_path / "old").write_text(str(daemon.pid))
    program = meanwhile(tmp_path, when, "pass", signal.SIGTERM)
    assert upgrade(tmp_path, environ, "--to", program).returncode == 0, daemon.said
    assert daemon.wait() == 0
    until(lambda: not group_lives(daemon.pid), "the end of the new process")
    assert not list((tmp_path / "run").iterdir())


MEANWHILE = """
import os, sys
from oinetd.upgrade import channel

receive = channel.Channel.receive

def received(self):
    frame = receive(self)
    if frame.kind == {when!r}:
        {code}
        os.kill(int(open({pid!r}).read()), {number})
        # The signal is handled before what is said to the old process next: its loop reads both in this order.
    return frame

channel.Channel.receive = received
from oinetd.process.cli import main
sys.exit(main())
"""
"""oinetd, which sends the old process a signal as soon as it has received a frame of this kind."""


def meanwhile(folder: Path, when: str, code: str, number: signal.Signals) -> str:
    path = folder / "program"
    text = MEANWHILE.format(when=when, code=code, pid=str(folder / "old"), number=int(number))
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(0o755)
    return str(path)
