"""A data plane under test, with peers on both sides of it that are plain blocking sockets.

The reactors run without Python, so a test can be an ordinary sequence of sends and receives.
"""

from __future__ import annotations

import itertools
import select
import socket
import struct
import time
from typing import Any

import pytest

_fastpath = pytest.importorskip("oinetd._fastpath")

PATIENCE_S = 20.0
"""How long a peer waits before the test has failed."""
RELAYED = 4


def tcp_pair(*, receive_bytes: int = 0, send_bytes: int = 0) -> tuple[socket.socket, socket.socket]:
    """A connected pair over loopback; small buffers, where asked for, belong to the first, the peer's end."""
    with socket.socket() as listener:
        if send_bytes or receive_bytes:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes or 65536)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        near = socket.socket()
        near.settimeout(PATIENCE_S)
        if receive_bytes:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        if send_bytes:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_bytes)
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        near.connect(listener.getsockname())
        far, _ = listener.accept()
    for option in ((socket.IPPROTO_TCP, socket.TCP_NODELAY), (socket.SOL_SOCKET, socket.SO_OOBINLINE)):
        far.setsockopt(*option, 1)
    far.setblocking(False)
    return near, far


def reset(sock: socket.socket) -> None:
    """Close so that the peer sees a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def read_all(sock: socket.socket) -> bytes:
    """Everything up to the end; a reset raises `ConnectionResetError`."""
    parts = []
    while part := sock.recv(1 << 18):
        parts.append(part)
    return b"".join(parts)


def read_to_reset(sock: socket.socket) -> bytes:
    """Everything up to a reset; fails where a FIN comes instead."""
    got = bytearray()
    try:
        while part := sock.recv(1 << 18):
            got += part
    except ConnectionResetError:
        return bytes(got)
    raise AssertionError(f"a FIN after {len(got)} bytes, where a reset was due")


def write_to_reset(sock: socket.socket) -> None:
    """Write until the peer's reset is told."""
    try:
        while True:
            sock.send(b"x" * 100)
    except (ConnectionResetError, BrokenPipeError):
        return


def read_exactly(sock: socket.socket, size: int) -> bytes:
    """So many bytes; less only at the end. (MSG_WAITALL does not wait on a socket with a timeout.)"""
    got = bytearray()
    while len(got) < size and (part := sock.recv(size - len(got))):
        got += part
    return bytes(got)


class Plane:
    """A running hub and its records."""

    def __init__(self, threads: int = 1, spin_us: int = 0, slots_max: int = 0, **settings: Any) -> None:
        self.budget = _fastpath.Budget()
        self.gate = _fastpath.Gate(0, 0, self.budget, 2)
        self.hub = _fastpath.Hub(self.gate, threads, spin_us, slots_max)
        self.settings = settings
        self.rows: list[tuple[Any, ...]] = []
        self._tokens = itertools.count(1)
        self._tags = itertools.count(1)
        self._sockets: list[socket.socket] = []

    def make_policy(self, gate: Any = None, **said: Any) -> Any:
        return _fastpath.Policy(next(self._tags), gate, **{**self.settings, **said})

    def wire(
        self, *, client: dict[str, int] | None = None, upstream: dict[str, int] | None = None, **said: Any
    ) -> tuple[socket.socket, socket.socket, int]:
        """A client and an upstream with a relay between them, and the token of its result."""
        near_client, far_client = tcp_pair(**client or {})
        near_upstream, far_upstream = tcp_pair(**upstream or {})
        token = next(self._tokens)
        self.hub.relay(far_client.detach(), far_upstream.detach(), self.make_policy(**said), token)
        self._sockets += [near_client, near_upstream]
        return near_client, near_upstream, token

    def listen(self, *targets: tuple[str, int], gate: Any = None, backlog: int = 128, **said: Any) -> Listening:
        sock = socket.create_server(("127.0.0.1", 0), backlog=backlog)
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        self._sockets.append(sock)
        gate = gate if gate is not None else _fastpath.Gate()
        index = self.hub.add_listener(sock.fileno(), self.make_policy(gate, addresses=targets, **said))
        return Listening(sock, index, gate)

    def connect(self, listening: Listening) -> socket.socket:
        sock = socket.create_connection(listening.sock.getsockname(), PATIENCE_S)
        self._sockets.append(sock)
        return sock

    def own(self, sock: socket.socket) -> socket.socket:
        """Close `sock` with the plane."""
        self._sockets.append(sock)
        return sock

    def row(self, wanted: Any) -> tuple[Any, ...]:
        """The first row, past or to come, of which `wanted` is true."""
        deadline = time.monotonic() + PATIENCE_S
        seen = 0
        while True:
            for row in self.rows[seen:]:
                if wanted(row):
                    return row
            seen = len(self.rows)
            fresh = self.hub.drain(4096)
            self.rows += fresh
            if not fresh:
                left_s = deadline - time.monotonic()
                assert left_s > 0, f"no such record among {self.rows}"
                bell = select.poll()  # select refuses descriptors above 1023
                bell.register(self.hub.fileno(), select.POLLIN)
                if bell.poll(left_s * 1000):
                    self.hub.hush()

    def result(self, token: int) -> tuple[Any, ...]:
        """Ending, bytes up, bytes down, errno of a pair."""
        row = self.row(lambda row: row[0] == RELAYED and row[3] == token)
        return row[13], row[11], row[12], row[14]

    def until(self, true: Any) -> None:
        """Wait until a condition of the data plane holds."""
        deadline = time.monotonic() + PATIENCE_S
        while not true():
            assert time.monotonic() < deadline, self.hub.stats()
            time.sleep(0.001)

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()
        self.hub.stop()


class Listening:
    """A listening socket in the data plane."""

    def __init__(self, sock: socket.socket, index: int, gate: Any) -> None:
        self.sock, self.index, self.gate = sock, index, gate
