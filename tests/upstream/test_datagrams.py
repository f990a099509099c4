"""A rule with a group of servers, over UDP: sessions are balanced, and leave a server that must not be used."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from oinetd import Ending, Forwarder
from oinetd.config import parse_config
from oinetd.net import file_watch
from tests.forwarding import Seen, bound
from tests.peers import until

pytestmark = pytest.mark.parametrize("engine", ["python", "native"])


class Answers(asyncio.DatagramProtocol):
    """A server that answers with its number; `asked` counts."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.asked = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.asked += 1
        self.transport.sendto(b"%d" % self.number, addr)

    @property
    def port(self) -> int:
        return int(self.transport.get_extra_info("sockname")[1])


@contextlib.asynccontextmanager
async def exchanging(engine: str, options: str = "", **hooks: object) -> AsyncIterator[tuple[Forwarder, list[Answers]]]:
    """Two servers and a forwarder to the group of both."""
    loop = asyncio.get_running_loop()
    servers = [
        (await loop.create_datagram_endpoint(lambda at=at: Answers(at), local_addr=("127.0.0.1", 0)))[1]  # type: ignore[misc]
        for at in range(2)
    ]
    lines = [f"upstream dns 127.0.0.1 {server.port}/udp" for server in servers]
    text = "\n".join(
        [f"engine {engine}", "127.0.0.1 0/udp @dns", *lines, f"upstream dns [{options or 'balance=first'}]"]
    )
    try:
        async with Forwarder(parse_config(text), **hooks) as forwarder:  # type: ignore[arg-type]
            yield forwarder, servers
    finally:
        for server in servers:
            server.transport.close()


async def test_a_file_of_servers(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_watch, "QUIET_S", 0.01)
    file = tmp_path / "dns.servers"
    async with exchanging(engine) as (_, servers):
        file.write_text(f"127.0.0.1 {servers[0].port}/udp\n")
        config = parse_config(
            f"engine {engine}\n127.0.0.1 0/udp @dns\nupstream dns file:{file} /udp\nupstream dns [allow-special]\n"
        )
        with clients(2) as (one, other):
            async with Forwarder(config) as forwarder:
                assert await ask(one, forwarder) == b"0"
                file.write_text(f"127.0.0.1 {servers[1].port}/udp\n")
                named = f"127.0.0.1:{servers[1].port}"
                await until(lambda: [each.name for each in forwarder.upstreams()[0].servers] == [named])
                assert await ask(other, forwarder) == b"1"


async def ask(client: socket.socket, forwarder: Forwarder) -> bytes:
    """The answer to a question."""
    client.sendto(b"?", bound(forwarder))
    async with asyncio.timeout(10):
        return await asyncio.get_running_loop().sock_recv(client, 100)


@contextlib.contextmanager
def clients(count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as held:
        found = [held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(count)]
        for sock in found:
            sock.setblocking(False)
            sock.bind(("127.0.0.1", 0))
        yield found


async def test_sessions_are_balanced(engine: str) -> None:
    async with exchanging(engine, "balance=leastconn") as (forwarder, _):
        with clients(8) as peers:
            answers = [await ask(peer, forwarder) for peer in peers]
            assert sorted(answers) == [b"0"] * 4 + [b"1"] * 4
            assert [server.live for server in forwarder.upstreams()[0].servers] == [4, 4]
            assert [await ask(peer, forwarder) for peer in peers] == answers


async def test_a_session_stays_with_a_server_that_drains_and_leaves_one_in_maintenance(engine: str) -> None:
    seen = Seen()
    async with exchanging(engine, on_close=seen.closed.append) as (forwarder, servers):
        name = f"127.0.0.1:{servers[0].port}"
        with clients(2) as (peer, other):
            assert await ask(peer, forwarder) == b"0"
            forwarder.set_server("dns", name, state="drain")
            assert await ask(peer, forwarder) == b"0"
            assert await ask(other, forwarder) == b"1"
            forwarder.set_server("dns", name, state="maint")
            assert await ask(peer, forwarder) == b"1"
            await until(lambda: len(seen.closed) == 1)
            assert seen.closed[0].ending in (Ending.SERVER_DOWN, Ending.DRAINED)
            assert (seen.closed[0].group, seen.closed[0].server) == ("dns", name)
            assert [server.live for server in forwarder.upstreams()[0].servers] == [0, 2]


async def test_refusals_of_sessions_eject_a_server(engine: str) -> None:
    async with exchanging(engine, "balance=first, passive=2/60s") as (forwarder, servers):
        servers[0].transport.close()
        with clients(2) as peers:
            for _ in range(50):  # bounded: two refusals are enough
                for peer in peers:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(0.2):
                            assert await ask(peer, forwarder) == b"1"
                if forwarder.upstreams()[0].servers[0].state.value == "ejected":
                    break
            assert forwarder.upstreams()[0].servers[0].why == "connect: refused"
            assert await ask(peers[0], forwarder) == b"1"
