"""Options and exit codes."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from oinetd.model import Config
from oinetd.process import cli
from oinetd.process.invocation import Options
from tests.daemon.process import (
    PATIENCE_S,
    ROOT,
    Client,
    EchoServer,
    Oinetd,
    call,
    own_address,
    surroundings,
    text_of,
    until,
)

Start = Callable[..., Oinetd]

PR_CAPBSET_DROP = 24
CAP_NET_BIND_SERVICE = 10


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    path = tmp_path / "good.conf"
    path.write_text("127.0.0.1 0 127.0.0.1 9 [engine=python, relay=copy]\n")
    return path


def test_version(tmp_path: Path) -> None:
    for word in ("-v", "--version"):
        answer = call(tmp_path, word)
        assert (answer.returncode, answer.stdout[:7], answer.stderr) == (0, "oinetd ", "")


def test_help_names_the_demo_and_the_exit_codes(tmp_path: Path) -> None:
    answer = call(tmp_path, "--help")
    assert answer.returncode == 0
    for word in ("--conf-file", "oinetd demo", "64 usage", "USR1"):
        assert word in answer.stdout


@pytest.mark.parametrize(
    "words",
    [
        ("--bogus",),
        ("-c",),
        ("--threads", "none"),
        ("--threads", "-1"),
        ("-c", ""),
        ("-t", "-p", ""),
        ("--engine", "steam"),
        ("--relay", "race"),
        ("--log-level", "loud"),
        ("--user", "no-such-user-here"),
        ("--user", "root:no-such-group-here"),
        ("--fore",),
        ("surplus",),
        ("--strict", "-c", "/dev/null"),
        ("demo", "--port", "70000"),
        ("demo", "surplus"),
    ],
)
def test_usage(tmp_path: Path, words: tuple[str, ...]) -> None:
    answer = call(tmp_path, *words)
    assert answer.returncode == 64
    assert answer.stderr.startswith(("oinetd: ", "oinetd demo: "))
    assert "usage: oinetd" in answer.stderr
    assert answer.stdout == ""


def test_a_good_configuration_is_ok(tmp_path: Path, conf: Path) -> None:
    for words in (("-t", "-c", str(conf)), ("--test", "--conf-file", conf.name)):
        answer = call(tmp_path, *words)
        assert (answer.returncode, answer.stdout, answer.stderr) == (0, "OK\n", "")


def test_a_bad_one_is_shown_with_all_its_mistakes(tmp_path: Path) -> None:
    (tmp_path / "bad.conf").write_text("logfiel /tmp/x\n127.0.0.1 99999 127.0.0.1 80\n")
    for words in (("-t",), ("-T",), ("-f",), ()):
        answer = call(tmp_path, "-c", "bad.conf", *words)
        assert answer.returncode == 78
        assert answer.stdout == ""
        assert "bad.conf:1:1: " in answer.stderr
        assert "bad.conf:2:11: " in answer.stderr
        assert "    ^^^^^^^\n" in answer.stderr
        assert "did you mean 'logfile'" in answer.stderr


def test_warnings_prevent_nothing_unless_they_are_asked_to(tmp_path: Path) -> None:
    (tmp_path / "odd.conf").write_text("127.0.0.1 1 127.0.0.1 1\n")
    warning = "warning: odd.conf:1:13: the destination 127.0.0.1 1 is the rule's own listener\n"
    answer = call(tmp_path, "-t", "-c", "odd.conf")
    assert (answer.returncode, answer.stdout) == (0, "OK\n")
    assert answer.stderr.startswith(warning)
    answer = call(tmp_path, "-t", "--strict", "-c", "odd.conf")
    assert (answer.returncode, answer.stdout) == (78, "")
    assert answer.stderr.startswith(warning)


def test_strict_is_fine_with_what_needs_no_warning(tmp_path: Path, conf: Path) -> None:
    answer = call(tmp_path, "-t", "--strict", "-c", str(conf))
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "OK\n", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("my.conf",),
            "oinetd: unexpected argument my.conf; a configuration file needs -c: oinetd -c my.conf",
        ),
        (("--bogus",), "oinetd: unknown option --bogus"),
        (("--treads", "3"), "oinetd: unknown option --treads; did you mean --threads?"),
        (("statsu",), "oinetd: unknown command statsu; did you mean status?"),
        (("stop",), "oinetd: there is no command stop: kill -TERM PID stops; oinetd status has the PID"),
        (("Status",), "oinetd: unknown command Status; did you mean status?"),
        (("-f", "status"), "oinetd: the command status stands before its options: oinetd status"),
        (("-c", ""), "oinetd: argument -c/--conf-file: the file name is empty"),
        (("--threads", "few"), "oinetd: argument --threads: 'few' is not a valid number; a whole number, or auto"),
        (("--threads", "2000"), "oinetd: argument --threads: '2000' is out of range; from 0 to 1024"),
        (
            ("--engine", "Native"),
            "oinetd: argument --engine: 'Native' is not one of auto, native, python; "
            "words are case-sensitive: write native",
        ),
    ],
)
def test_what_is_wrong_with_the_command_line(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    answer = call(tmp_path, *words)
    assert (answer.returncode, answer.stderr.partition("\n")[0]) == (64, message)


def test_threads_mean_the_same_in_the_file_and_on_the_command_line(tmp_path: Path, conf: Path) -> None:
    shown = call(tmp_path, "-T", "-c", str(conf), "--threads", "0").stdout
    conf.write_text(f"threads 0\n{conf.read_text()}")
    assert "threads auto" in shown.splitlines()
    assert call(tmp_path, "-T", "-c", str(conf)).stdout == shown


def test_a_log_file_that_cannot_be_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "x.conf").write_text("127.0.0.1 0 127.0.0.1 9\nlogfile /nope/x\n")
    for words in (("-t",), ("-f",)):
        answer = call(tmp_path, *words, "-c", "x.conf")
        assert answer.returncode == 78
        assert answer.stderr.endswith("x.conf:2: logfile /nope/x: there is no directory /nope\n")


def test_the_log_file_is_part_of_the_check(tmp_path: Path) -> None:
    (tmp_path / "bad.conf").write_text(f"logfile {tmp_path}\n")
    answer = call(tmp_path, "-t", "-c", "bad.conf")
    assert (answer.returncode, answer.stderr) == (78, f"bad.conf:1: logfile {tmp_path}: is a directory\n")


def test_the_configuration_in_force_reads_back(tmp_path: Path, conf: Path) -> None:
    words = ("--engine", "native", "--relay", "splice", "--threads", "3", "-p", "/run/x.pid")
    shown = call(tmp_path, "-T", "-c", str(conf), *words)
    assert shown.returncode == 0
    for line in ("engine native", "relay splice", "threads 3", "pidlogfile /run/x.pid"):
        assert line in shown.stdout.splitlines()
    # The command line's word holds for the rule, too.
    assert "python" not in shown.stdout
    assert "copy" not in shown.stdout
    again = tmp_path / "again.conf"
    again.write_text(shown.stdout)
    assert call(tmp_path, "-T", "-c", str(again)).stdout == shown.stdout


def test_no_configuration_file(tmp_path: Path) -> None:
    for words in (("-f",), (), ("-t",)):
        answer = call(tmp_path, "-c", "none.conf", *words)
        assert (answer.returncode, answer.stderr) == (66, "oinetd: no configuration file found: none.conf\n")


def test_the_places_where_it_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "oinetd.conf", tmp_path / "rinetd.conf"
    monkeypatch.setattr(cli, "CONF_FILES", (str(first), str(second)))
    assert cli.main(["-t"]) == 66
    assert f"{first} or {second}" in capsys.readouterr().err
    second.write_text("wrong in the second\n")
    assert cli.main(["-t"]) == 78
    assert f"{second}:1:" in capsys.readouterr().err
    first.write_text("")
    assert cli.main(["-t"]) == 0
    assert capsys.readouterr().out == "OK\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="root becomes somebody without permission")
@pytest.mark.parametrize(
    ("name", "words", "file", "pid_file"),
    [
        ("/usr/bin/oinetd", [], "oinetd.conf", ""),
        ("/usr/sbin/rinetd", [], "rinetd.conf", "/run/rinetd.pid"),
        ("/usr/sbin/rinetd", ["-f"], "rinetd.conf", ""),
        ("rinetd", ["-p", "mine"], "rinetd.conf", "mine"),
    ],
)
def test_the_name_of_rinetd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: list[str], file: str, pid_file: str
) -> None:
    files = tuple(str(tmp_path / name) for name in ("oinetd.conf", "rinetd.conf"))
    for each in files:
        Path(each).touch()
    called: list[Options] = []
    monkeypatch.setattr(cli, "CONF_FILES", files)
    monkeypatch.setattr("oinetd.process.run.run", lambda options: called.append(options) or 0)
    monkeypatch.setattr(sys, "argv", [name, *words])
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert cli.main() == 0
    (options,) = called
    assert Path(options.conf_file).name == file
    assert options.with_overrides(Config()).pid_file == pid_file
    monkeypatch.setattr(os, "geteuid", lambda: 1000)  # who may not write there
    assert cli.main() == 0
    assert called[1].default_pid_file == ""


def test_no_permission_to_read_the_configuration(tmp_path: Path, conf: Path) -> None:
    conf.chmod(0o600)
    os.seteuid(65534)
    try:
        assert cli.main(["-t", "-c", str(conf)]) == 77
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("words", [("-f",), ()])
def test_a_taken_port(tmp_path: Path, words: tuple[str, ...]) -> None:
    with socket.create_server((own_address(), 0)) as taken:
        host, port = taken.getsockname()
        (tmp_path / "x.conf").write_text(f"pidlogfile pid\n{host} {port} 127.0.0.1 9\n")
        answer = call(tmp_path, "-c", "x.conf", *words)
    assert answer.returncode == 71
    assert f"x.conf:2: cannot listen on {host}:{port}: " in answer.stderr
    assert not (tmp_path / "pid").exists()


def test_an_unknown_destination(tmp_path: Path) -> None:
    (tmp_path / "x.conf").write_text("127.0.0.1 0 no-such-host.invalid 9\n")
    answer = call(tmp_path, "-f", "-c", "x.conf")
    assert answer.returncode == 78
    assert "no-such-host.invalid" in answer.stderr
    assert "x.conf:1" in answer.stderr


def test_a_port_that_takes_permission(oinetd: Start) -> None:
    first_unprivileged = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    if first_unprivileged < 2:
        pytest.skip("every port is unprivileged here")
    libc = ctypes.CDLL(None)
    daemon = oinetd(
        f"{own_address()} 1 127.0.0.1 9\n",
        before=lambda: libc.prctl(PR_CAPBSET_DROP, CAP_NET_BIND_SERVICE, 0, 0, 0),
    )
    assert daemon.wait() == 77
    assert "not permitted" in daemon.said


def test_the_command_line_overrides(oinetd: Start) -> None:
    daemon = oinetd("engine native\n127.0.0.1 0 UPSTREAM [engine=native]\n", "--engine", "python").ready()
    daemon.wait_said(r"python engine: asked for\)")
    with Client(daemon.address) as client:
        assert client.echo(b"hello") == b"hello"
    assert daemon.stop() == 0


def test_log_level(oinetd: Start) -> None:
    daemon = oinetd("127.0.0.1 0 UPSTREAM\n", "--log-level", "warning").ready()
    assert daemon.stop() == 0
    assert daemon.said == ""


def test_messages_have_the_time_only_where_nobody_else_writes_it(oinetd: Start, tmp_path: Path) -> None:
    managed = oinetd("127.0.0.1 0 UPSTREAM\n").ready()
    assert managed.stop() == 0
    assert managed.said.startswith(("room for ", "listening on "))
    alone = oinetd("127.0.0.1 0 UPSTREAM\n", environ={"NOTIFY_SOCKET": ""})
    alone.wait_said(r"(?m)^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d listening on ")
    assert alone.stop() == 0


def test_without_uvloop(oinetd: Start, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['uvloop'] = None\n")
    daemon = oinetd("127.0.0.1 0 UPSTREAM\n", environ={"PYTHONPATH": f"{tmp_path}:{ROOT}"}).ready()
    daemon.wait_said("warning: uvloop not installed; using asyncio")
    with Client(daemon.address) as client:
        assert client.echo(b"hello") == b"hello"
        assert "reloaded" in daemon.reload()
        assert client.echo(b"again") == b"again"
    assert daemon.stop() == 0


def test_nobody_reads_the_messages(tmp_path: Path, echo: EchoServer) -> None:
    host = own_address()
    (tmp_path / "x.conf").write_text(f"pidlogfile {tmp_path}/pid\nengine python\n{host} 7001 {echo.host} {echo.port}\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "oinetd", "-f", "-c", "x.conf"],
        cwd=tmp_path,
        env=surroundings(),
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    with process.stderr:
        try:
            fcntl.fcntl(process.stderr, fcntl.F_SETPIPE_SZ, 4096)
            until(lambda: text_of(tmp_path / "pid"), "its readiness")
            with Client((host, 7001)) as client:
                for _ in range(300):  # three lines each, where the pipe has room for forty
                    process.send_signal(signal.SIGUSR2)
                    assert client.echo(b"hello") == b"hello"
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()
            process.wait()


def test_the_check_says_that_names_were_not_looked_up(tmp_path: Path) -> None:
    (tmp_path / "x.conf").write_text("127.0.0.1 0 no-such-host.invalid 9 [src=localhost]\n127.0.0.1 0 10.0.0.1 9\n")
    answer = call(tmp_path, "-t", "-c", "x.conf")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.splitlines() == [
        "OK",
        "names not resolved (use -t --resolve): no-such-host.invalid, localhost",
    ]
    answer = call(tmp_path, "-t", "--resolve", "-c", "x.conf")
    assert (answer.returncode, answer.stdout) == (78, "")
    assert answer.stderr.startswith("x.conf:1: cannot resolve the destination no-such-host.invalid: ")
    (tmp_path / "x.conf").write_text("127.0.0.1 0 localhost 9\n")
    answer = call(tmp_path, "-t", "--resolve", "-c", "x.conf")
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "OK\n", "")


def test_looking_names_up_is_part_of_the_check(tmp_path: Path, conf: Path) -> None:
    answer = call(tmp_path, "--resolve", "-c", str(conf))
    assert answer.returncode == 64
    assert "--resolve needs -t" in answer.stderr


def test_the_check_reads_files_of_servers(tmp_path: Path) -> None:
    servers = tmp_path / "web.servers"
    servers.write_text("10.0.0.1 80\n10.0.0.2 80 [wait=3]\n")
    servers.chmod(0o644)
    (tmp_path / "x.conf").write_text(f"127.0.0.1 0 @web\nupstream web file:{servers}\n")
    answer = call(tmp_path, "-t", "-c", "x.conf")
    assert (answer.returncode, answer.stdout) == (78, "")
    assert answer.stderr.startswith(f"{servers}:2:14: unknown option 'wait'")
    servers.write_text("10.0.0.1 80\n")
    answer = call(tmp_path, "-t", "-c", "x.conf")
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "OK\n", "")
    servers.unlink()
    answer = call(tmp_path, "-t", "-c", "x.conf")
    assert (answer.returncode, answer.stdout) == (78, "")
    assert answer.stderr.startswith(f"x.conf:2: cannot read the servers in {servers}: No such file")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_the_check_does_not_judge_a_file_of_another_user(tmp_path: Path) -> None:
    servers = tmp_path / "web.servers"
    servers.write_text("10.0.0.1 80\n")
    os.chown(servers, 65534, 65534)
    (tmp_path / "x.conf").write_text(f"127.0.0.1 0 @web\nupstream web file:{servers}\n")
    answer = call(tmp_path, "-t", "-c", "x.conf")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout == f"OK\nnot read as this user (the user of the service may): {servers}\n"


def test_the_check_tries_engines_and_lists_socket_options(tmp_path: Path) -> None:
    (tmp_path / "x.conf").write_text("127.0.0.1 0 10.0.0.1 9/udp [engine=native]\n")
    answer = call(tmp_path, "-t", "-c", "x.conf")
    assert (answer.returncode, answer.stdout) == (78, "")
    assert answer.stderr.startswith("x.conf:1: the native engine serves no rule from tcp to udp; ")
    (tmp_path / "x.conf").write_text("127.0.0.1 0 10.0.0.1 9 [mark=3, dscp=46]\n127.0.0.1 0 10.0.0.1 9 [freebind]\n")
    answer = call(tmp_path, "-t", "-c", "x.conf")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout == "OK\nsocket options not tried with the kernel (a start does): freebind, mark, dscp\n"
