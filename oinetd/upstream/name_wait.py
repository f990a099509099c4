"""Waits for the first addresses of names, as long as the client is connected."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from oinetd.model import Settings
from oinetd.net.poller import Poller, has_failed
from oinetd.upstream.destination import Destination

__all__ = ["SHORT_MAX_S", "wait_for_names"]

SHORT_MAX_S = 10.0
"""The longest wait for a descriptor or a name, without a connect timeout."""


async def wait_for_names(
    poller: Poller, names: tuple[Destination | None, ...], settings: Settings, client: socket.socket | None
) -> bool:
    """Wait for the first addresses of names that have none, at most for the connect timeout.

    False if the client has disconnected.
    """
    unresolved = [name for name in names if name is not None and not name.resolved]
    if not unresolved:
        return True
    loop = asyncio.get_running_loop()
    gone = loop.create_future()
    timeout_s = settings.connect_timeout_s or SHORT_MAX_S
    resolving = loop.create_task(_resolve(unresolved, timeout_s))
    watched = False

    def on_client(events: int) -> None:
        if client is not None and has_failed(client, events) and not gone.done():
            gone.set_result(None)

    try:
        if client is not None:
            with contextlib.suppress(OSError):  # epoll is out of memory: wait without watching the client
                poller.watch(client.fileno(), on_client)
                watched = True
        await asyncio.wait({resolving, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        resolving.cancel()
        if watched and client is not None:
            poller.forget(client.fileno())
    return not gone.done()


async def _resolve(names: list[Destination], timeout_s: float) -> None:
    """Wait for all of them. A task of its own: a `gather` that is cancelled and not awaited logs a traceback."""
    await asyncio.gather(*(name.wait_resolved(timeout_s) for name in names))
