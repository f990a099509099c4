"""The pid file: one daemon for each, and nothing left of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

from tests.daemon.process import Client, Oinetd, call, own_address, until

RULE = "127.0.0.1 0 UPSTREAM\n"

Start = Callable[..., Oinetd]


def test_it_names_the_process_and_goes_with_it(oinetd: Start, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    daemon = oinetd(f"pidlogfile {pid_file}\n" + RULE).ready()
    assert pid_file.read_text() == f"{daemon.pid}\n"
    assert pid_file.stat().st_mode & 0o777 == 0o644
    assert daemon.stop() == 0
    assert not pid_file.exists()


def test_a_second_daemon_is_refused_before_it_binds(oinetd: Start, tmp_path: Path) -> None:
    pid_file, host = tmp_path / "pid", own_address()
    text = f"pidlogfile {pid_file}\n{host} 7001 UPSTREAM\n"
    first = oinetd(text).ready()
    for words in (("-f",), ()):
        second = call(tmp_path, "-c", str(first.conf), *words)
        assert second.returncode == 71
        assert second.stderr == f"oinetd: another oinetd (process {first.pid}) holds the pid file {pid_file}\n"
    assert pid_file.read_text() == f"{first.pid}\n"
    with Client((host, 7001)) as client:
        assert client.echo(b"hello") == b"hello"
    assert first.stop() == 0


def test_one_that_a_crash_left_is_taken_over(oinetd: Start, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    text = f"pidlogfile {pid_file}\n" + RULE
    first = oinetd(text).ready()
    first.signal(signal.SIGKILL)
    first.wait()
    assert pid_file.read_text() == f"{first.pid}\n"
    second = oinetd(text).ready()
    assert pid_file.read_text() == f"{second.pid}\n"
    assert second.stop() == 0
    assert not pid_file.exists()


def test_the_number_of_a_stranger_is_no_reason_to_refuse(oinetd: Start, tmp_path: Path) -> None:
    # The number in a file that was left may belong to any process by now, for instance to this one.
    pid_file = tmp_path / "pid"
    pid_file.write_text(f"{os.getpid()}\n")
    daemon = oinetd(f"pidlogfile {pid_file}\n" + RULE).ready()
    assert pid_file.read_text() == f"{daemon.pid}\n"
    assert daemon.stop() == 0


def test_the_command_line_names_another(oinetd: Start, tmp_path: Path) -> None:
    daemon = oinetd(f"pidlogfile {tmp_path}/one\n" + RULE, "-p", "two").ready()
    assert (tmp_path / "two").read_text() == f"{daemon.pid}\n"
    assert not (tmp_path / "one").exists()
    assert daemon.stop() == 0


def test_a_failed_start_leaves_none(tmp_path: Path) -> None:
    (tmp_path / "x.conf").write_text(f"pidlogfile {tmp_path}/pid\n127.0.0.1 0 no-such-host.invalid 9\n")
    assert call(tmp_path, "-f", "-c", "x.conf").returncode == 78
    assert not (tmp_path / "pid").exists()


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "x.conf").write_text(f"pidlogfile {tmp_path}/gone/pid\n127.0.0.1 0 127.0.0.1 9\n")
    answer = call(tmp_path, "-f", "-c", "x.conf")
    assert answer.returncode == 71
    assert f"{tmp_path}/gone/pid" in answer.stderr


def test_one_that_somebody_else_has_put_in_its_place_stays(oinetd: Start, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    daemon = oinetd(f"pidlogfile {pid_file}\n" + RULE).ready()
    pid_file.unlink()
    pid_file.write_text("not ours\n")
    assert daemon.stop() == 0
    assert pid_file.read_text() == "not ours\n"


def test_a_reload_can_move_it(oinetd: Start, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    daemon = oinetd(f"pidlogfile {one}\n" + RULE).ready()
    rule = daemon.conf.read_text().splitlines()[1] + "\n"
    daemon.reload(f"pidlogfile {two}\n{rule}")
    assert two.read_text() == f"{daemon.pid}\n"
    assert not one.exists()
    daemon.reload(rule)
    assert not two.exists()
    daemon.reload(f"pidlogfile {one}\n{rule}")
    assert one.read_text() == f"{daemon.pid}\n"
    # Where the rest of a configuration fails, this part of it stays, too.
    said = daemon.reload(f"pidlogfile {two}\n127.0.0.1 0 no-such-host.invalid 9\n")
    assert "reload failed" in said
    assert one.read_text() == f"{daemon.pid}\n"
    assert not two.exists()
    assert daemon.stop() == 0
    until(lambda: not one.exists(), "its removal")
