"""Messages on connections that stay, in one direction: `python -m bench.messages serve|load HOST PORT`.

A message is 16 KiB, sent at once; the server reads large pieces (SO_RCVLOWAT), and looks at some of them. A forwarder
with a small buffer has to read and write each message in parts, so it has more to do than client and server together,
and there is room for another thread of it. What is looked at is compared with what was sent; everything is counted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import select
import socket
import sys
import time
from typing import Any

__all__ = ["main"]

MESSAGE = bytes(range(256)) * 64
LOW_BYTES = 8192
"""The server is woken when so much has come. Twice as much has to fit its buffer however small the packets are: else it
would sleep while the window is closed."""
PIECE_BYTES = 1 << 18
LOOK_AT = 16
"""One read of so many is compared; of the others the kernel tells the size and drops the bytes (MSG_TRUNC)."""
PATIENCE_S = 20.0


# The server


class Server:
    """Counts what comes, and the connections on which something else came than was sent."""

    def __init__(self, host: str, port: int) -> None:
        self._listener = socket.create_server((host, port), backlog=4096)
        self._poll = select.epoll()
        self._poll.register(self._listener, select.EPOLLIN)
        self._poll.register(sys.stdin, select.EPOLLIN)
        self._connections: dict[int, tuple[socket.socket, int]] = {}
        self._piece = bytearray(PIECE_BYTES)
        self._view = memoryview(self._piece)
        self._whole = MESSAGE * (PIECE_BYTES // len(MESSAGE) + 1)
        self._reads = 0
        self._bytes = 0
        self._wrong = 0

    def run(self) -> None:
        """Until standard input ends; a line on it is answered with the counts."""
        while True:
            for fd, _ in self._poll.poll():
                if fd == self._listener.fileno():
                    self._accept()
                elif fd != sys.stdin.fileno():
                    self._read(fd)
                elif not sys.stdin.readline():
                    return
                else:
                    found = {"bytes": self._bytes, "wrong": self._wrong, "open": len(self._connections)}
                    print(json.dumps(found), flush=True)

    def _accept(self) -> None:
        sock, _ = self._listener.accept()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, LOW_BYTES)
        self._connections[sock.fileno()] = sock, 0
        self._poll.register(sock, select.EPOLLIN)

    def _read(self, fd: int) -> None:
        sock, at = self._connections[fd]
        self._reads += 1
        looks = self._reads % LOOK_AT == 0
        try:
            count = sock.recv_into(self._piece, 0, 0 if looks else socket.MSG_TRUNC)
        except OSError:
            count = 0
            self._wrong += 1
        if not count:
            del self._connections[fd]
            sock.close()
            return
        if looks:
            begin = at % len(MESSAGE)
            self._wrong += self._view[:count] != self._whole[begin : begin + count]
        self._bytes += count
        self._connections[fd] = sock, at + count


# The load


def load(options: argparse.Namespace) -> None:
    """Open all connections, say their ports, and send on those that are then named."""
    socks: dict[int, socket.socket] = {}
    for _ in range(options.connections):
        sock = socket.create_connection((options.host, options.port), PATIENCE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        socks[sock.getsockname()[1]] = sock
    print(json.dumps(list(socks)), flush=True)
    chosen = [socks[port] for port in json.loads(sys.stdin.readline())]
    found = send(chosen, options.seconds, options.rate)
    for sock in socks.values():
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
    for sock in socks.values():  # the forwarder closes when the server has read everything
        with contextlib.suppress(OSError):
            sock.recv(1)
        sock.close()
    print(json.dumps(found), flush=True)


def send(socks: list[socket.socket], seconds: float, rate: float) -> dict[str, Any]:
    """Send one message on each, so many times a second, or as often as the forwarder takes them if that is less."""
    calls = [sock.send for sock in socks]
    begin = due = now = time.monotonic()
    rounds = late = 0
    while now < begin + seconds:
        if due > now:
            time.sleep(due - now)
        for call in calls:
            if call(MESSAGE) != len(MESSAGE):
                raise OSError("a message was cut")
        rounds += 1
        now = time.monotonic()
        due += 1 / rate
        if due < now:  # not to be caught up on: it would be another load
            late += 1
            due = now
    sent = rounds * len(socks)
    return {"begin": begin, "end": now, "messages": sent, "bytes": sent * len(MESSAGE), "late": late}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.messages")
    parser.add_argument("what", choices=("serve", "load"))
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rate", type=float, default=250.0, help="times a second that each connection has a message")
    options = parser.parse_args()
    if options.what == "serve":
        Server(options.host, options.port).run()
    else:
        load(options)


if __name__ == "__main__":
    main()
