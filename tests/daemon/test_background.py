"""Without -f: the shell waits for the outcome, and then nothing ties the daemon to it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.daemon.process import ROOT, Background, Client, text_of, until

RULE = "127.0.0.1 0 UPSTREAM\n"

Start = Callable[..., Background]


def test_it_serves_when_the_shell_goes_on(background: Start) -> None:
    daemon = background(RULE)
    assert (daemon.answer.returncode, daemon.answer.stdout) == (0, "")
    with Client(daemon.addresses[0]) as client:
        assert client.echo(b"hello") == b"hello"
    assert daemon.stop() == 0
    assert not daemon.pid_file.exists()


def test_nothing_ties_it_to_the_shell(background: Start) -> None:
    daemon = background(RULE)
    links = {name: os.readlink(f"/proc/{daemon.pid}/{name}") for name in ("fd/0", "fd/1", "fd/2", "cwd")}
    assert links == {"fd/0": "/dev/null", "fd/1": "/dev/null", "fd/2": "/dev/null", "cwd": "/"}
    assert os.getsid(daemon.pid) not in (os.getsid(0), daemon.pid)  # so it can never get a terminal
    assert daemon.stop() == 0


def test_the_shell_hears_of_a_failure(background: Start, tmp_path: Path) -> None:
    daemon = background("127.0.0.1 0 no-such-host.invalid 9\n")
    assert daemon.answer.returncode == 78
    assert "no-such-host.invalid" in daemon.answer.stderr
    assert not daemon.pid_file.exists()


def test_the_shell_hears_where_it_listens(background: Start) -> None:
    daemon = background(RULE)
    host, port = daemon.addresses[0]
    assert f"listening on {host}:{port}, " in daemon.answer.stderr
    assert daemon.stop() == 0


def test_the_shell_hears_that_there_is_no_rule(background: Start) -> None:
    daemon = background("logfile log\n")
    assert daemon.answer.returncode == 0
    assert "warning: oinetd.conf: no forwarding rule: nothing is forwarded" in daemon.answer.stderr.replace(
        f"{daemon.conf.parent}/", ""
    )
    assert daemon.stop() == 0


def test_names_relative_to_the_directory_of_the_start(background: Start, tmp_path: Path) -> None:
    # `background` calls with a relative -c; the log and the include are relative as well.
    (tmp_path / "more.conf").write_text("logfile log\n")
    daemon = background("include more.conf\n" + RULE)
    log = tmp_path / "log"
    with Client(daemon.addresses[0]) as client:
        client.echo(b"hello")
    until(lambda: text_of(log).endswith("done-remote-closed\n"), "the log")
    # The same file at a reload, with the daemon in the root directory.
    (tmp_path / "more.conf").write_text("logfile new\n")
    os.kill(daemon.pid, signal.SIGHUP)
    until((tmp_path / "new").exists, "the new log")
    assert daemon.stop() == 0


def test_it_writes_to_the_log_after_the_forks(background: Start, tmp_path: Path) -> None:
    daemon = background(f"logfile {tmp_path}/log\n" + RULE)
    with Client(daemon.addresses[0]) as client:
        client.echo(b"hello")
    assert daemon.stop() == 0
    assert (tmp_path / "log").read_text().count("\n") == 2


def test_one_that_is_killed_during_the_start(background: Start, tmp_path: Path) -> None:
    code = "from oinetd.process.daemon import Daemon as D; import os; D.prepare = lambda *_: os.kill(os.getpid(), 9)\n"
    (tmp_path / "sitecustomize.py").write_text(code)
    daemon = background(RULE, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert daemon.answer.returncode == 71
    assert daemon.answer.stderr == "oinetd: the daemon exited before it was ready\n"


@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/stderr", "/proc/self/fd/1", "link"])
def test_a_connection_log_on_standard_output_is_refused(background: Start, tmp_path: Path, name: str) -> None:
    (tmp_path / "link").symlink_to("/dev/stdout")
    daemon = background(f"logfile {name}\n" + RULE)
    assert daemon.answer.returncode == 78
    assert "a daemon has no standard output\n    hint: " in daemon.answer.stderr
    assert not daemon.pid_file.exists()


def test_a_reload_cannot_bring_a_log_on_standard_output(background: Start, tmp_path: Path) -> None:
    daemon = background(f"logfile {tmp_path}/log\n" + RULE)
    address = daemon.addresses[0]
    pid, text = daemon.pid_file.read_text(), daemon.conf.read_text()
    daemon.conf.write_text(text.replace(f"{tmp_path}/log", "-").replace(str(daemon.pid_file), f"{tmp_path}/new"))
    os.kill(daemon.pid, signal.SIGHUP)
    # A second reload ends after the first, and can be seen.
    whole = tmp_path / "whole.conf"  # the first reload may read the file while this is written
    whole.write_text(text.replace(f"{tmp_path}/log", f"{tmp_path}/other"))
    whole.replace(daemon.conf)
    os.kill(daemon.pid, signal.SIGHUP)
    until((tmp_path / "other").exists, "the second reload")
    assert (daemon.pid_file.read_text(), (tmp_path / "new").exists()) == (pid, False)
    with Client(address) as client:
        assert client.echo(b"hello") == b"hello"
    assert daemon.stop() == 0
