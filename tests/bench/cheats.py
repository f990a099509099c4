"""Relays that do not do what they seem to: `python cheats.py MODE LISTEN CONNECT`, each HOST:PORT.

A relay of two threads for each connection, honest but for one thing. What a bench prints for them has to say so.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

CHUNK = 65536
AFTER = 1 << 20
"""Bytes that pass honestly first, so that a look at the beginning sees nothing."""
SLOW_S = 0.6
"""The warm-up of the load that it is tried with, and half as much again: a load on a busy machine begins late."""

MODE = sys.argv[1] if len(sys.argv) > 1 else ""
_answers = itertools.count()
_stall = threading.Lock()
_began = 0.0
_crossing: list[socket.socket] = []


def address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


class Pump:
    """One direction of one connection."""

    def __init__(self, source: socket.socket, sink: socket.socket, number: int, up: bool) -> None:
        self.source, self.sink, self.number, self.up = source, sink, number, up
        self.passed = self.chunks = 0
        self.kept = b""
        self.done = False

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while data := self.source.recv(CHUNK):
                self.chunks += 1
                for part in self.treated(data):
                    self.sink.sendall(part)
                self.passed += len(data)
                if MODE == "early" and self.passed > AFTER:
                    self.source.shutdown(socket.SHUT_RDWR)
                    self.sink.shutdown(socket.SHUT_RDWR)
                    return
            if MODE == "last-byte" and self.up and self.kept:
                self.kept = bytes([self.kept[0] ^ 1])
            if self.kept:
                self.sink.sendall(self.kept)
        if MODE != "no-half-close":
            with contextlib.suppress(OSError):
                self.sink.shutdown(socket.SHUT_WR)

    def treated(self, data: bytes) -> list[bytes]:
        late = self.passed > AFTER
        if MODE == "last-byte" and self.up and late:  # one byte is held back until the end
            held, self.kept = self.kept, data[-1:]
            return [held + data[:-1]]
        if MODE == "cross" and self.up and late and not self.done:
            self.done = True
            self.sink = crossed(self.sink)
        if MODE == "lossy" and late and self.chunks % 10 == 0:
            return []
        if MODE == "change" and late and not self.done:
            self.done = True
            return [data[:-1], bytes([data[-1] ^ 1])]
        if MODE == "duplicate" and late and not self.done:
            self.done = True
            return [data, data]
        if MODE == "swap" and late and not self.done and len(data) >= 8192:
            self.done = True
            return [data[4096:8192], data[:4096], data[8192:]]
        if MODE == "reorder" and late and not self.done:
            if not self.kept:
                self.kept = data
                return []
            self.done, first = True, self.kept
            self.kept = b""
            return [data, first]
        if MODE == "slow-warm-up" and self.chunks > 1:  # the first one is the hello
            global _began
            _began = _began or time.monotonic()
            if time.monotonic() - _began < SLOW_S:
                time.sleep(0.02)
        if MODE == "delay" and not self.up:
            with _stall:  # all wait for the one that is held back
                if next(_answers) % 1000 == 500:
                    time.sleep(0.25)
        return [data]


def crossed(sink: socket.socket) -> socket.socket:
    """Of two streams that come here, each goes on to where the other one went."""
    with _stall:
        _crossing.append(sink)
        pair, place = len(_crossing) // 2 * 2 - 2, len(_crossing)
    if place % 2:
        deadline = time.monotonic() + 1
        while len(_crossing) == place and time.monotonic() < deadline:
            time.sleep(0.001)
        return _crossing[place] if len(_crossing) > place else sink
    return _crossing[pair]


def serve(client: socket.socket, connect: tuple[str, int], number: int) -> None:
    with client, socket.create_connection(connect) as server:
        for each in (client, server):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pumps = [Pump(client, server, number, True), Pump(server, client, number, False)]
        if MODE == "cache":
            remember(client, server)
            return
        threads = [threading.Thread(target=pump.run, daemon=True) for pump in pumps]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def remember(client: socket.socket, server: socket.socket) -> None:
    """The hello and three requests go through; from then on the last answer does for all."""
    server.sendall(client.recv(CHUNK))
    client.sendall(server.recv(CHUNK))
    answer = b""
    for turn in range(1 << 30):
        request = client.recv(CHUNK)
        if not request:
            return
        if turn < 3:
            server.sendall(request)
            answer = server.recv(CHUNK)
        client.sendall(answer)


def reuse(listener: socket.socket, connect: tuple[str, int]) -> None:
    """Short connections, one client after the other over the same connection to the server."""
    with socket.create_connection(connect) as server:
        while True:
            client, _ = listener.accept()
            with client:
                if hello := client.recv(CHUNK):
                    server.sendall(hello)
                    client.sendall(server.recv(CHUNK))
                    client.recv(1)


def pooled(listener: socket.socket, connect: tuple[str, int]) -> None:
    """Short connections over connections to the server that were made before."""
    pool = [socket.create_connection(connect) for _ in range(8)]
    while True:
        client, _ = listener.accept()
        with client, pool.pop(0) as server:
            pool.append(socket.create_connection(connect))
            if hello := client.recv(CHUNK):
                server.sendall(hello)
                client.sendall(server.recv(CHUNK))
                client.recv(1)


def leave_group() -> None:
    """This process goes on in the machine's own control group, as its own parent."""
    if os.fork():
        while True:
            time.sleep(60)
    os.setsid()
    step_out()


def step_out() -> None:
    """Into the machine's own control group."""
    for tree in [*Path("/sys/fs/cgroup").iterdir(), Path("/sys/fs/cgroup")]:
        with contextlib.suppress(OSError):
            (tree / "cgroup.procs").write_text(str(os.getpid()))


def brief_children(listener: socket.socket, connect: tuple[str, int]) -> None:
    """A child for each short connection, outside the control group, which is over before anybody looks."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        client, _ = listener.accept()
        if not os.fork():
            step_out()
            with contextlib.suppress(OSError), client, socket.create_connection(connect) as server:
                if hello := client.recv(CHUNK):
                    server.sendall(hello)
                    client.sendall(server.recv(CHUNK))
                    client.recv(1)
            os._exit(0)
        client.close()


def kernel_alone(listen: tuple[str, int], connect: tuple[str, int]) -> None:
    """The kernel forwards; this process has nothing to do but to listen."""
    rules = (
        f"table ip cheat {{ chain to {{ type nat hook prerouting priority -100; tcp dport {listen[1]} "
        f"dnat to {connect[0]}:{connect[1]}; }}; "
        "chain from { type nat hook postrouting priority 100; masquerade; }; }"
    )
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)
    with socket.create_server(listen):
        time.sleep(3600)


def datagrams(listen: tuple[str, int], connect: tuple[str, int]) -> None:
    """UDP for one client at a time."""
    with socket.socket(type=socket.SOCK_DGRAM) as front, socket.socket(type=socket.SOCK_DGRAM) as back:
        front.bind(listen)
        back.connect(connect)
        client: list[tuple[str, int]] = []

        def answers() -> None:
            while True:
                data = back.recv(CHUNK)
                front.sendto(data, client[-1])

        threading.Thread(target=answers, daemon=True).start()
        for turn in range(1 << 30):
            data, source = front.recvfrom(CHUNK)
            client[:] = [source]
            if MODE == "udp-change" and turn % 50 == 30:
                data = data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]
            back.send(data)
            if MODE == "udp-double" and turn % 50 == 30:
                back.send(data)


def main() -> None:
    listen, connect = address(sys.argv[2]), address(sys.argv[3])
    if MODE.startswith("udp"):
        datagrams(listen, connect)
    if MODE == "kernel":
        kernel_alone(listen, connect)
    with socket.create_server(listen, backlog=512) as listener:
        if MODE == "outside":
            leave_group()
        if MODE == "brief":
            brief_children(listener, connect)
        if MODE == "half" and os.fork():  # accepts as well, with the same listener
            step_out()
        if MODE in ("reuse", "pool"):
            (reuse if MODE == "reuse" else pooled)(listener, connect)
        for number in range(1 << 30):
            client, _ = listener.accept()
            if MODE == "first" and number:
                client.recv(1)  # and never a word
                threading.Thread(target=lambda held=client: held.recv(1 << 20), daemon=True).start()
                continue
            threading.Thread(target=serve, args=(client, connect, number), daemon=True).start()


if __name__ == "__main__":
    main()
