"""The connection log is moved away while the daemon writes it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.daemon.process import Client, Oinetd, text_of, until

Start = Callable[..., Oinetd]

ENGINES = ("native", "python")


def exchange(daemon: Oinetd, count: int = 1) -> None:
    """Connections that came and went."""
    for _ in range(count):
        with Client(daemon.address) as client:
            assert client.echo(b"hello") == b"hello"


def until_accounted(daemon: Oinetd, count: int) -> None:
    """Wait until `count` connections have ended and their lines are made."""

    def accounted() -> bool:
        before = len(daemon.said)
        daemon.signal(signal.SIGUSR2)
        until(lambda: "live, " in daemon.said[before:], "the summary")
        return f" 0 sessions live, {count} accepted" in daemon.said[before:]

    until(accounted, f"the account of {count} connections")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("good", [True, False], ids=["good configuration", "bad configuration"])
def test_hup_opens_the_log_anew(oinetd: Start, tmp_path: Path, engine: str, good: bool) -> None:
    """Also where the new configuration is a mistake: whoever rotates with HUP has nothing to do with it."""
    log, moved = tmp_path / "log", tmp_path / "log.1"
    text = f"engine {engine}\nlogfile {log}\n127.0.0.1 0 UPSTREAM\n"
    daemon = oinetd(text).ready()
    exchange(daemon)
    until(lambda: text_of(log).count("\n") == 2, "the first lines")
    log.rename(moved)
    before = daemon.conf.read_text()
    said = daemon.reload(before if good else before + "nonsense\n")
    assert ("reloaded" in said) is good
    until(log.exists, "the new file")
    exchange(daemon)
    assert daemon.stop() == 0
    assert moved.read_text().count("\n") == 2
    assert log.read_text().count("\n") == 2


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_rotations_under_load_lose_no_line_and_break_none(oinetd: Start, tmp_path: Path, number: int) -> None:
    log = tmp_path / "log"
    daemon = oinetd(f"logfile {log}\n127.0.0.1 0 UPSTREAM\n").ready()
    for rotation in range(5):
        exchange(daemon, 20)
        until(log.exists, "the file")
        log.rename(tmp_path / f"log.{rotation}")
        daemon.signal(number)
    exchange(daemon, 20)
    assert daemon.stop() == 0
    lines = [line for file in tmp_path.glob("log*") for line in file.read_text().splitlines(keepends=True)]
    assert len(lines) == 2 * 6 * 20
    assert all(line.endswith(("opened\n", "done-remote-closed\n")) for line in lines)


def can_mount() -> bool:
    return os.geteuid() == 0 and not subprocess.call(
        ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_a_full_disk_a_rotation_and_room_again(oinetd: Start, tmp_path: Path, engine: str, number: int) -> None:
    """Each file has whole lines only, and the old one has all those from before the signal."""
    if not can_mount():
        pytest.skip("needs root and the right to mount")
    disk = tmp_path / "disk"
    disk.mkdir()
    shell = f'mount -t tmpfs -o size=16k tmpfs {disk}; head -c 12288 /dev/zero >{disk}/filler; exec "$@"'
    daemon = oinetd(
        f"engine {engine}\nlogfile {disk}/log\n127.0.0.1 0 UPSTREAM\n",
        command=("unshare", "-m", "sh", "-c", shell, "sh", sys.executable, "-m", "oinetd"),
    ).ready()
    inside = Path(f"/proc/{daemon.pid}/root") / str(disk)[1:]
    log, moved = inside / "log", inside / "log.1"
    exchange(daemon, 60)
    daemon.wait_said("No space left on device; queueing lines")
    assert not log.read_bytes().endswith(b"\n")
    until_accounted(daemon, 60)
    log.rename(moved)
    daemon.signal(number)
    until_accounted(daemon, 60)  # it has seen the signal
    exchange(daemon, 10)
    until_accounted(daemon, 70)
    (inside / "filler").unlink()
    until(lambda: log.exists() and log.read_bytes().count(b"\n") == 20, "the lines after the signal")
    assert moved.read_bytes().count(b"\n") == 120
    for line in (*moved.read_bytes().splitlines(True), *log.read_bytes().splitlines(True)):
        assert line.endswith((b"\topened\n", b"\tdone-remote-closed\n"))
        assert line.count(b"\t") == 8
    assert daemon.stop() == 0
    assert "lines lost: 0" in daemon.said
