"""The programs of `bench checks`: `python -m bench.checking servers|bare|oinetd PORT [COUNT EVERY_S]`.

`servers` answers each line of its standard input with the number of connections that it has taken. `oinetd` answers
the first line at once, and from then on has a beat of a millisecond; it answers the next one with how long its loop was
held since then. Its own first line says that each server has been checked.
"""

from __future__ import annotations

import asyncio
import json
import select
import socket
import struct
import sys
import threading
import time
from collections import deque

from oinetd import Forwarder
from oinetd.config import parse_config
from oinetd.process.eventloop import loop_factory

__all__ = ["address", "main"]

BACKLOG = 4096
BEAT_S = 0.001
_RESET = struct.pack("ii", 1, 0)


def address(number: int) -> str:
    """Each server has an address of its own in 127.0.0.0/8; the port is the same."""
    return f"127.1.{number // 250}.{number % 250 + 1}"


def _servers(port: int) -> None:
    listener = socket.create_server(("0.0.0.0", port), backlog=BACKLOG)
    taken = 0

    def serve() -> None:
        nonlocal taken
        while True:  # ends with the process
            listener.accept()[0].close()
            taken += 1

    threading.Thread(target=serve, daemon=True).start()
    for _ in sys.stdin:  # until the bench ends it
        print(taken, flush=True)


def _bare(port: int, count: int, every_s: float) -> None:
    """Nothing but the connects: a socket, non-blocking, its readiness, its error, its end by a reset."""
    poll = select.epoll()
    waiting: dict[int, socket.socket] = {}
    begin = time.monotonic()
    due = deque((begin + every_s * number / count, address(number)) for number in range(count))
    while True:  # ends with the process
        while due[0][0] <= time.monotonic():
            when, host = due.popleft()
            due.append((when + every_s, host))
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            sock.connect_ex((host, port))
            poll.register(sock.fileno(), select.EPOLLOUT)
            waiting[sock.fileno()] = sock
        for fd, _ in poll.poll(max(0.0, due[0][0] - time.monotonic())):
            sock = waiting.pop(fd)
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            poll.unregister(fd)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            sock.close()


class _Beat:
    """How long the loop was held, by the clock and on a core, between two beats."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.longest_ms = self.core_ms = 0.0
        self._loop = loop
        self._at, self._core = time.monotonic(), time.thread_time()
        self._timer = loop.call_later(BEAT_S, self._beat)

    def _beat(self) -> None:
        now, core = time.monotonic(), time.thread_time()
        self.longest_ms = max(self.longest_ms, (now - self._at - BEAT_S) * 1000)
        self.core_ms = max(self.core_ms, (core - self._core) * 1000)
        self._at, self._core = now, core
        self._timer = self._loop.call_later(BEAT_S, self._beat)


async def _oinetd(port: int, count: int, every_s: float) -> None:
    lines = "".join(f"upstream group {address(number)} {port}\n" for number in range(count))
    config = parse_config(
        f"{lines}upstream group [check=tcp, check-interval={every_s}s, check-fast={every_s}s]\n127.0.0.1 0 @group\n"
    )
    loop = asyncio.get_running_loop()
    said: asyncio.Queue[str] = asyncio.Queue()
    loop.add_reader(sys.stdin.fileno(), lambda: said.put_nowait(sys.stdin.readline()))
    async with Forwarder(config) as forwarder:
        while not all(server.checks_passed for server in forwarder.upstreams()[0].servers):  # noqa: ASYNC110
            await asyncio.sleep(every_s / 4)
        print(flush=True)
        beat: _Beat | None = None
        while await said.get():
            states = [server.state.value for server in forwarder.upstreams()[0].servers]
            answer = {
                "up": states.count("up"),
                **({"wall_ms": beat.longest_ms, "core_ms": beat.core_ms} if beat else {}),
            }
            print(json.dumps(answer), flush=True)
            await asyncio.sleep(BEAT_S)
            beat = _Beat(loop)
    loop.remove_reader(sys.stdin.fileno())


def main() -> None:
    role, port, *more = sys.argv[1:]
    if role == "servers":
        _servers(int(port))
    elif role == "bare":
        _bare(int(port), int(more[0]), float(more[1]))
    else:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(_oinetd(int(port), int(more[0]), float(more[1])))


if __name__ == "__main__":
    main()
