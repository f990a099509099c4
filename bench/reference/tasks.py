"""Two asyncio tasks per connection on uvloop, one for each direction."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import uvloop

from bench.reference.arguments import Address, listeners


async def pump(source: socket.socket, target: socket.socket, buffer_bytes: int) -> None:
    loop = asyncio.get_running_loop()
    buffer = bytearray(buffer_bytes)
    view = memoryview(buffer)
    while count := await loop.sock_recv_into(source, buffer):
        await loop.sock_sendall(target, view[:count])
    target.shutdown(socket.SHUT_WR)


async def serve(client: socket.socket, upstream_address: Address, buffer_bytes: int) -> None:
    upstream = socket.socket(client.family)
    with client, upstream, contextlib.suppress(OSError, ExceptionGroup):
        for end in (client, upstream):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(upstream, upstream_address)
        async with asyncio.TaskGroup() as both:
            both.create_task(pump(client, upstream, buffer_bytes))
            both.create_task(pump(upstream, client, buffer_bytes))


async def accept(listener: socket.socket, upstream_address: Address, buffer_bytes: int) -> None:
    loop = asyncio.get_running_loop()
    listener.setblocking(False)
    serving: set[asyncio.Task[None]] = set()
    while True:  # until the process is ended
        client, _ = await loop.sock_accept(listener)
        task = loop.create_task(serve(client, upstream_address, buffer_bytes))
        serving.add(task)
        task.add_done_callback(serving.discard)


async def main() -> None:
    buffer_bytes, rules = listeners()
    await asyncio.gather(*(accept(listener, address, buffer_bytes) for listener, address in rules))


if __name__ == "__main__":
    uvloop.run(main())
