"""`oinetd demo`: what it prints can be done, and does what it says."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.daemon.process import PATIENCE_S, Client, call, surroundings, text_of, until


class Demo:
    """The demo as a process."""

    def __init__(self, folder: Path, *words: str) -> None:
        self._out = folder / "demo"
        with self._out.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "oinetd", "demo", *words],
                env=surroundings(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def wait_said(self, pattern: str) -> re.Match[str]:
        until(lambda: re.search(pattern, text_of(self._out)) or self.process.poll() is not None, pattern)
        match = re.search(pattern, text_of(self._out))
        assert match is not None, text_of(self._out)
        return match

    @property
    def address(self) -> tuple[str, int]:
        match = self.wait_said(r"curl http://([\d.]+):(\d+)/")
        return match[1], int(match[2])

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE_S)


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Callable[..., Demo]]:
    with ExitStack() as stack:

        def start(*words: str) -> Demo:
            one = Demo(tmp_path, *words)
            stack.callback(one.close)
            return one

        yield start


def test_a_page_and_a_line_for_each_connection(demo: Callable[..., Demo]) -> None:
    one = demo()
    host, port = one.address
    with urllib.request.urlopen(f"http://{host}:{port}/some/where") as answer:
        page = answer.read().decode()
        assert int(answer.headers["Content-Length"]) == len(page)
    assert "It works." in page
    assert f"Your client connected to oinetd on {host}:{port}." in page
    assert "GET /some/where HTTP/1.1" in page
    one.wait_said(r"#1 opened by 127\.0\.0\.1 port \d+\n")
    one.wait_said(r"#1 closed after \d+\.\d+ s \(\S+-closed\): \d+ bytes up, \d+ bytes down, \w+ engine\n")
    assert one.stop() == 0
    one.wait_said("Stopped.")


def test_keep_alive(demo: Callable[..., Demo]) -> None:
    one = demo("--port", "0")
    connection = HTTPConnection(*one.address, timeout=PATIENCE_S)
    for number in (1, 2, 3):
        connection.request("POST", "/", body=bytes(200_000))
        assert (
            f"number {number} on this connection, with a body of 200000 bytes"
            in connection.getresponse().read().decode()
        )
    connection.request("HEAD", "/")
    answer = connection.getresponse()
    assert answer.read() == b""
    connection.close()
    assert one.stop() == 0


def test_everything_else_comes_back(demo: Callable[..., Demo]) -> None:
    one = demo("--port", "0")
    for said in (b"hello", b"GE", b"GETTING nowhere", b"\x16\x03\x01", bytes(100_000)):
        with Client(one.address) as client:
            if said == b"GE":  # might become a request until it does not
                client.sock.sendall(said)
                client.sock.shutdown(socket.SHUT_WR)
                assert client.read(3) == said
            else:
                assert client.echo(said) == said
    assert one.stop() == 0


def test_a_request_byte_by_byte_and_typed_by_hand(demo: Callable[..., Demo]) -> None:
    one = demo("--port", "0")
    with Client(one.address) as client:
        for byte in b"GET /slow HTTP/1.0\n\n":
            client.sock.sendall(bytes((byte,)))
        answer = b""
        while piece := client.sock.recv(65536):
            answer += piece
    assert b"Connection: close" in answer
    assert b"GET /slow HTTP/1.0" in answer
    assert one.stop() == 0


def test_it_ends_with_connections_open(demo: Callable[..., Demo]) -> None:
    one = demo("--port", "0")
    with Client(one.address) as client:
        client.echo(b"hello")
        assert one.stop() == 0
        assert not client.ended()
    one.wait_said(r"#1 closed after .* \(aborted\): 5 bytes up, 5 bytes down")


def test_the_usual_port_taken(demo: Callable[..., Demo]) -> None:
    with ExitStack() as stack:
        with suppress(OSError):  # where somebody else has it, it is taken as well
            stack.enter_context(socket.create_server(("127.0.0.1", 8080)))
        one = demo()
        host, port = one.address
        assert port != 8080
        one.wait_said(r"^Port 8080 is in use .*\n")
        with Client((host, port)) as client:
            assert client.echo(b"hello") == b"hello"
        assert one.stop() == 0


def test_a_port_that_was_asked_for_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        answer = call(tmp_path, "demo", "--port", str(taken.getsockname()[1]))
    assert answer.returncode == 71
    assert answer.stderr.startswith("oinetd demo: cannot listen on 127.0.0.1:")
