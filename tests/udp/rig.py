"""The parties of a UDP rule: clients, and upstreams that echo, stay silent, or have gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest

from oinetd import Forwarder, SessionRecord, parse_config
from oinetd.net import resolver
from oinetd.net.sockets import Address, is_numeric, lookup
from tests.peers import until

PATIENCE_S = 30.0
"""Bounds a test that has failed; nothing waits this long otherwise."""
SIZE = 70_000


class Party:
    """A UDP socket; every call may wait for the network and for nothing else."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self.sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.sock.bind((host, port))

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.sock.getsockname()[:2]
        return host, port

    def send(self, data: bytes, to: tuple[str, int]) -> None:
        self.sock.sendto(data, to)

    async def receive(self) -> tuple[bytes, tuple[str, int]]:
        """The next datagram, and who sent it."""
        readable = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(self.sock.fileno(), readable.set)
        try:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    try:
                        data, address = self.sock.recvfrom(SIZE)
                        return data, address[:2]
                    except BlockingIOError:
                        readable.clear()
                        await readable.wait()
        finally:
            loop.remove_reader(self.sock.fileno())

    async def ask(self, data: bytes, to: tuple[str, int]) -> bytes:
        """Send, and wait for the answer, which has to come from `to`."""
        self.send(data, to)
        answer, address = await self.receive()
        assert address == to, f"the answer came from {address}"
        return answer

    def pending(self) -> list[bytes]:
        """What has arrived and was not read."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(self.sock.recv(SIZE))
        return found

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Party:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def echo(host: str = "127.0.0.1", port: int = 0, mute: bytes | None = None) -> Iterator[Party]:
    """An upstream that gives every datagram back, but for those that are `mute`."""
    loop = asyncio.get_running_loop()
    with Party(host, port) as party:

        def answer() -> None:
            with contextlib.suppress(BlockingIOError):
                while True:
                    data, address = party.sock.recvfrom(SIZE)
                    if data != mute:
                        party.sock.sendto(data, address)

        loop.add_reader(party.sock.fileno(), answer)
        try:
            yield party
        finally:
            loop.remove_reader(party.sock.fileno())


def name_service(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    """Let every name have these addresses."""

    def found(name: str, port: int = 0) -> tuple[Address, ...]:
        if is_numeric(name):
            return lookup(name, port)
        return tuple(Address(socket.AF_INET, (host, port)) for host in hosts)

    monkeypatch.setattr(resolver, "lookup", found)


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Let the process have as many descriptors as it has now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open("/dev/null", os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Served:
    """A forwarder, and what it told."""

    def __init__(self, text: str, admit: Callable[[SessionRecord], Awaitable[bool]] | None = None) -> None:
        self.opened: list[SessionRecord] = []
        self.closed: list[SessionRecord] = []
        self.forwarder = Forwarder(
            parse_config(text), admit=admit, on_open=self.opened.append, on_close=self.closed.append
        )

    async def has_told(self, *, opened: int | None = None, closed: int | None = None) -> None:
        """Wait for so many records; those of the reactors come a moment later."""
        await until(lambda: opened is None or len(self.opened) >= opened, "records of beginnings")
        await until(lambda: closed is None or len(self.closed) >= closed, "records of ends")

    @property
    def port(self) -> int:
        """The port of the first rule."""
        return self.forwarder.addresses[0].port

    @property
    def address(self) -> tuple[str, int]:
        """Where the first rule listens."""
        bound = self.forwarder.addresses[0]
        return bound.host, bound.port


@asynccontextmanager
async def serving(text: str) -> AsyncIterator[Served]:
    served = Served(text)
    async with served.forwarder:
        yield served
