"""Streams in which every byte belongs to one connection, so that a byte of another one is seen.

A client says its key in the first eight bytes. From then on both directions carry the pattern of this key, each its
own, from its beginning. `Mixture` is raised for the first byte that differs.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import socket
import struct
from dataclasses import dataclass, field

from tests.peers import Peer, dial

__all__ = ["Load", "Mixture", "Pattern", "talk"]

PERIOD = 4093
"""Of a pattern, in bytes; a prime, so that nothing of a power of two falls on the same place again."""

PIECE_MAX = 64 * 1024

SIZES = (0, 1, 500, 20_000, 300_000)
"""Of what one side says."""


class Mixture(AssertionError):
    """A connection got bytes that are not its own, or not those that were due."""


class Pattern:
    """The bytes of one direction of one connection, to be sent or to be compared."""

    def __init__(self, key: int, up: bool) -> None:
        self._bytes = random.Random(2 * key + up).randbytes(PERIOD) * (PIECE_MAX // PERIOD + 2)
        self.at = 0

    def take(self, size: int) -> bytes:
        """The next `size` bytes, at most `PIECE_MAX`."""
        start = self.at % PERIOD
        self.at += size
        return self._bytes[start : start + size]

    def check(self, data: bytes) -> None:
        """Compare what came with what was due."""
        before = self.at
        due = self.take(len(data))
        if data != due:
            wrong = next(nth for nth, pair in enumerate(zip(data, due, strict=True)) if pair[0] != pair[1])
            raise Mixture(f"{len(data)} bytes from {before} on, the first wrong one is at {before + wrong}")


@dataclass
class Load:
    """Clients and servers of keyed streams, and what they saw."""

    random: random.Random
    checked: int = 0
    ended: int = 0
    broken: int = 0
    faults: list[str] = field(default_factory=list)
    _keys: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    async def serve(self, peer: Peer) -> None:
        """The upstream's side of one connection."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            key = await peer.read(8)
            if len(key) < 8:
                return
            await talk(self, peer, *struct.unpack("!q", key), up=False)

    async def client(self, address: tuple[str, int], opening: bytes = b"") -> None:
        """One connection from beginning to end; that it breaks is counted, that it mixes is a fault.

        `opening` is for oinetd, before the stream.
        """
        key = next(self._keys)
        try:
            peer = await dial(address, receive_bytes=self.random.choice((0, 0, 4096)))
        except OSError:
            self.broken += 1
            return
        try:
            await peer.send(opening + struct.pack("!q", key))
            await talk(self, peer, key, up=True)
            self.ended += 1
        except ConnectionError:
            self.broken += 1
        finally:
            peer.close()


async def talk(load: Load, peer: Peer, key: int, *, up: bool) -> None:
    """Send and check at once, with pauses; some end with a FIN, some with a reset in the middle."""
    # Its decisions come from the key alone, so that both sides' order of running does not matter.
    choice = random.Random(4 * key + up)
    loop = asyncio.get_running_loop()
    ours, theirs = Pattern(key, up), Pattern(key, not up)
    size, due = choice.choice(SIZES), random.Random(4 * key + (not up)).choice(SIZES)
    reset_at = choice.randrange(size + 1) if choice.random() < 0.15 else -1

    write_failed = False

    async def write() -> None:
        nonlocal write_failed
        while (left := size - ours.at) > 0:
            try:
                await peer.send(ours.take(min(left, choice.choice((1, 100, 5000, PIECE_MAX)))))
            except ConnectionError:
                write_failed = True
                raise
            if 0 <= reset_at <= ours.at:
                peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                raise ConnectionAbortedError  # the close that follows is the reset
            if choice.random() < 0.05:
                await asyncio.sleep(choice.random() / 100)
        with contextlib.suppress(OSError):  # the other side's reset was first; the reader has it, too
            peer.half_close()

    async def read() -> None:
        while data := await loop.sock_recv(peer.sock, PIECE_MAX):
            try:
                theirs.check(data)
            except Mixture as mixture:
                load.faults.append(f"connection {key}, {'down' if up else 'up'}: {mixture}")
                raise
            load.checked += len(data)
            if choice.random() < 0.05:
                await asyncio.sleep(choice.random() / 100)
        if theirs.at != due:
            await asyncio.sleep(0)  # the writer may have got the reset a moment ago, and has not run yet
            if write_failed:  # a reset is told once, to whoever calls first; the other one reads an end
                raise ConnectionResetError
            load.faults.append(f"connection {key}, {'down' if up else 'up'}: a FIN after {theirs.at} of {due} bytes")

    tasks = [asyncio.ensure_future(write()), asyncio.ensure_future(read())]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
