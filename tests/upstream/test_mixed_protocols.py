"""Groups behind rules between UDP and TCP: the Python lane chooses and leaves servers for those, too."""

from __future__ import annotations

import asyncio

import pytest

from oinetd import Ending
from oinetd.upstream import silence
from tests.forwarding import exchange, in_one_loop
from tests.peers import dial, free_port, until
from tests.udp.rig import Party, Served, echo, serving
from tests.upstream.servers import backends, refusing


def live(served: Served) -> list[int]:
    (group,) = served.forwarder.upstreams()
    return [server.live for server in group.servers]


@in_one_loop
async def test_a_udp_client_of_tcp_servers() -> None:
    dead = refusing()
    async with backends(1) as (up,):
        rule = f"127.0.0.1 0/udp @tcp\nupstream tcp 127.0.0.1 {dead}\nupstream tcp 127.0.0.1 {up.port}\n"
        async with serving(f"{rule}upstream tcp [balance=first]\n") as served:
            with Party() as client:
                assert await client.ask(b"hello", served.address) == b"hello"
                (record,) = served.forwarder.sessions()
                assert (record.group, record.server) == ("tcp", up.name)
                assert [(each.server, each.errno) for each in record.tries] == [
                    (f"127.0.0.1:{dead}", 111),
                    (up.name, 0),
                ]
                assert live(served) == [0, 1]
                served.forwarder.set_server("tcp", up.name, state="maint")
                await served.has_told(closed=1)
                assert served.closed[0].ending is Ending.DRAINED
                assert live(served) == [0, 0]


@in_one_loop
async def test_a_tcp_client_of_a_silent_udp_server_goes_on_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "SILENCE_S", 0.02)
    with Party() as mute, echo() as other:  # the first one never answers
        servers = "".join(f"upstream u 127.0.0.1 {each.address[1]}/udp\n" for each in (mute, other))
        async with serving(f"127.0.0.1 0 @u\n{servers}upstream u [balance=first]\n") as served:
            client = await dial(served.address)
            await client.send(b"hello")
            await until(lambda: live(served) == [1, 0])
            loop = asyncio.get_running_loop()
            asked = loop.time()
            await until(lambda: loop.time() > asked + 2 * silence.SILENCE_S)
            await client.send(b"hello")  # the first question after the patience is asked elsewhere
            assert await client.read(5) == b"hello"
            await until(lambda: live(served) == [0, 1])
            client.reset()
            await served.has_told(closed=1)
            assert served.closed[0].server == f"127.0.0.1:{other.address[1]}"
            assert live(served) == [0, 0]


@in_one_loop
async def test_a_tcp_client_of_a_udp_server_that_refuses() -> None:
    port = free_port()
    async with serving(f"127.0.0.1 0 @u\nupstream u 127.0.0.1 {port}/udp\n") as served:
        client = await dial(served.address)
        assert not await exchange(client)
        client.close()
        await served.has_told(closed=1)
        (group,) = served.forwarder.upstreams()
        assert (group.servers[0].failed, group.servers[0].live) == (1, 0)
