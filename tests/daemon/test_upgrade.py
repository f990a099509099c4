"""The upgrade: a new process takes listeners, files and live sessions, and no client notices."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oinetd.lanes.native.plane import available
from oinetd.process.invocation import Options
from oinetd.process.replacement import new_command
from tests.daemon.process import COMMAND, Client, EchoServer, Oinetd, surroundings, text_of, until
from tests.daemon.upgrading import ask, group_lives, pid_of, rules_of, successors, upgrade
from tests.peers import free_port
from tests.preamble.samples import real_hello

pytestmark = pytest.mark.skipif(bool(available()), reason=available())


def test_live_connections_go_on_in_the_new_process(
    start: Callable[..., Oinetd], tmp_path: Path, environ: dict[str, str]
) -> None:
    port = free_port()
    pid_file, log = tmp_path / "pid", tmp_path / "log"
    daemon = start(f"pidlogfile {pid_file}\nlogfile {log}\nlogformat json\n127.0.0.1 {port} UPSTREAM\n")
    clients = [Client(("127.0.0.1", port)) for _ in range(20)]
    for number, client in enumerate(clients):
        assert client.echo(b"before %d" % number) == b"before %d" % number
    old = daemon.pid
    assert pid_file.read_text() == f"{old}\n"
    done = upgrade(tmp_path, environ)
    assert done.returncode == 0, done.stderr + daemon.said
    assert "20 sessions moved, 0 stay" in done.stdout
    assert daemon.wait() == 0
    new = pid_of(tmp_path, environ)
    assert new != old
    assert pid_file.read_text() == f"{new}\n"
    with pid_file.open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the lock came along with the descriptor
    said = daemon.manager.read()
    assert f"MAINPID={new}" in said
    assert not any("STOPPING=1" in each for each in said)
    assert not [each for each in said[said.index(f"MAINPID={new}") :] if f"MAINPID={old}" in each]
    for number, client in enumerate(clients):
        assert client.echo(b"after %d" % number) == b"after %d" % number
    with Client(("127.0.0.1", port)) as late:
        assert late.echo(b"late") == b"late"
    rules = rules_of(tmp_path, environ)
    assert (rules[0]["accepted"], rules[0]["live"]) == (21, 20)
    for client in clients:
        client.close()

    def closings() -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in text_of(log).splitlines() if line.endswith("}")]
        return [line for line in lines if "ending" in line]

    until(lambda: len(closings()) == 21, "a closing line for each session")
    assert len({line["id"] for line in closings()}) == 21
    # Half an upgrade more: the new process can be replaced, too.
    assert upgrade(tmp_path, environ).returncode == 0
    third = until(lambda: pid_of(tmp_path, environ), "the third process")
    assert third not in (old, new)
    os.kill(third, signal.SIGTERM)
    until(lambda: not pid_file.exists(), "the end of the third process")
    assert not list((tmp_path / "run").iterdir())


def test_a_stream_in_flight_loses_nothing(
    start: Callable[..., Oinetd], tmp_path: Path, environ: dict[str, str]
) -> None:
    port = free_port()
    start(f"127.0.0.1 {port} UPSTREAM\n")
    data = os.urandom(1 << 20) * 48
    got = bytearray()
    with socket.create_connection(("127.0.0.1", port)) as sock:

        def send() -> None:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)

        sending = threading.Thread(target=send)
        sending.start()
        for _ in range(3):
            while len(got) < len(data) // 4:
                got += sock.recv(1 << 16)
            assert upgrade(tmp_path, environ).returncode == 0
        while part := sock.recv(1 << 20):
            got += part
        sending.join()
    assert bytes(got) == data


def test_nobody_is_refused_while_it_happens(
    start: Callable[..., Oinetd], tmp_path: Path, environ: dict[str, str]
) -> None:
    port = free_port()
    daemon = start(f"127.0.0.1 {port} UPSTREAM\n")
    over = threading.Event()
    served: list[int] = []
    failed: list[BaseException] = []

    def come_and_go() -> None:
        count = 0
        try:
            while not over.is_set():
                with Client(("127.0.0.1", port)) as client:
                    assert client.echo(b"hello") == b"hello"
                count += 1
        except BaseException as error:
            failed.append(error)
        served.append(count)

    crowd = [threading.Thread(target=come_and_go) for _ in range(4)]
    for each in crowd:
        each.start()
    try:
        for _ in range(4):
            assert upgrade(tmp_path, environ).returncode == 0
    finally:
        over.set()
        for each in crowd:
            each.join()
    assert not failed, failed
    rules = rules_of(tmp_path, environ)
    assert rules[0]["accepted"] == sum(served)
    assert len(successors(daemon)) == 4


def test_a_bad_configuration_changes_nothing(
    start: Callable[..., Oinetd], tmp_path: Path, environ: dict[str, str]
) -> None:
    port = free_port()
    daemon = start(f"127.0.0.1 {port} UPSTREAM\n")
    with Client(("127.0.0.1", port)) as client:
        assert client.echo(b"x") == b"x"
        daemon.conf.write_text("127.0.0.1 nonsense\n")
        done = upgrade(tmp_path, environ)
        assert done.returncode == 78
        assert "oinetd.conf:1:" in done.stderr
        assert "the running process goes on" in done.stderr
        dry = upgrade(tmp_path, environ, "--dry-run")
        assert dry.returncode == 78
        assert client.echo(b"y") == b"y"
        assert pid_of(tmp_path, environ) == daemon.pid
    with Client(("127.0.0.1", port)) as client:
        assert client.echo(b"z") == b"z"


def test_a_dry_run_says_what_would_move(start: Callable[..., Oinetd], tmp_path: Path, environ: dict[str, str]) -> None:
    port, other = free_port(), free_port()
    daemon = start(f"127.0.0.1 {port} UPSTREAM\n127.0.0.1 {other} UPSTREAM [sni=a.example, engine=python]\n")
    with Client(("127.0.0.1", port)) as one, Client(("127.0.0.1", other)):
        assert one.echo(b"x") == b"x"
        until(lambda: rules_of(tmp_path, environ)[1]["live"] == 1, "the client that has not said its server name")
        done = upgrade(tmp_path, environ, "--dry-run")
        assert (done.returncode, done.stdout) == (0, "1 session would move, 1 would stay\n")
        assert "listening on" not in daemon.said.partition("admin: upgrade")[2]
        assert one.echo(b"y") == b"y"
        assert pid_of(tmp_path, environ) == daemon.pid


def test_events_go_on_with_the_new_process(
    start: Callable[..., Oinetd], tmp_path: Path, environ: dict[str, str]
) -> None:
    port = free_port()
    start(f"127.0.0.1 {port} UPSTREAM [name=web]\n")
    lines: list[str] = []
    merged = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen([*COMMAND, "events"], env=surroundings(**environ), text=True, **merged) as follower:  # type: ignore[call-overload]
        reader = threading.Thread(target=lambda: lines.extend(iter(follower.stdout.readline, "")))
        reader.start()

        def told(word: str) -> bool:
            with Client(("127.0.0.1", port)) as client:
                client.echo(b"x")
            return any(word in line for line in lines)

        try:
            until(lambda: told("opened"), "the follower")
            assert upgrade(tmp_path, environ).returncode == 0
            until(lambda: told("has taken over; what happened in between is not here"), "the word of the new process")
            lines.clear()
            until(lambda: told("closed"), "events of the new process")
        finally:
            follower.kill()
            reader.join()


def test_sessions_that_cannot_move_stay_until_they_end(
    start: Callable[..., Oinetd], tmp_path: Path, environ: dict[str, str]
) -> None:
    """A client that has not said which server it wants is served by the old process."""
    port, other = free_port(), free_port()
    daemon = start(
        f"connect-timeout 0.1s\n127.0.0.1 {port} UPSTREAM\n127.0.0.1 {other} UPSTREAM [sni=a.example, engine=python]\n"
    )
    hello = real_hello("a.example")
    with Client(("127.0.0.1", other)) as stays:
        until(lambda: rules_of(tmp_path, environ)[1]["live"] == 1, "the client that has not said its server name")
        with Client(("127.0.0.1", port)) as moves:
            assert moves.echo(b"x") == b"x"
            done = upgrade(tmp_path, environ)
            assert "1 session moved, 1 stay with the old process: 1 not connected yet, or ending\n" in done.stdout
            assert moves.echo(b"moved") == b"moved"
        assert stays.echo(hello) == hello
        assert daemon.process.poll() is None
        with Client(("127.0.0.1", other)) as late:
            assert late.echo(hello) == hello
    assert daemon.wait() == 0


@pytest.mark.parametrize("lane", ["engine=python", "engine=native"])
def test_what_is_not_connected_yet_moves_when_it_is(
    start: Callable[..., Oinetd], tmp_path: Path, environ: dict[str, str], lane: str
) -> None:
    """The old process finishes that first, within connect-timeout."""
    port = free_port()
    daemon = start(f"127.0.0.1 {port} UPSTREAM [sni=a.example, {lane}]\n")
    hello = real_hello("a.example")
    with Client(("127.0.0.1", port)) as client:
        if lane == "engine=python":
            until(lambda: rules_of(tmp_path, environ)[0]["live"] == 1, "the client that has not said its server name")
        else:
            until(lambda: in_reactors(tmp_path, environ) == 1, "the client that has not said its server name")
        said: list[Any] = []
        asking = threading.Thread(target=lambda: said.append(upgrade(tmp_path, environ)))
        asking.start()
        daemon.wait_said(r"listening on[^\0]*admin: upgrade[^\0]*listening on")
        assert client.echo(hello) == hello
        asking.join()
        assert "1 session moved, 0 stay" in said[0].stdout, said
        assert client.echo(b"x") == b"x"


def in_reactors(folder: Path, environ: dict[str, str]) -> int:
    """Connections of the reactors, also those without an upstream yet."""
    status = json.loads(ask(folder, environ, "status", "--json").stdout)
    return sum(int(each["sessions"]) for each in status["reactors"])


def test_a_session_without_a_server_in_the_new_process_stays(
    start: Callable[..., Oinetd], tmp_path: Path, environ: dict[str, str]
) -> None:
    port, other = free_port(), free_port()
    daemon = start(f"127.0.0.1 {port} UPSTREAM\n127.0.0.1 {other} UPSTREAM\n")
    with Client(("127.0.0.1", port)) as client:
        assert client.echo(b"x") == b"x"
        daemon.conf.write_text(daemon.conf.read_text().partition("\n")[2])
        done = upgrade(tmp_path, environ)
        assert "0 sessions moved, 1 stay with the old process: 1 without a rule" in done.stdout, done
        assert client.echo(b"y") == b"y"
    assert daemon.wait() == 0


def test_a_new_process_that_dies_takes_nothing_along(
    start: Callable[..., Oinetd], tmp_path: Path, environ: dict[str, str]
) -> None:
    """A program that is no oinetd: it ends, or says nothing that is understood."""
    port = free_port()
    daemon = start(f"127.0.0.1 {port} UPSTREAM\n")
    with Client(("127.0.0.1", port)) as client:
        assert client.echo(b"x") == b"x"
        for program in ("/bin/true", "/usr/bin/env"):
            done = upgrade(tmp_path, environ, "--to", program)
            assert done.returncode == 75, done
            assert f"{program} ended before it was ready" in done.stderr
            assert client.echo(b"y") == b"y"
        assert pid_of(tmp_path, environ) == daemon.pid
        mine = tmp_path / "program"
        mine.write_text("#!/bin/sh\n")
        mine.chmod(0o777)
        refused = upgrade(tmp_path, environ, "--to", str(mine))
        assert (refused.returncode, "other users can write" in refused.stderr) == (77, True)
        assert upgrade(tmp_path, environ, "--to", "bin/true").returncode == 77


def test_udp_and_unix_listeners_are_taken_over(
    start: Callable[..., Oinetd], tmp_path: Path, environ: dict[str, str]
) -> None:
    path, port = tmp_path / "sock", free_port()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as echo:
        echo.bind(("127.0.0.1", 0))
        echo.settimeout(20)
        start(f"unix:{path} UPSTREAM\n127.0.0.1 {port}/udp 127.0.0.1 {echo.getsockname()[1]}/udp\n")
        with socket.socket(socket.AF_UNIX) as local, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            local.connect(str(path))
            local.sendall(b"x")
            assert local.recv(1) == b"x"
            client.connect(("127.0.0.1", port))
            client.settimeout(20)
            for _ in range(2):
                client.send(b"question")
                data, sender = echo.recvfrom(100)
                echo.sendto(data.upper(), sender)
                assert client.recv(100) == b"QUESTION"
                done = upgrade(tmp_path, environ)
                assert done.returncode == 0, done.stderr
                local.sendall(b"y")
                assert local.recv(1) == b"y"
            with socket.socket(socket.AF_UNIX) as late:
                late.connect(str(path))
                late.sendall(b"z")
                assert late.recv(1) == b"z"


def test_the_new_process_reads_the_file_as_it_is_now(
    start: Callable[..., Oinetd], tmp_path: Path, environ: dict[str, str]
) -> None:
    port, other = free_port(), free_port()
    daemon = start(f"127.0.0.1 {port} UPSTREAM\n")
    daemon.conf.write_text(daemon.conf.read_text().replace(str(port), str(other)))
    done = upgrade(tmp_path, environ)
    assert done.returncode == 0
    with Client(("127.0.0.1", other)) as client:
        assert client.echo(b"x") == b"x"
    assert daemon.wait() == 0


def test_a_listener_that_was_taken_over_is_closed_when_its_rule_goes(
    start: Callable[..., Oinetd], tmp_path: Path, environ: dict[str, str]
) -> None:
    port, other, gone = free_port(), free_port(), free_port()
    text = f"127.0.0.1 {port} UPSTREAM\n127.0.0.1 {other} UPSTREAM\n127.0.0.1 {other}/udp 127.0.0.1 9/udp\n"
    daemon = start(f"{text}127.0.0.1 {gone} UPSTREAM\n")
    lines = daemon.conf.read_text().splitlines(keepends=True)
    daemon.conf.write_text("".join(lines[:-1]))
    assert upgrade(tmp_path, environ).returncode == 0
    assert daemon.wait() == 0
    assert refused(gone)
    assert not refused(other)
    daemon.conf.write_text("".join(lines[:-3]))
    assert ask(tmp_path, environ, "reload").returncode == 0
    until(lambda: refused(other), "the end of the listener")
    with socket.socket(type=socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", other))
    with Client(("127.0.0.1", port)) as client:
        assert client.echo(b"x") == b"x"


def refused(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["-f", "-c", "o.conf", "-p", "p"], ["-f", "-c", "/etc/o.conf", "-p", "/etc/p"]),
        (["--conf-file", "o.conf", "--pidfile=p", "-f"], ["-c", "/etc/o.conf", "-p", "/etc/p", "-f"]),
        (["-co.conf", "-pp", "-c", "o.conf"], ["-c", "/etc/o.conf", "-p", "/etc/p"]),
        (["-fc", "o.conf"], ["-fc", "o.conf", "-c", "/etc/o.conf", "-p", "/etc/p"]),
        (["-f"], ["-f", "-c", "/etc/o.conf", "-p", "/etc/p"]),
    ],
)
def test_the_command_of_the_new_process_has_each_path_once_and_absolute(words: list[str], wanted: list[str]) -> None:
    options = Options(conf_file="o.conf", pid_file="p")
    command = new_command(options, words, "/etc")
    assert command == [sys.executable, "-I", "-m", "oinetd", *wanted]
    assert new_command(options, command[4:], "/etc") == command


def test_the_command_of_another_program_has_the_same_words() -> None:
    assert new_command(Options(conf_file=""), ["forward", "80", "x:80"], "/", "/opt/oinetd") == [
        "/opt/oinetd", "forward", "80", "x:80",
    ]  # fmt: skip


def test_what_an_operator_said_of_servers_is_kept(
    start: Callable[..., Oinetd], tmp_path: Path, environ: dict[str, str], echo: EchoServer
) -> None:
    port, dead = free_port(), free_port()
    start(f"upstream web {echo.host} {echo.port}\nupstream web {echo.host} {dead}\n127.0.0.1 {port} @web\n")
    assert ask(tmp_path, environ, "drain", f"web/{echo.host}:{dead}").returncode == 0
    assert ask(tmp_path, environ, "weight", f"web/{echo.host}:{echo.port}", "7").returncode == 0
    with Client(("127.0.0.1", port)) as client:
        assert client.echo(b"x") == b"x"
        done = upgrade(tmp_path, environ)
        assert (done.returncode, "1 session moved" in done.stdout) == (0, True), done
        assert client.echo(b"y") == b"y"
        servers = json.loads(ask(tmp_path, environ, "servers", "--json").stdout)
        found = {each["name"]: each for each in servers["groups"][0]["servers"]}
    assert found[f"{echo.host}:{dead}"]["state"] == "drain"
    assert (found[f"{echo.host}:{echo.port}"]["weight"], found[f"{echo.host}:{echo.port}"]["live"]) == (7, 1)


def test_the_file_of_a_unix_socket_goes_with_the_last_process(
    start: Callable[..., Oinetd], tmp_path: Path, environ: dict[str, str]
) -> None:
    path = tmp_path / "sock"
    start(f"unix:{path} UPSTREAM\n")
    assert upgrade(tmp_path, environ, "--dry-run").returncode == 0
    assert upgrade(tmp_path, environ).returncode == 0
    assert path.exists()
    os.kill(pid_of(tmp_path, environ), signal.SIGTERM)
    until(lambda: not path.exists(), "the end of the socket's file")
    until(lambda: not list((tmp_path / "run").iterdir()), "the end of the admin socket's file")


def test_a_stop_meanwhile_is_for_the_new_process(
    start: Callable[..., Oinetd], tmp_path: Path, environ: dict[str, str]
) -> None:
    """Whenever it comes, in the end nobody serves and nothing is left."""
    port = free_port()
    daemon = start(f"127.0.0.1 {port} UPSTREAM\n")
    asking = threading.Thread(target=upgrade, args=(tmp_path, environ))
    asking.start()
    daemon.wait_said(r"admin: upgrade")
    daemon.signal(signal.SIGTERM)
    asking.join()
    assert daemon.wait() == 0
    until(lambda: not group_lives(daemon.pid), "the end of every process")
    assert not list((tmp_path / "run").iterdir())
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
