"""The pid file: one daemon for each, and nothing left of it."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.daemon.process import Client, Oinetd, call, own_address, surroundings, until

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
        assert second.stderr == f"oinetd: pid file {pid_file}: locked by another oinetd (pid {first.pid})\n"
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


def make_null(path: Path) -> None:
    os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "character device": (make_null, "is a character device"),
    "FIFO": (os.mkfifo, "is a FIFO"),
    "directory": (os.mkdir, "is a directory"),
    "link": (lambda path: path.symlink_to("/etc/passwd"), "is a symbolic link"),
    "text": (lambda path: path.write_text("precious\n"), "contains something other than a process id"),
    "number and more": (lambda path: path.write_text("1\n2\n"), "contains something other than a process id"),
    "many digits": (lambda path: path.write_text("1" * 4096), "contains something other than a process id"),
    "hard link": (lambda path: os.link(path.with_name("other"), path), "has more than one hard link"),
}


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a device")
@pytest.mark.parametrize("words", [("-f",), (), ("-t",)], ids=str)
@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_pid_file_is_refused_and_left_alone(tmp_path: Path, kind: str, words: tuple[str, ...]) -> None:
    path = tmp_path / "victim"
    (tmp_path / "other").write_text("")
    make, fault = REFUSED[kind]
    make(path)
    before = path.lstat()
    content = path.read_bytes() if stat.S_ISREG(before.st_mode) else b""
    (tmp_path / "x.conf").write_text("127.0.0.1 0 127.0.0.1 9\n")
    answer = call(tmp_path, "-c", "x.conf", "-p", str(path), *words)
    assert answer.returncode == 78
    assert f"pid file {path}: {fault}" in answer.stderr
    assert "\n    hint: " in answer.stderr
    after = path.lstat()
    assert (after.st_ino, after.st_mode, after.st_mtime_ns) == (before.st_ino, before.st_mode, before.st_mtime_ns)
    assert not stat.S_ISREG(before.st_mode) or path.read_bytes() == content


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a device")
def test_one_that_a_reload_names_is_refused_and_left_alone(oinetd: Start, tmp_path: Path) -> None:
    daemon = oinetd(f"pidlogfile {tmp_path}/pid\n" + RULE).ready()
    make_null(tmp_path / "null")
    assert "is a character device" in daemon.reload(f"pidlogfile {tmp_path}/null\n127.0.0.1 0 127.0.0.1 9\n")
    assert (tmp_path / "pid").read_text() == f"{daemon.pid}\n"
    assert daemon.stop() == 0
    assert stat.S_ISCHR((tmp_path / "null").stat().st_mode)


@pytest.mark.skipif(os.geteuid() != 0, reason="hides its /dev")
def test_dev_null_itself(tmp_path: Path) -> None:
    """In a /dev of its own, so that nothing is lost if it fails."""
    (tmp_path / "x.conf").write_text("127.0.0.1 0 127.0.0.1 9\n")
    script = (
        "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && mknod -m 666 /dev/urandom c 1 9 && "
        f"{{ {sys.executable} -m oinetd -f -c x.conf -p /dev/null; test $? = 78; }} && test -c /dev/null"
    )
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], cwd=tmp_path, env=surroundings(), capture_output=True, text=True
    )
    if "unshare failed" in done.stderr:
        pytest.skip("mount namespaces are not allowed here")
    assert done.returncode == 0, done.stderr


def test_one_that_was_written_to_stays(oinetd: Start, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    daemon = oinetd(f"pidlogfile {pid_file}\n" + RULE).ready()
    pid_file.write_text("somebody's\n")  # into the same file
    assert daemon.stop() == 0
    assert pid_file.read_text() == "somebody's\n"


def test_a_failed_start_leaves_one_that_was_there(tmp_path: Path) -> None:
    (tmp_path / "pid").write_text("4194303\n")
    (tmp_path / "x.conf").write_text(f"pidlogfile {tmp_path}/pid\n127.0.0.1 0 no-such-host.invalid 9\n")
    assert call(tmp_path, "-f", "-c", "x.conf").returncode != 0
    assert (tmp_path / "pid").read_text() == "4194303\n"


@pytest.mark.parametrize("option", ["-p", "-c"])
def test_an_empty_name_is_a_mistake_of_the_command_line(tmp_path: Path, option: str) -> None:
    answer = call(tmp_path, "-t", option, "")
    assert answer.returncode == 64
    assert "the file name is empty" in answer.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file away")
def test_one_that_another_user_could_change(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    pid_file.write_text("1\n")
    os.chown(pid_file, 65534, 65534)
    (tmp_path / "x.conf").write_text("127.0.0.1 0 127.0.0.1 9\n")
    answer = call(tmp_path, "-f", "-c", "x.conf", "-p", str(pid_file))
    assert answer.returncode == 78
    assert "owned by user 65534, who can change it" in answer.stderr
    assert pid_file.read_text() == "1\n"
