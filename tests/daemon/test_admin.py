"""The commands and a running oinetd: found, asked, reloaded; two instances; without root."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.daemon.process import COMMAND, Client, EchoServer, Oinetd, call, until


@pytest.fixture
def run(tmp_path: Path) -> str:
    return str(tmp_path / "run")


@pytest.fixture
def environ(run: str) -> dict[str, str]:
    return {"RUNTIME_DIRECTORY": run}


def start(folder: Path, text: str, environ: dict[str, str], *words: str) -> Oinetd:
    return Oinetd(folder, text, *words, environ=environ).ready()


def test_the_only_instance_is_found_and_asked(tmp_path: Path, environ: dict[str, str]) -> None:
    upstream = EchoServer()
    daemon = start(tmp_path, f"127.0.0.1 0 127.0.0.1 {upstream.port} [name=web]\n", environ)
    try:
        with Client(daemon.address) as client:
            assert client.echo(b"hello") == b"hello"
            asked = call(tmp_path, "sessions", "--json", **environ)
            (session,) = json.loads(asked.stdout)["sessions"]
            assert (session["rule"], session["bytes_up"]) == ("web", 5)
            assert "web" in call(tmp_path, "rules", **environ).stdout
            status = call(tmp_path, "status", **environ).stdout
            assert f"pid {daemon.pid}" in status
            assert "1 live" in status
            daemon.signal(signal.SIGUSR2)
            daemon.wait_said(r"sessions: 1 live, 1 accepted")
            assert call(tmp_path, "-n", "oinetd", "kill", str(session["id"]), **environ).stdout == "1 session ended\n"
            assert not client.ended()
        assert call(tmp_path, "kill", "999", **environ).returncode == 1
        assert call(tmp_path, "kill", **environ).returncode == 64
        assert call(tmp_path, "kill", "--rule", "web", "--name", "oinetd", **environ).stdout == "0 sessions ended\n"
        health = call(tmp_path, "health", **environ)
        assert (health.returncode, health.stdout) == (0, "ready\n")
        explained = call(tmp_path, "explain", "127.0.0.1", str(daemon.address[1]), "--client", "192.0.2.1", **environ)
        assert "native lane: default" in explained.stdout
        assert daemon.stop() == 0
        assert not list((tmp_path / "run").iterdir())
        gone = call(tmp_path, "health", **environ)
        assert (gone.returncode, "no oinetd with an admin socket is running" in gone.stderr) == (1, True)
    finally:
        daemon.close()
        upstream.close()


def test_a_frozen_process_is_not_healthy(tmp_path: Path, environ: dict[str, str]) -> None:
    daemon = start(tmp_path, "127.0.0.1 0 127.0.0.1 9\n", environ)
    try:
        daemon.signal(signal.SIGSTOP)
        frozen = call(tmp_path, "health", "--timeout", "50ms", **environ)
        assert frozen.returncode == 1
        assert "no answer in time: the process is stopped, hangs, or is very busy" in frozen.stderr
        daemon.signal(signal.SIGCONT)
        assert call(tmp_path, "health", "--timeout", "1m", **environ).returncode == 0
        unclear = call(tmp_path, "health", "--timeout", "soon", **environ)
        assert (unclear.returncode, "'soon' is not a valid time" in unclear.stderr) == (64, True), unclear
    finally:
        daemon.close()


def test_a_reload_by_command_shows_errors_with_their_place(tmp_path: Path, environ: dict[str, str]) -> None:
    daemon = start(tmp_path, "127.0.0.1 0 127.0.0.1 9\n", environ)
    try:
        daemon.conf.write_text("127.0.0.1 0 127.0.0.1 9\n127.0.0.1 0 127.0.0.1 10\n")
        done = call(tmp_path, "reload", **environ)
        assert (done.returncode, done.stdout) == (0, "reloaded, 2 rules\n")
        daemon.conf.write_text("127.0.0.1 0 127.0.0.1 9 [relay=spice]\n")
        done = call(tmp_path, "reload", **environ)
        assert done.returncode == 78
        assert "'spice' is not one of" in done.stderr
        assert "^^^^^" in done.stderr
        assert done.stderr.endswith("oinetd reload: the configuration has errors; nothing was changed\n")
        reloads = json.loads(call(tmp_path, "status", "--json", **environ).stdout)["reloads"]
        assert (reloads["succeeded"], reloads["failed"]) == (1, 1)
        assert "spice" in reloads["last_error"]
    finally:
        daemon.stop()
        daemon.close()


def test_two_instances_have_two_names(tmp_path: Path, environ: dict[str, str]) -> None:
    first = start(tmp_path, "127.0.0.1 0 127.0.0.1 9\n", environ)
    try:
        second = call(tmp_path, "-f", "-c", str(first.conf), **environ)
        assert second.returncode == 71
        assert f"in use by another oinetd (pid {first.pid})" in second.stderr
        other = start(tmp_path, "127.0.0.1 0 127.0.0.1 9\n", environ, "-n", "shop")
        try:
            asked = call(tmp_path, "status", **environ)
            assert asked.returncode == 64
            assert "oinetd, shop" in asked.stderr
            for words in (("-n", "shop", "status"), ("status", "-n", "shop")):
                assert f"shop: ready, oinetd 0.1.0, pid {other.pid}" in call(tmp_path, *words, **environ).stdout
            path = tmp_path / "run" / "oinetd.sock"
            assert f"pid {first.pid}" in call(tmp_path, "--admin", str(path), "status", **environ).stdout
        finally:
            other.stop()
            other.close()
    finally:
        first.stop()
        first.close()


def test_a_reload_moves_the_socket_and_a_failed_one_leaves_it(tmp_path: Path, environ: dict[str, str]) -> None:
    daemon = start(tmp_path, "127.0.0.1 0 127.0.0.1 9\n", environ)
    try:
        old, new = tmp_path / "run" / "oinetd.sock", tmp_path / "new.sock"
        daemon.reload(f"admin unix:{new} [mode=660]\n127.0.0.1 0 127.0.0.1 9\n")
        until(lambda: new.exists() and not old.exists(), "the new socket")
        assert new.stat().st_mode & 0o777 == 0o660
        assert call(tmp_path, "--admin", str(new), "health").returncode == 0
        said = daemon.reload(f"admin unix:{tmp_path}/nowhere/x.sock\n127.0.0.1 0 127.0.0.1 9\n")
        assert "reload failed" in said
        assert call(tmp_path, "--admin", str(new), "health").returncode == 0
        daemon.reload("admin off\n127.0.0.1 0 127.0.0.1 9\n")
        until(lambda: not new.exists(), "the end of the socket")
    finally:
        daemon.stop()
        daemon.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")
def test_with_another_user_the_socket_is_its_own_and_root_may_ask(tmp_path: Path, environ: dict[str, str]) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_mode & 0o055 != 0o055:  # a worker of the tests has one folder more above its own
            folder.chmod(0o755)
    (tmp_path / "run").mkdir(mode=0o755)
    daemon = start(tmp_path, "127.0.0.1 0 127.0.0.1 9\n", environ, "-u", "nobody")
    try:
        assert (tmp_path / "run" / "oinetd.sock").stat().st_uid == 65534
        assert call(tmp_path, "health", **environ).returncode == 0
        assert call(tmp_path, "reload", **environ).returncode == 0
    finally:
        assert daemon.stop() == 0
        daemon.close()


def test_forward_and_lines_need_no_file(tmp_path: Path, environ: dict[str, str]) -> None:
    upstream = EchoServer()
    daemon = Oinetd(
        tmp_path,
        "",
        environ=environ,
        command=COMMAND,
        arguments=(
            "forward",
            "127.0.0.1:0",
            f"127.0.0.1:{upstream.port}",
            "-e",
            "127.0.0.1 0 127.0.0.1 9 [name=other]",
        ),
    ).ready()
    try:
        with Client(daemon.address) as client:
            assert client.echo(b"hello") == b"hello"
        status = call(tmp_path, "status", **environ).stdout
        assert f"oinetd-{daemon.pid}: ready" in status
        assert "configuration: none, 2 rules" in status
        assert call(tmp_path, "reload", **environ).returncode == 0
        assert daemon.stop() == 0
    finally:
        daemon.close()
        upstream.close()
    wrong = call(tmp_path, "-t", "-e", "127.0.0.1 0 127.0.0.1 9", "-e", "127.0.0.1 0 127.0.0.1 9 [relay=x]")
    assert (wrong.returncode, "-e:2:32: 'x' is not one of" in wrong.stderr) == (78, True), wrong.stderr
    assert call(tmp_path, "forward", "80").returncode == 64


def test_servers_are_drained_and_made_ready_by_command(tmp_path: Path, environ: dict[str, str]) -> None:
    upstream = EchoServer()
    server = f"127.0.0.1:{upstream.port}"
    daemon = start(tmp_path, f"upstream web {server.replace(':', ' ')}\n127.0.0.1 0 @web\n", environ)
    try:
        assert "up" in call(tmp_path, "servers", **environ).stdout.splitlines()[1].split()
        drained = call(tmp_path, "drain", f"web/{server}", **environ)
        assert (drained.returncode, "drain" in drained.stdout, "operator" in drained.stdout) == (0, True, True)
        assert call(tmp_path, "reload", **environ).returncode == 0
        assert "operator" in call(tmp_path, "servers", "web", **environ).stdout
        health = call(tmp_path, "health", **environ)
        assert (health.returncode, "group web has no usable server" in health.stdout) == (1, True)
        assert call(tmp_path, "ready", f"web/{server}", **environ).returncode == 0
        assert call(tmp_path, "weight", f"web/{server}", "9", **environ).returncode == 0
        assert call(tmp_path, "health", **environ).returncode == 0
        assert call(tmp_path, "drain", "web/nowhere:1", **environ).returncode == 1
        assert call(tmp_path, "drain", "web", **environ).returncode == 64
    finally:
        daemon.stop()
        daemon.close()
        upstream.close()


def test_what_a_killed_process_leaves_is_named_and_replaced(tmp_path: Path, environ: dict[str, str]) -> None:
    daemon = start(tmp_path, "127.0.0.1 0 127.0.0.1 9\n", environ)
    daemon.signal(signal.SIGKILL)
    daemon.process.wait()
    daemon.close()
    path = tmp_path / "run" / "oinetd.sock"
    for words in (("status",), ("-n", "oinetd", "status")):
        asked = call(tmp_path, *words, **environ)
        assert asked.returncode == 1
        assert f"left of a process that has ended, replaced by the next start of its name: {path}" in asked.stderr
    again = start(tmp_path, "127.0.0.1 0 127.0.0.1 9\n", environ)
    try:
        assert f"admin socket {path}: replacing the file of a process that has ended" in again.said
        assert call(tmp_path, "status", **environ).returncode == 0
    finally:
        again.stop()
        again.close()


def test_a_program_for_an_upgrade_that_is_not_there(tmp_path: Path, environ: dict[str, str]) -> None:
    daemon = start(tmp_path, "127.0.0.1 0 127.0.0.1 9\n", environ)
    try:
        done = call(tmp_path, "upgrade", "--to", "/nonexist", **environ)
        assert done.returncode == 77
        assert done.stderr == "/nonexist: there is no such file\noinetd upgrade: the running process goes on\n"
    finally:
        daemon.stop()
        daemon.close()
