"""The admin interface of a process that has no descriptor left, and under a crowd of clients."""

from __future__ import annotations

import contextlib
import json
import socket
from pathlib import Path

from oinetd.admin.client import Client as Asker
from tests.daemon.process import Client, EchoServer, Oinetd, call, through, until

LIMIT = 256


def test_status_and_reload_work_when_every_session_descriptor_is_used(tmp_path: Path) -> None:
    environ = {"RUNTIME_DIRECTORY": str(tmp_path / "run")}
    upstream = EchoServer()
    text = f"127.0.0.1 0 127.0.0.1 {upstream.port} [name=web]\n"
    command = through(f"resource.setrlimit(resource.RLIMIT_NOFILE, ({LIMIT}, {LIMIT}))")
    daemon = Oinetd(tmp_path, text, environ=environ, command=command).ready()
    clients: list[socket.socket] = []
    try:
        with Client(daemon.address) as first:
            assert first.echo(b"x") == b"x"
            clients += [socket.create_connection(daemon.address) for _ in range(LIMIT)]
            daemon.wait_said("full \\(")
            for _ in range(3):
                status = json.loads(call(tmp_path, "status", "--json", **environ).stdout)
                assert status["full"]
                assert call(tmp_path, "reload", **environ).stdout == "reloaded, 1 rule\n"
            found = json.loads(call(tmp_path, "sessions", "--json", **environ).stdout)
            assert found["total"] == len(found["sessions"]) > LIMIT // 4
            assert call(tmp_path, "kill", "--rule", "web", **environ).stdout.endswith("sessions ended\n")
            assert not first.ended()
    finally:
        for client in clients:
            client.close()
        daemon.stop()
        daemon.close()
        upstream.close()


def test_a_thousand_clients_of_the_admin_port_harm_nobody(tmp_path: Path) -> None:
    environ = {"RUNTIME_DIRECTORY": str(tmp_path / "run")}
    upstream = EchoServer()
    daemon = Oinetd(tmp_path, f"127.0.0.1 0 127.0.0.1 {upstream.port}\nadmin 127.0.0.1 0\n", environ=environ).ready()
    crowd: list[socket.socket] = []
    try:
        port = _admin_port(daemon, daemon.address[1])
        before = _memory_kib(daemon.pid)
        for number in range(1000):
            sock = socket.create_connection(("127.0.0.1", port))
            with contextlib.suppress(OSError):
                sock.sendall(
                    (b"GET /v1/status HTTP/1.1\r\nhost: localhost\r\nx: " + b"x" * 4000, b"\x00" * 100, b"")[number % 3]
                )
            crowd.append(sock)
            if (
                number % 32 == 0
            ):  # more often than the accept queue is full: a SYN that is dropped comes again after 1 s
                with Client(daemon.address) as client:
                    assert client.echo(b"hello") == b"hello"
                assert Asker(str(tmp_path / "run" / "oinetd.sock")).get("/v1/health").value["status"] == "ready"
        assert _memory_kib(daemon.pid) - before < 8192
        for sock in crowd:
            sock.close()
        until(lambda: _descriptors(daemon.pid) < 60, "the end of the crowd")
        assert daemon.stop() == 0
    finally:
        for sock in crowd:
            sock.close()
        daemon.close()
        upstream.close()


def _admin_port(daemon: Oinetd, other: int) -> int:
    from tests.daemon.process import listening

    (port,) = [port for _, port in listening(daemon.pid) if port != other]
    return port


def _memory_kib(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0])


def _descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
