"""An upgrade in which a process is killed, and many upgrades under load."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from oinetd.lanes.native.plane import available
from tests.daemon.process import ROOT, Client, Oinetd, text_of, until
from tests.daemon.upgrading import group_lives, upgrade
from tests.peers import free_port

pytestmark = pytest.mark.skipif(bool(available()), reason=available())

Start = Callable[..., Oinetd]

UPGRADES = int(os.environ.get("OINETD_UPGRADES", "3"))
"""How many upgrades follow each other under load; 100 take two minutes."""

DIES = """
import os, signal, sys
from oinetd.upgrade import channel

def dies(function, of):
    def call(self, *arguments):
        result = function(self, *arguments)
        if of(result, *arguments).kind == {kind!r}:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call

channel.Channel.send = dies(channel.Channel.send, lambda result, frame: frame)
channel.Channel.receive = dies(channel.Channel.receive, lambda frame: frame)
from oinetd.process.cli import main
sys.exit(main())
"""
"""oinetd, killed as soon as it has sent or received a frame of this kind."""


def program(folder: Path, kind: str) -> str:
    path = folder / "dies"
    path.write_text(f"#!{sys.executable}\n{DIES.format(kind=kind)}")
    path.chmod(0o755)
    return str(path)


def still_works(client: Client) -> bool:
    try:
        return client.echo(b"still here?") == b"still here?"
    except OSError:
        return False


@pytest.mark.parametrize("kind", ["hello", "ready", "go", "sessions", "taken", "finish", "done"])
def test_the_new_process_is_killed(start: Start, tmp_path: Path, environ: dict[str, str], kind: str) -> None:
    """What it has not acknowledged goes on in the old one, which serves as before."""
    port, udp = free_port(), free_port()
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking,
    ):
        server.bind(("127.0.0.1", 0))
        server.settimeout(20)
        daemon = start(f"127.0.0.1 {port} UPSTREAM\n127.0.0.1 {udp}/udp 127.0.0.1 {server.getsockname()[1]}/udp\n")
        clients = [Client(("127.0.0.1", port)) for _ in range(3)]
        assert all(map(still_works, clients))
        asking.sendto(b"question", ("127.0.0.1", udp))
        _, sender = server.recvfrom(100)
        done = upgrade(tmp_path, environ, "--to", program(tmp_path, kind))
        over = kind == "done"  # the old one has it on paper that everything is the new one's
        assert done.returncode == (0 if over else 75), done
        acknowledged = kind in ("taken", "finish", "done")
        assert [still_works(client) for client in clients] == [not acknowledged] * 3
        if not over:
            with Client(("127.0.0.1", port)) as late:
                assert late.echo(b"late") == b"late"
            asking.sendto(b"again", ("127.0.0.1", udp))
            data, other = server.recvfrom(100)
            assert (data, other == sender) == (b"again", kind != "finish")
            assert daemon.process.poll() is None
            assert upgrade(tmp_path, environ).returncode == 0
        for client in clients:
            client.close()


@pytest.mark.parametrize("kind", ["listeners", "ready", "go", "sessions", "taken", "finish", "done"])
def test_the_old_process_is_killed(start: Start, tmp_path: Path, environ: dict[str, str], kind: str) -> None:
    """The new one serves with what it has."""
    port = free_port()
    daemon = start(f"127.0.0.1 {port} UPSTREAM\n", command=(sys.executable, "-c", DIES.format(kind=kind)))
    clients = [Client(("127.0.0.1", port)) for _ in range(3)]
    assert all(map(still_works, clients))
    upgrade(tmp_path, environ)
    assert daemon.wait() == -signal.SIGKILL
    try:
        # Clients that come meanwhile wait in the accept queue, which the new process has.
        with Client(("127.0.0.1", port)) as late:
            assert late.echo(b"late") == b"late"
        lives = [still_works(client) for client in clients]
        if kind in ("listeners", "ready", "go"):
            assert lives == [False] * 3
        elif kind in ("finish", "done"):
            assert lives == [True] * 3
        else:
            assert len(set(lives)) == 1  # they were one frame, which was acknowledged or not
    finally:
        for client in clients:
            client.close()
        os.killpg(daemon.pid, signal.SIGTERM)
        until(lambda: not group_lives(daemon.pid), "the end of the new process")


def test_many_upgrades_under_load(start: Start, tmp_path: Path, environ: dict[str, str]) -> None:
    """No connection is refused, reset or silent, no byte is another one, no UDP client gets another port."""
    port, far, log = free_port(), free_port(), tmp_path / "log"
    words = [sys.executable, "-m", "bench.continuity"]
    server = subprocess.Popen([*words, "serve", "127.0.0.1", str(far)], cwd=ROOT)
    try:
        until(lambda: reachable(far), "the server")
        start(
            f"logfile {log}\nlogformat json\n127.0.0.1 {port} 127.0.0.1 {far}\n"
            f"127.0.0.1 {port}/udp 127.0.0.1 {far}/udp\n"
        )
        many = ["--idle", "200", "--half", "10", "--round-trips", "10", "--bulk", "3", "--datagrams", "4"]
        load = subprocess.Popen(
            [*words, "load", "127.0.0.1", str(port), "--rate", "100", "--half-s", "4", *many],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert load.stdout is not None
        assert load.stdout.readline() == "up\n"
        for _ in range(UPGRADES):
            done = upgrade(tmp_path, environ)
            assert done.returncode == 0, done
            assert re.search(r", [0-5] stay", done.stdout), done.stdout
        said, _ = load.communicate("\n", timeout=60)
        found = json.loads(said)
        assert not found["faults"]
        assert found["counts"].get("datagrams_lost", 0) == 0
        assert found["counts"]["new_ports"] == 0
    finally:
        server.kill()
        server.wait()
    lines = [json.loads(line) for line in text_of(log).splitlines()]
    ends = [line["id"] for line in lines if "ending" in line]
    assert len(ends) == len(set(ends)) >= found["counts"]["new"]


def reachable(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0
