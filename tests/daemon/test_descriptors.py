"""Few descriptors: how many are served, and what the process keeps for itself."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.daemon.process import PATIENCE_S, Client, Oinetd, until

Start = Callable[..., Oinetd]

FLOOD_BYTES = 8 << 20
"""More than the buffers of the kernel hold between an upstream and a client that does not read."""


def limited(count: int) -> Callable[[], None]:
    """To be called before the daemon begins: it has so many descriptors and can have no more."""
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))


@pytest.mark.parametrize("engine", ["python", "auto"])
@pytest.mark.parametrize(("limit", "least"), [(64, 14), (128, 45)])
def test_a_low_limit_serves_many_and_says_how_many(oinetd: Start, engine: str, limit: int, least: int) -> None:
    daemon = oinetd(f"engine {engine}\n127.0.0.1 0 UPSTREAM\n", before=limited(limit)).ready()
    room = int(daemon.wait_said(rf"room for (\d+) connections \(descriptor limit {limit}:")[1])
    assert least <= room < limit // 2
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(daemon.address)) for _ in range(room)]
        assert [client.echo(b"hello") for client in clients] == [b"hello"] * room
        late = stack.enter_context(Client(daemon.address))
        late.sock.sendall(b"later")
        daemon.wait_said(r"warning: all rules: full \(.*\), clients wait in the accept queue")
        assert "reloaded" in daemon.reload()  # with every place taken
        daemon.signal(signal.SIGUSR2)
        daemon.wait_said(rf"room for {room} connections")
        clients[0].close()
        assert late.read(5) == b"later"
    daemon.wait_said(r"all rules: room again")
    assert daemon.said.count(": full (") == 1
    assert "cannot accept" not in daemon.said
    assert daemon.stop() == 0


class Flood:
    """An upstream that sends without end; a thread for each connection."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self._threads.append(threading.Thread(target=self._send, args=(connection,)))
                self._threads[-1].start()

    def _send(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.sendall(bytes(FLOOD_BYTES))
            connection.recv(1)

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(PATIENCE_S)
        self.listener.close()
        for thread in self._threads:
            thread.join(PATIENCE_S)


@pytest.fixture
def flood() -> Iterator[Flood]:
    flood = Flood()
    yield flood
    flood.close()


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def all_live(daemon: Oinetd, count: int) -> bool:
    daemon.signal(signal.SIGUSR2)
    return f"{count} sessions live" in daemon.said


@pytest.mark.parametrize("engine", ["python", "auto"])
def test_clients_that_do_not_read_leave_the_process_what_a_reload_needs(
    oinetd: Start, flood: Flood, engine: str
) -> None:
    """They take descriptors for their connections and for pipes; a reload that denies them works, and so does the next
    connection."""
    port = flood.listener.getsockname()[1]
    limit = 512
    rules = f"engine {engine}\nrelay splice\n127.0.0.1 0 UPSTREAM\n127.0.0.1 0 127.0.0.1 {port}\n"
    daemon = oinetd(rules, before=limited(limit)).ready()
    quiet, loud = (daemon.wait_said("listening.*\n.*listening"), daemon.addresses)[1]
    room = int(daemon.wait_said(r"room for (\d+) connections")[1])
    at_rest = descriptors(daemon.pid)
    with ExitStack() as stack:
        for _ in range(room):
            stack.enter_context(Client(loud))
        until(lambda: all_live(daemon, room), "all of them to be served")
        assert descriptors(daemon.pid) <= limit - 20  # what is kept
        said = daemon.reload(daemon.conf.read_text() + "deny *\n")
        assert re.search("reloaded", said), said
    until(lambda: descriptors(daemon.pid) <= at_rest, "the end of the sessions, their pipes included")
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(quiet)) for _ in range(room)]
        assert [client.echo(b"hello") for client in clients] == [b"hello"] * room
    assert "cannot accept" not in daemon.said
    assert daemon.stop() == 0
