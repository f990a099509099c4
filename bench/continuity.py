"""What clients notice while a forwarder is replaced: `python -m bench.continuity serve|load HOST PORT`.

The server gives TCP and UDP back. The load keeps many kinds of connections at once and writes one line of JSON when its
standard input ends: what failed, and the longest time for which nothing came. Every byte that comes back is compared.
A first byte says what the server is to do: `E` gives everything back, `H` and a digit waits for the FIN and that many
seconds, then answers.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, cast

__all__ = ["main"]

PATIENCE_S = 10.0
"""A connection that says nothing for so long has failed."""
DATAGRAM_PATIENCE_S = 1.0
ASK_S = 0.01
"""Between two round trips of one connection, and between two datagrams of one client."""
BULK_BYTES = 65536
BULK_PAUSE_S = 0.02
"""After each block: 3 MB a second and connection, so that the load does not measure itself."""
ANSWER = b"after your FIN"


# The server


async def serve_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        kind = await reader.read(1)
        if kind == b"H":
            wait_s = int(await reader.readexactly(1))
            await reader.read()
            await asyncio.sleep(wait_s)
            writer.write(ANSWER)
        while kind == b"E" and (piece := await reader.read(BULK_BYTES)):
            writer.write(piece)
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.close()
        await writer.wait_closed()


class Datagrams(asyncio.DatagramProtocol):
    """Gives datagrams back, with the port that they came from."""

    transport: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)  # that of a selector loop is no such class

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.transport.sendto(data + b" %d" % addr[1], addr)


async def serve(host: str, port: int) -> None:
    server = await asyncio.start_server(serve_stream, host, port, backlog=4096)
    await asyncio.get_running_loop().create_datagram_endpoint(Datagrams, local_addr=(host, port))
    async with server:
        await server.serve_forever()


# The load


@dataclass
class Seen:
    """What happened so far. Times are seconds; `gaps` are the longest ones of each kind."""

    counts: Counter[str] = field(default_factory=Counter)
    gaps: dict[str, float] = field(default_factory=dict)
    faults: Counter[str] = field(default_factory=Counter)

    def gap(self, kind: str, seconds: float) -> None:
        self.gaps[kind] = max(self.gaps.get(kind, 0.0), seconds)

    def fault(self, kind: str, error: BaseException) -> None:
        self.counts[f"{kind}_failed"] += 1
        self.faults[f"{kind}: {type(error).__name__} {error}".strip()] += 1


class Load:
    """The clients of one forwarder at `host` and `port`, until `over` is set."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.seen = Seen()
        self.over = asyncio.Event()
        self.answered = 0.0  # when a new connection last had its answer

    async def open(self, first: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        async with asyncio.timeout(PATIENCE_S):
            reader, writer = await asyncio.open_connection(self.options.host, self.options.port)
        writer.write(first)
        return reader, writer

    async def ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> None:
        """One round trip. Raises `OSError` or `EOFError` if it fails, `ValueError` for another answer."""
        writer.write(data)
        async with asyncio.timeout(PATIENCE_S):
            answer = await reader.readexactly(len(data))
        if answer != data:
            raise ValueError("other bytes came back")

    async def watched(self, kind: str, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except (OSError, EOFError, ValueError) as error:
            self.seen.fault(kind, error)

    async def newcomer(self) -> None:
        """A connection that is opened, asks once, and is closed."""
        reader, writer = await self.open(b"E")
        try:
            await self.ask(reader, writer, os.urandom(64))
            writer.write_eof()
            async with asyncio.timeout(PATIENCE_S):
                if await reader.read():
                    raise ValueError("more bytes came back")
        finally:
            writer.close()
        now = time.monotonic()
        if self.answered:
            self.seen.gap("new", now - self.answered)
        self.answered = now
        self.seen.counts["new"] += 1

    async def newcomers(self) -> None:
        running: set[asyncio.Task[None]] = set()
        begin, begun = time.monotonic(), 0
        while not self.over.is_set():
            due = int((time.monotonic() - begin) * self.options.rate)
            for _ in range(min(due - begun, 200)):
                task = asyncio.ensure_future(self.watched("new", self.newcomer()))
                running.add(task)
                task.add_done_callback(running.discard)
            begun = due
            await asyncio.sleep(0.001)
        if running:
            await asyncio.wait(running)

    async def idle(self) -> None:
        """Silent until the end, then it has to work."""
        reader, writer = await self.open(b"E")
        await self.ask(reader, writer, b"idle")
        self.seen.counts["ready"] += 1
        await self.over.wait()
        await self.ask(reader, writer, b"still")
        writer.close()

    async def half_closed(self) -> None:
        """Its FIN is sent; the answer comes when the load is over, as far as the length of that is known."""
        reader, writer = await self.open(b"H%d" % min(9, self.options.half_s))
        writer.write_eof()
        self.seen.counts["ready"] += 1
        async with asyncio.timeout(PATIENCE_S + self.options.half_s):
            if await reader.read() != ANSWER:
                raise ValueError("not the answer")
        writer.close()

    async def round_trips(self) -> None:
        reader, writer = await self.open(b"E")
        await self.ask(reader, writer, b"ready")
        self.seen.counts["ready"] += 1
        while not self.over.is_set():
            begin = time.monotonic()
            await self.ask(reader, writer, os.urandom(64))
            self.seen.gap("round_trip", time.monotonic() - begin)
            self.seen.counts["round_trips"] += 1
            await asyncio.sleep(ASK_S)
        writer.close()

    async def bulk(self) -> None:
        reader, writer = await self.open(b"E")
        await self.ask(reader, writer, b"ready")
        self.seen.counts["ready"] += 1
        block = os.urandom(BULK_BYTES)

        async def send() -> None:
            while not self.over.is_set():
                writer.write(block)
                await writer.drain()
                self.seen.counts["blocks"] += 1
                await asyncio.sleep(BULK_PAUSE_S)
            writer.write_eof()

        sending = asyncio.ensure_future(send())
        try:
            last, at = time.monotonic(), 0
            while piece := await asyncio.wait_for(reader.read(BULK_BYTES), PATIENCE_S):
                now = time.monotonic()
                self.seen.gap("bulk", now - last)
                last = now
                if piece != (block + block)[at : at + len(piece)]:
                    raise ValueError("other bytes came back")
                at = (at + len(piece)) % BULK_BYTES
            if at or not self.over.is_set():
                raise EOFError("ended early")
        finally:
            sending.cancel()
            await asyncio.wait({sending})
            writer.close()

    async def datagrams(self) -> None:
        """A UDP client; the server tells the port that it sees."""
        answers: asyncio.Queue[bytes] = asyncio.Queue()

        class Client(asyncio.DatagramProtocol):
            def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
                answers.put_nowait(data)

        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(Client, remote_addr=(self.options.host, self.options.port))
        self.seen.counts["ready"] += 1
        ports: set[bytes] = set()
        number = 0
        while not self.over.is_set():
            number += 1
            question = b"%d" % number
            transport.sendto(question)
            self.seen.counts["datagrams"] += 1
            try:
                async with asyncio.timeout(DATAGRAM_PATIENCE_S):
                    while not (answer := await answers.get()).startswith(question + b" "):
                        pass
            except TimeoutError:
                self.seen.counts["datagrams_lost"] += 1
            else:
                ports.add(answer.split()[1])
            await asyncio.sleep(ASK_S)
        self.seen.counts["new_ports"] += max(0, len(ports) - 1)
        transport.close()

    async def run(self) -> None:
        options = self.options
        kinds = [
            ("idle", self.idle, options.idle), ("half", self.half_closed, options.half),
            ("round_trips", self.round_trips, options.round_trips), ("bulk", self.bulk, options.bulk),
            ("datagrams", self.datagrams, options.datagrams),
        ]  # fmt: skip
        tasks = []
        wanted = 0
        for name, make, number in kinds:
            for nth in range(number):
                tasks.append(asyncio.ensure_future(self.watched(name, make())))
                wanted += 1
                if nth % 100 == 99:  # no more than the accept queues take
                    await self._until_ready(wanted)
        await self._until_ready(wanted)
        self.seen.counts["lasting"] = self.seen.counts.pop("ready", 0)
        self.seen.gaps.clear()
        if options.rate:
            tasks.append(asyncio.ensure_future(self.newcomers()))
        print("up", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        self.over.set()
        await asyncio.wait(tasks)
        seen = self.seen
        print(json.dumps({"counts": seen.counts, "gaps": seen.gaps, "faults": seen.faults}), flush=True)

    async def _until_ready(self, wanted: int) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if self.seen.counts["ready"] + self.seen.faults.total() >= wanted:
                return
            await asyncio.sleep(0.005)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.continuity")
    parser.add_argument("what", choices=("serve", "load"))
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--rate", type=float, default=0.0, help="new connections a second")
    parser.add_argument("--half-s", type=int, default=5, help="seconds after which half-closed ones are answered")
    for name in ("idle", "half", "round-trips", "bulk", "datagrams"):
        parser.add_argument(f"--{name}", type=int, default=0, help="this many at once")
    options = parser.parse_args()
    if options.what == "serve":
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(serve(options.host, options.port))
        return
    asyncio.run(Load(options).run())


if __name__ == "__main__":
    main()
