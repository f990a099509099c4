"""One relay under test: an engine between two TCP connections whose far ends the test holds."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from oinetd.core.engine import Engine, Meter
from oinetd.core.record import RelayResult
from oinetd.core.tap import Direction
from oinetd.lanes.native.engine import NativeEngine
from oinetd.lanes.native.plane import Hub, available
from oinetd.lanes.python.relay import PortableEngine
from oinetd.lanes.python.tapped import TappedEngine
from oinetd.model import RelayMode, Settings
from oinetd.net.poller import Poller
from oinetd.net.sockets import tune
from tests.peers import Peer, tcp_pair


@dataclass
class Relaying:
    """`client` and `upstream` are the far ends; `task` is the engine at work between them."""

    client: Peer
    upstream: Peer
    task: asyncio.Task[RelayResult]
    meter: Meter


@dataclass
class Rig:
    """Starts relays on one engine."""

    engine: Engine
    settings: Settings

    @contextlib.asynccontextmanager
    async def relay(self, *, receive_bytes: int = 0, **settings: Any) -> AsyncIterator[Relaying]:
        """A running relay; aborted where it has not ended. `receive_bytes` makes every kernel buffer small."""
        client, client_near = tcp_pair(receive_bytes)
        upstream, upstream_near = tcp_pair(receive_bytes)
        for near in (client_near, upstream_near):
            tune(near, self.settings.keepalive)  # as the listener and the dialer do
            if receive_bytes:
                near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, receive_bytes)
                near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        meter = Meter()
        if isinstance(self.engine, TappedEngine):
            meter.tap = _now_or_later()
        task = asyncio.get_running_loop().create_task(
            self.engine.relay(client_near, upstream_near, replace(self.settings, **settings), meter)
        )
        relaying = Relaying(Peer(client), Peer(upstream), task, meter)
        try:
            yield relaying
        finally:
            if not task.done():
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            assert client_near.fileno() == upstream_near.fileno() == -1, "the engine owns both sockets, to the end"
            relaying.client.close()
            relaying.upstream.close()


def _now_or_later() -> Callable[[Direction, bytes], Any]:
    """A hook that changes nothing: some bytes pass at once, others later, some as another object."""
    turns = itertools.count()

    def tap(direction: Direction, data: bytes) -> Any:
        turn = next(turns) % 3
        return None if turn == 0 else bytes(bytearray(data)) if turn == 1 else asyncio.sleep(0, data)

    return tap


Factory = Callable[[], contextlib.AbstractAsyncContextManager[Rig]]


def portable(buffer_bytes: int) -> Factory:
    """The Python engine with buffers of this size; every buffer has to be back in the pool at the end."""

    @contextlib.asynccontextmanager
    async def make() -> AsyncIterator[Rig]:
        loop = asyncio.get_running_loop()
        poller = Poller(loop)
        engine = PortableEngine(loop, poller)
        try:
            yield Rig(engine, Settings(buffer_bytes=buffer_bytes))
        finally:
            await engine.close()
            poller.close()
        assert engine.buffers.taken == 0

    return make


@contextlib.asynccontextmanager
async def tapped() -> AsyncIterator[Rig]:
    """The Python engine of programs that have a byte hook."""
    loop = asyncio.get_running_loop()
    poller = Poller(loop)
    tasks: set[asyncio.Task[None]] = set()
    engine = TappedEngine(loop, poller, tasks)
    try:
        yield Rig(engine, Settings())
    finally:
        await engine.close()
        await asyncio.gather(*tasks, return_exceptions=True)
        poller.close()
    assert engine.buffers.taken == 0


def native(relay: RelayMode, *, flip_bytes: int = 0, move_turns: int = 0) -> Factory:
    """The native engine; with `flip_bytes` it changes between copy and splice every so many bytes.

    With `move_turns` a connection changes its reactor after this many turns.
    """

    @contextlib.asynccontextmanager
    async def make() -> AsyncIterator[Rig]:
        if reason := available():
            pytest.skip(reason)
        plane = Hub(asyncio.get_running_loop(), threads=3, flip_bytes=flip_bytes, move_turns=move_turns)
        engine = NativeEngine(plane)
        try:
            yield Rig(engine, Settings(relay=relay))
        finally:
            await engine.close()
            await plane.close()

    return make


ENGINES: dict[str, Factory] = {
    "native-auto": native(RelayMode.AUTO),
    "native-copy": native(RelayMode.COPY),
    "native-flip": native(RelayMode.AUTO, flip_bytes=997),
    "native-move": native(RelayMode.AUTO, move_turns=1),
    "native-move-flip": native(RelayMode.AUTO, flip_bytes=997, move_turns=3),
    "native-splice": native(RelayMode.SPLICE),
    "python-64K": portable(64 * 1024),
    "python-8K": portable(8 * 1024),
    "python-7": portable(7),
    "python-tapped": tapped,
}
"""Every engine and every mode in which it has to keep the contract. Seven bytes make every chunk a partial one."""
