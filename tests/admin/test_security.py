"""Who may ask what, and what a client can do to the admin interface."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from oinetd import ConfigError, OinetdError, parse_config
from oinetd.admin import listener as listener_module
from oinetd.admin.http import BODY_BYTES_MAX, HEADER_BYTES_MAX, HttpConnection
from oinetd.admin.message import Peer, Request, Response
from oinetd.admin.place import InUse, bind_socket
from oinetd.admin.policy import read_token
from oinetd.admin.server import AdminServer
from oinetd.observe.text import inert
from tests.admin.echo import echo_server
from tests.admin.rig import Admin, administered, parsed
from tests.forwarding import bound, echoes
from tests.peers import until

RULE = "127.0.0.1 0 127.0.0.1 9\n"
TOKEN = "0123456789abcdef0123"


async def shut(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


@contextlib.asynccontextmanager
async def over_tcp(folder: Path, more: str = "", *, token: bool = False) -> AsyncIterator[Admin]:
    if token:
        file = folder / "token"
        file.write_text(TOKEN + "\n")
        file.chmod(0o600)
        more += f"admin-token-file {file}\n"
    async with administered(folder, f"{RULE}admin 127.0.0.1 0\n{more}") as admin:
        yield admin


# The unix socket


async def test_the_socket_never_has_wider_rights_than_its_own(tmp_path: Path) -> None:
    place = tmp_path / "a.sock"
    before = os.umask(0)
    try:
        seen: list[int] = []
        chmod = os.chmod

        def watched(path: object, mode: int, **more: object) -> None:
            seen.append(place.stat().st_mode & 0o777)
            chmod(path, mode, **more)  # type: ignore[arg-type]

        os.chmod = watched  # type: ignore[assignment]
        try:
            for mode in (0o600, 0o660, 0o400):
                bind_socket(str(place), mode, -1, -1, make_folder=False).close()
                assert place.stat().st_mode & 0o777 == mode
                assert seen.pop() & ~mode == 0
        finally:
            os.chmod = chmod
    finally:
        os.umask(before)


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770])
def test_a_directory_that_others_may_write_to_is_refused(mode: int, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    folder.chmod(mode)
    server = AdminServer("x", {"RUNTIME_DIRECTORY": ""})
    with pytest.raises(ConfigError, match="other users can write to the directory"):
        server.open(parse_config(f"admin unix:{folder}/x.sock\n{RULE}").admin)
    assert list(folder.iterdir()) == []


def test_without_a_place_the_default_socket_is_done_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    folder.chmod(0o777)
    server = AdminServer("x", {"RUNTIME_DIRECTORY": str(folder)})
    with caplog.at_level(logging.WARNING, "oinetd"):
        server.open(parse_config(RULE).admin)
        server.shut()
        server.open(parse_config(RULE).admin)
    assert server.paths == []
    assert len(caplog.records) == 1
    assert "no admin socket" in caplog.text


def test_another_file_of_the_name_stays(tmp_path: Path) -> None:
    (tmp_path / "x.sock").write_text("mine")
    server = AdminServer("x", {})
    with pytest.raises(ConfigError, match="another file of this name"):
        server.open(parse_config(f"admin unix:{tmp_path}/x.sock\n{RULE}").admin)
    assert (tmp_path / "x.sock").read_text() == "mine"


async def test_a_second_instance_names_the_first_and_a_dead_one_is_replaced(tmp_path: Path) -> None:
    async with administered(tmp_path, RULE) as admin:
        with pytest.raises(InUse, match=rf"another oinetd \(pid {os.getpid()}\).*-n NAME"):
            await asyncio.to_thread(bind_socket, admin.path, 0o600, -1, -1, make_folder=False)
        admin.instance.state = "draining"
        successor = await asyncio.to_thread(bind_socket, admin.path, 0o600, -1, -1, make_folder=False)
    assert os.listdir(tmp_path / "run") == ["test.sock"]  # it is the successor's now
    successor.close()
    bind_socket(admin.path, 0o600, -1, -1, make_folder=False).close()  # what a crash leaves


async def test_changes_over_unix_are_for_some_users(tmp_path: Path) -> None:
    async with administered(tmp_path, RULE, users=frozenset({12345})) as admin:
        assert (await admin.json("/v1/reload", "POST"))[0] == 403
        assert (await admin.json("/v1/status"))[0] == 200
        admin.instance.users = frozenset({os.geteuid()})
        assert (await admin.json("/v1/reload", "POST"))[0] == 200


async def test_a_change_is_logged_with_who_did_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with administered(tmp_path, RULE) as admin:
        with caplog.at_level(logging.INFO, "oinetd"):
            await admin.json("/v1/reload", "POST")
            await admin.json("/v1/sessions/kill?rule=%0A%1b%5B31m", "POST")
    assert f"admin: reload by uid {os.getuid()}, pid {os.getpid()}" in caplog.text
    assert "\x1b" not in caplog.text
    assert "rule=\\n\\u001b[31m" in caplog.text


# TCP


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "127.0.0.1:9080"}, 200),
        ({"host": "[::1]:9080"}, 403),
        ({"host": "oinetd.example.org"}, 200),
        ({"host": "evil.example.org"}, 403),
        ({"host": ""}, 400),
        ({"origin": "http://evil.example.org"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://localhost"}, 200),
    ],
)
async def test_host_and_origin_over_tcp(headers: dict[str, str], status: int, tmp_path: Path) -> None:
    async with over_tcp(tmp_path, "admin-host oinetd.example.org\n") as admin:
        got, answered, _ = await admin.ask("GET", "/v1/status", tcp=True, **headers)
        assert got == status
        assert not any(name.startswith("access-control") for name in answered)


async def test_nothing_is_changed_over_tcp_without_a_token(tmp_path: Path) -> None:
    async with over_tcp(tmp_path) as admin:
        assert (await admin.json("/v1/reload", "POST", tcp=True))[0] == 403


async def test_with_a_token_every_request_over_tcp_needs_it(tmp_path: Path) -> None:
    async with over_tcp(tmp_path, token=True) as admin:
        assert (await admin.json("/v1/status", tcp=True))[0] == 401
        assert (await admin.json("/v1/status", tcp=True, authorization="Bearer wrong"))[0] == 401
        assert (await admin.json("/v1/health", tcp=True))[0] == 200
        right = f"Bearer {TOKEN}"
        assert (await admin.json("/v1/status", tcp=True, authorization=right))[0] == 200
        assert (await admin.json("/v1/reload", "POST", tcp=True, authorization=right))[0] == 200
        assert (await admin.json("/v1/status"))[0] == 200  # not over unix


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
async def test_a_form_of_a_web_page_changes_nothing(kind: str, tmp_path: Path) -> None:
    async with over_tcp(tmp_path, token=True) as admin:
        headers = {"content_type": kind, "authorization": f"Bearer {TOKEN}"}
        assert (await admin.json("/v1/reload", "POST", tcp=True, **headers))[0] == 415
        assert (await admin.json("/v1/reload", "POST", content_type=kind))[0] == 415


def test_admin_where_others_can_reach_it_needs_a_token() -> None:
    with pytest.raises(ConfigError, match="there is no token") as caught:
        parse_config(f"{RULE}admin 0.0.0.0 9080\n")
    assert (caught.value.line, caught.value.column) == (2, 7)
    assert "admin-token-file" in caught.value.hint
    parse_config(f"{RULE}admin 0.0.0.0 9080\nadmin-token-file /etc/t\nmetrics 0.0.0.0 9469\n")
    parse_config(f"{RULE}metrics 0.0.0.0 9469\n")


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_a_token_that_others_can_read_is_refused(mode: int, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    file.chmod(mode)
    with pytest.raises(OinetdError, match="other users can read it"):
        read_token(str(file))
    file.chmod(0o600)
    assert read_token(str(file)) == TOKEN.encode()
    file.write_text("short")
    with pytest.raises(OinetdError, match="contains no token"):
        read_token(str(file))


# What a client can do


async def test_what_is_too_large_or_no_http_is_refused(tmp_path: Path) -> None:
    async with administered(tmp_path, RULE) as admin:
        head = b"POST /v1/reload HTTP/1.1\r\nhost: localhost\r\n"
        for sent, status in (
            (b"GET /v1/status HTTP/1.1\r\nhost: localhost\r\nx: " + b"x" * (HEADER_BYTES_MAX + 1) + b"\r\n\r\n", 431),
            (head + b"content-length: %d\r\n\r\n" % (BODY_BYTES_MAX + 1), 413),
            (head + b"content-length: 999999999999\r\n\r\n", 413),
            (head + b"transfer-encoding: chunked\r\n\r\n" + (b"8000\r\n" + b"x" * 0x8000 + b"\r\n") * 3, 413),
            (b"\x16\x03\x01 hello\r\n\r\n", 400),
            (b"BREW /v1/status HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", 405),
            (b"GET /nothing HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", 404),
            (b"GET /../../etc/passwd HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", 404),
        ):  # fmt: skip
            assert parsed(await admin.raw(sent, end=True))[0] == status, sent[:60]
        assert (await admin.json("/v1/health"))[0] == 200


async def test_requests_in_one_piece_and_byte_by_byte_are_answered_in_order(tmp_path: Path) -> None:
    async with administered(tmp_path, RULE) as admin:
        one = b"GET /v1/health HTTP/1.1\r\nhost: localhost\r\n\r\n"
        last = b"GET /v1/rules HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        together = await admin.raw(one * 20 + last)
        assert together.count(b"HTTP/1.1 200 OK") == 21
        assert together.rstrip().endswith(b"}")
        reader, writer = await admin.connect()
        for at in range(len(last)):
            writer.write(last[at : at + 1])
            await writer.drain()
        assert parsed(await reader.read())[0] == 200
        writer.close()
        await writer.wait_closed()


async def test_silent_clients_do_not_keep_others_out(tmp_path: Path) -> None:
    async with echo_server() as (host, port), administered(tmp_path, f"127.0.0.1 0 {host} {port}\n") as admin:
        silent = []
        for number in range(200):
            sock = socket.socket(socket.AF_UNIX)
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                sock.connect(admin.path)
            with contextlib.suppress(OSError):
                sock.send(
                    b"GET /v1/sta" if number % 2 else b"POST /v1/reload HTTP/1.1\r\ncontent-length: 60000\r\n\r\nxx"
                )
            silent.append(sock)
            if number % 20 == 0:
                assert (await admin.json("/v1/health"))[0] == 200
                assert await echoes(bound(admin.forwarder))
        served = admin.server._open[0].listener
        assert served is not None
        assert len(served._served) <= listener_module.CONNECTIONS_MAX
        for sock in silent:
            sock.close()


async def test_a_source_has_only_some_connections_over_tcp(tmp_path: Path) -> None:
    async with over_tcp(tmp_path) as admin:
        streams = [await admin.connect(tcp=True) for _ in range(listener_module.CONNECTIONS_PER_SOURCE_MAX)]
        assert (await admin.json("/v1/health", tcp=True))[0] == 200  # one that was silent had to go
        assert await streams[0][0].read() == b""
        for _, writer in streams:
            await shut(writer)


async def test_a_client_has_ten_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oinetd.admin.http.REQUEST_S", 0.05)
    async with administered(tmp_path, RULE) as admin:
        assert parsed(await admin.raw(b"GET /v1/status HT"))[0] == 408
        assert await admin.raw(b"") == b""
        got = await admin.raw(b"POST /v1/reload HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n")
        assert parsed(got)[0] == 408


async def test_a_client_that_does_not_read_its_answers_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oinetd.admin.http.REQUEST_S", 0.2)
    monkeypatch.setattr("oinetd.admin.http.LINGER_S", 0.05)
    async with administered(tmp_path, RULE) as admin:
        served = admin.server._open[0].listener
        assert served is not None
        _, writer = await admin.connect()
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"GET /v1/openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n" * 400)
        await until(lambda: served.busy)
        assert (await admin.json("/v1/health"))[0] == 200
        await until(lambda: not served._served)
        writer.transport.abort()


async def test_only_some_clients_get_events(tmp_path: Path) -> None:
    async with administered(tmp_path, RULE) as admin:
        listening = []
        for _ in range(8):
            reader, writer = await admin.connect()
            writer.write(b"GET /v1/events HTTP/1.1\r\nhost: localhost\r\n\r\n")
            await reader.readuntil(b": events of oinetd")
            listening.append(writer)
        assert (await admin.json("/v1/events"))[0] == 503
        assert (await admin.json("/v1/status"))[0] == 200
        for writer in listening:
            await shut(writer)


def test_names_from_elsewhere_have_no_effect_on_a_terminal() -> None:
    assert inert("a\x1b[31m\u202eb\nc<é>") == "a\\x1b[31m\\u202eb\\nc<é>"


STRANGER = """\
import os, socket, sys
os.setresuid(65534, 65534, 65534)
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen()
print(flush=True)
server.accept()[0].recv(1)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_root_asks_no_server_of_a_stranger() -> None:
    """`oinetd upgrade` of a package that is installed believes nobody who put a socket in oinetd's place."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:  # that of pytest is closed to others
        os.chmod(folder, 0o777)
        path = f"{folder}/oinetd.sock"
        server = stack.enter_context(subprocess.Popen([sys.executable, "-c", STRANGER, path], stdout=subprocess.PIPE))
        assert server.stdout is not None
        server.stdout.readline()
        said = subprocess.run(
            [sys.executable, "-m", "oinetd", "upgrade", "--admin", path],
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert server.wait(30) == 0  # it got no byte
    assert said.returncode != 0
    assert "its server runs as user 65534" in said.stderr


async def test_an_answer_to_a_client_that_is_cut_off_meanwhile_ends_without_a_fault() -> None:
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    connection: HttpConnection

    async def parts() -> AsyncIterator[bytes]:
        yield b"one\n"
        connection.abort()
        for _ in range(3):  # it is closed for good in a later turn of the loop
            await asyncio.sleep(0)
        yield b"two\n"

    async def answer(request: Request) -> Response:
        return Response(parts(), endless=True)

    connection = HttpConnection(reader, writer, Peer(), answer)
    with theirs:
        theirs.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await connection.run()
