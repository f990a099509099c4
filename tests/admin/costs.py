"""What the admin interface costs beside 9,000 live sessions: `python -m tests.admin.costs`, on a machine that is quiet.

It is no test: it measures. Each figure stands beside what it should be. The loop is watched by a callback that runs in
each of its turns; what it was held is the longest time between two turns.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import resource
import selectors
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import uvloop

from oinetd.process.context import settle_memory
from tests.admin.rig import administered
from tests.forwarding import bound

DESCRIPTORS = 20_000
SESSIONS = 9_000
PINGERS = 16
ROUNDS = 20


def serve(pipe: Connection) -> None:
    """An echo server, in a process of its own."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    listener.setblocking(False)
    poll = selectors.DefaultSelector()
    poll.register(listener, selectors.EVENT_READ)
    pipe.send(listener.getsockname()[1])
    while True:
        for key, _ in poll.select():
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            with contextlib.suppress(BlockingIOError, ConnectionResetError):
                if sock is listener:
                    while True:
                        poll.register(listener.accept()[0], selectors.EVENT_READ)
                if data := sock.recv(65536):
                    sock.sendall(data)
                else:
                    poll.unregister(sock)
                    sock.close()


@dataclass
class Watch:
    """The longest times between two turns of the loop: of the clock, and of its thread on a core."""

    loop: asyncio.AbstractEventLoop
    on: bool = False
    last: tuple[float, float] = (0.0, 0.0)
    worst: list[float] = field(default_factory=lambda: [0.0, 0.0])

    def begin(self) -> None:
        self.on, self.worst, self.last = True, [0.0, 0.0], (time.perf_counter(), time.thread_time())
        self.loop.call_soon(self.turn)

    def turn(self) -> None:
        now = time.perf_counter(), time.thread_time()
        self.worst = [max(worst, at - last) for worst, at, last in zip(self.worst, now, self.last, strict=True)]
        self.last = now
        if self.on:
            self.loop.call_soon(self.turn)

    def end(self) -> list[float]:
        self.turn()
        self.on = False
        return self.worst


def subject(pipe: Connection, port: int, folder: str) -> None:
    """The forwarder with its admin interface, in a process of its own; it does what the pipe says."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))

    async def main() -> None:
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        text = f"127.0.0.1 0 127.0.0.1 {port} [name=web]\n" + "".join(
            f"127.0.0.1 0 127.0.0.1 {port} [name=other-{number}]\n" for number in range(20)
        )
        async with administered(Path(folder), text) as admin:
            settle_memory()
            watch = Watch(loop)

            def obey() -> None:
                word = pipe.recv()
                if word == "begin":
                    watch.begin()
                    pipe.send(None)
                elif word == "end":
                    pipe.send(watch.end())
                elif word == "cpu":
                    pipe.send(time.process_time())
                else:
                    done.set()

            loop.add_reader(pipe.fileno(), obey)
            pipe.send((bound(admin.forwarder), admin.path))
            await done.wait()
            loop.remove_reader(pipe.fileno())

    asyncio.run(main(), loop_factory=uvloop.new_event_loop) if sys.version_info >= (3, 12) else uvloop.run(main())


@dataclass
class Subject:
    """The forwarder as the measuring process sees it."""

    pipe: Connection
    path: str

    def ask(self, word: str) -> Any:
        self.pipe.send(word)
        return self.pipe.recv()

    def get(self, target: str) -> int:
        """The size of an answer."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(self.path)
            sock.sendall(f"GET {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
            count, first = 0, b""
            while data := sock.recv(1 << 18):
                first = first or data
                count += len(data)
            assert b" 200 " in first[:20], first[:200]
            return count


def ask_often(
    forwarder: Subject, target: str, rounds: int = ROUNDS
) -> tuple[list[float], list[float], list[float], int]:
    """Times of answers, and what the loop was held: by the clock, and on a core; in milliseconds."""
    times, walls, cores, size = [], [], [], 0
    for _ in range(rounds):
        forwarder.ask("begin")
        began = time.perf_counter()
        size = forwarder.get(target)
        times.append(1000 * (time.perf_counter() - began))
        wall, core = forwarder.ask("end")
        walls.append(1000 * wall)
        cores.append(1000 * core)
        time.sleep(0.02)
    return times, walls, cores, size


def round_trips(socks: list[socket.socket], seconds: float) -> list[float]:
    """Times of round trips of 64 bytes, one connection after the other, in microseconds."""
    found, until = [], time.perf_counter() + seconds
    while (began := time.perf_counter()) < until:
        sock = socks[len(found) % len(socks)]
        sock.sendall(b"x" * 64)
        got = 0
        while got < 64:
            got += len(sock.recv(64 - got))
        found.append(1e6 * (time.perf_counter() - began))
    return found


@contextlib.contextmanager
def scraping(forwarder: Subject, pause_s: float) -> Iterator[None]:
    """Scrapes beside the body."""
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(pause_s):
            forwarder.get("/metrics")

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


def line(what: str, value: str, wanted: str, good: bool | None) -> None:
    print(f"{what:52} {value:>30}   {wanted:22} {'' if good is None else 'ok' if good else 'OVER'}", flush=True)


def answers(forwarder: Subject) -> None:
    """How long answers take, and how long the loop is held."""
    for name, target, time_ms, held_ms in (
        ("scrape", "/metrics", 20.0, 1.0),
        ("status", "/v1/status", 20.0, 10.0),
        ("rules", "/v1/rules", 20.0, 10.0),
        ("sessions", "/v1/sessions", 300.0, 10.0),
        ("sessions, sort=bytes", "/v1/sessions?sort=bytes", 300.0, 10.0),
        ("sessions, sort=bytes, limit=200", "/v1/sessions?sort=bytes&limit=200", 300.0, 10.0),
        ("clients", "/v1/clients", 300.0, 10.0),
    ):
        times, walls, cores, size = ask_often(forwarder, target)
        median, worst = statistics.median(times), max(times)
        line(
            f"{name} ({size / 1000:.0f} kB)",
            f"{median:.1f} ms, worst {worst:.1f}",
            f"< {time_ms:g} ms",
            median < time_ms,
        )
        held, longest = statistics.median(walls), max(walls)
        line("  loop held, by the clock", f"{held:.2f} ms, worst {longest:.2f}", f"< {held_ms:g} ms", held < held_ms)
        line("  loop held, on a core", f"{statistics.median(cores):.2f} ms, worst {max(cores):.2f}", "", None)


def share_of_a_core(forwarder: Subject, seconds: float) -> None:
    """What one scrape a second takes."""

    def used(work: Callable[[], object]) -> float:
        before = forwarder.ask("cpu")
        work()
        return float(forwarder.ask("cpu") - before) / seconds

    def scrapes() -> None:
        for _ in range(int(seconds)):
            began = time.monotonic()
            forwarder.get("/metrics")
            time.sleep(max(0.0, began + 1 - time.monotonic()))

    idle = used(lambda: time.sleep(seconds))
    busy = used(scrapes)
    line(
        "one scrape a second",
        f"{busy - idle:.2%} of a core (idle {idle:.2%})",
        "< 0.5 % of a core",
        busy - idle < 0.005,
    )


def beside_scrapes(forwarder: Subject, socks: list[socket.socket], turns: int) -> None:
    """The 99th percentile of round trips, with and without scrapes, in turn."""
    alone: list[float] = []
    beside: list[float] = []
    for _ in range(turns):
        alone += round_trips(socks, 1.0)
        with scraping(forwarder, 0.1):
            beside += round_trips(socks, 1.0)
    before, after = p99(alone), p99(beside)
    value = f"{after:.0f} us, alone {before:.0f} ({after / before - 1:+.0%})"
    line("p99 of round trips beside ten scrapes a second", value, "within 20 %", after <= 1.2 * before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=SESSIONS)
    parser.add_argument("--seconds", type=float, default=15.0, help="of the share of a core, each")
    said = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    port = ours.recv()
    with tempfile.TemporaryDirectory() as folder:
        pipe, other = context.Pipe()
        process = context.Process(target=subject, args=(other, port, folder), daemon=True)
        process.start()
        address, path = pipe.recv()
        forwarder = Subject(pipe, path)
        socks = []
        for _ in range(said.sessions):
            sock = socket.create_connection(address)
            sock.sendall(b"hello")
            assert sock.recv(5) == b"hello"
            socks.append(sock)
        print(f"{len(socks)} live sessions, 21 rules")
        answers(forwarder)
        share_of_a_core(forwarder, said.seconds)
        beside_scrapes(forwarder, socks[:PINGERS], 8)
        pipe.send("quit")
        process.join()
    server.terminate()
    server.join()


if __name__ == "__main__":
    main()
