"""What small messages wait for: acknowledgements, which they must not, and events, by polling or asleep."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.engine.native.plane import PATIENCE_S, Plane, read_exactly

OPENED = 1
RELAYS = ["auto", "copy", "splice"]  # by their numbers


def upstream_leg(peer: tuple[str, int]) -> socket.socket:
    """A copy of the reactor's socket that has this address."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if not stat.S_ISSOCK(os.stat(int(name)).st_mode):
                continue
            sock = socket.socket(fileno=os.dup(int(name)))
            if sock.family == socket.AF_INET and sock.type == socket.SOCK_STREAM and sock.getsockname() == peer:
                return sock
            sock.close()
    raise AssertionError(f"no socket has {peer}")


@pytest.mark.parametrize("relay", RELAYS)
def test_the_upstream_leg_does_not_wait_for_acknowledgements(make_plane: Callable[..., Plane], relay: str) -> None:
    """TCP_NODELAY waits for the second write: the first is never held back without it."""
    plane = make_plane(relay=RELAYS.index(relay))
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE_S)
        client = plane.connect(plane.listen(server.getsockname()))
        upstream, peer = server.accept()
        with upstream, upstream_leg(peer) as leg:
            upstream.settimeout(PATIENCE_S)
            for written in range(3):
                client.sendall(b"x" * 10)
                assert read_exactly(upstream, 10) == b"x" * 10
                nodelay = leg.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                assert nodelay == (1 if written or relay == "splice" else 0)


def test_a_connection_that_leaves_the_process_has_no_delay(make_plane: Callable[..., Plane]) -> None:
    plane = make_plane()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE_S)
        client = plane.connect(plane.listen(server.getsockname()))
        upstream, peer = server.accept()
        with upstream, upstream_leg(peer) as leg:
            client.sendall(b"x")
            assert upstream.recv(1) == b"x"
            plane.row(lambda row: row[0] == OPENED)
            found: list[Any] = []

            def gone() -> bool:
                found.extend(plane.hub.take_out(8)[0])
                return len(found) == 1

            plane.until(gone)
            assert leg.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            found[0].release()


def test_polling_pauses_while_others_want_the_core(make_plane: Callable[..., Plane]) -> None:
    """Who computes on the core of the reactor gets a slice whenever a poll looks at whether others want it."""
    plane = make_plane(spin_us=2000)
    client, upstream, _ = plane.wire()
    plane.until(lambda: plane.hub.reactor_counts()[0][0])
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(plane.hub.reactor_counts()[0][0], {min(allowed)})
    os.sched_setaffinity(0, {min(allowed)})
    try:

        def paused() -> bool:
            for source, sink in ((client, upstream), (upstream, client)):
                computed = time.thread_time() + 0.0005
                while time.thread_time() < computed:
                    pass
                source.sendall(b"x" * 64)
                assert len(read_exactly(sink, 64)) == 64
            return bool(plane.hub.reactor_counts()[0][4] == "paused")

        plane.until(paused)
    finally:
        os.sched_setaffinity(0, allowed)
    assert plane.hub.stats()["poll_pauses"] >= 1
    plane.hub.spin_us = 0
    assert plane.hub.reactor_counts()[0][4] == "off"
