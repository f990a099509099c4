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
from tests.daemon.upgrading import ask, upgrade
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
