"""The sessions in docs/operations.md: their commands, run in the situation that they are about, print what is shown."""

from __future__ import annotations

import contextlib
import re
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.process import Client, EchoServer, Oinetd, call, own_address, until

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()

RULES = {
    "It does not accept": "{0} 8080 {1} {2} [name=web]\nallow 10.*\n",
    "It is slow": "{0} 8080 {1} {2} [name=web]\n",
    "A server is down": "{0} 8080 {0} 9000 [name=web]\n",
    "Too many connections": "{0} 8080 {1} {2} [name=web, max-connections=2]\n",
}


def session(title: str) -> list[tuple[str, str]]:
    """The commands of a section and what they print."""
    block = re.search(rf"^### {title}\n.*?^```console\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert block is not None, title
    parts = re.split(r"^\$ oinetd (.*)\n", block[1], flags=re.MULTILINE)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def plain(text: str, address: str, port: int) -> str:
    """A text without what differs each time: numbers, and how wide columns are."""
    text = text.replace(f":{port}", ":9000").replace(f" {port}", " 9000").replace(address, "127.0.0.1")
    text = re.sub(r"/\S*/oinetd.conf", "/etc/oinetd.conf", text)
    text = re.sub(r", waiting for a core [0-9.]+%", "", text)  # said of a machine that is busy
    text = re.sub(r"\d+(\.\d+)?(%| ?[kMG]?B\b|[smhd]\d*[smh]?\b)?", "N", text)
    return re.sub(r"[ ]+", " ", text).strip()


@contextlib.contextmanager
def situation(title: str, folder: Path, address: str, upstream: EchoServer) -> Iterator[Oinetd]:
    """oinetd in the situation that a section is about."""
    text = RULES[title].format(address, upstream.host, upstream.port)
    daemon = Oinetd(folder, text, environ={"RUNTIME_DIRECTORY": str(folder / "run")}).ready()
    clients: list[socket.socket] = []
    try:
        if title == "A server is down":
            for _ in range(3):
                with socket.create_connection((address, 8080)) as client, contextlib.suppress(ConnectionResetError):
                    client.recv(1)
            until(lambda: " 3 failed" in call(folder, "status", RUNTIME_DIRECTORY=str(folder / "run")).stdout, "them")
        elif title != "It does not accept":
            for number in range(2):
                client = Client((address, 8080))
                client.echo(b"x" * 1000 * (number + 1))
                clients.append(client.sock)
        if title == "Too many connections":
            clients.append(socket.create_connection((address, 8080)))
            until(lambda: "full (2 of 2)" in daemon.said, "the limit")
        yield daemon
    finally:
        for sock in clients:
            sock.close()
        daemon.stop()
        daemon.close()


@pytest.mark.parametrize("title", RULES)
def test_a_session_is_real(title: str, tmp_path: Path) -> None:
    upstream, address = EchoServer(), own_address()
    try:
        with situation(title, tmp_path, address, upstream):
            for command, shown in session(title):
                words = [word.replace("127.0.0.1", address) for word in shlex.split(command)]
                done = call(tmp_path, *words, RUNTIME_DIRECTORY=str(tmp_path / "run"))
                printed = done.stdout + done.stderr
                assert plain(printed, address, upstream.port) == plain(shown, "127.0.0.1", 9000), (
                    f"{command}\n{printed}"
                )
    finally:
        upstream.close()
