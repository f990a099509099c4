"""Notices the reset of a client that is not read yet, while the session waits for something else."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

from oinetd.net.poller import Poller, has_failed

__all__ = ["ClientWatch"]

PATIENCE_S = 0.1
"""What is over so soon costs no watch."""


class ClientWatch:
    """Calls `on_gone` when the client has reset its connection, until `close`. Its bytes and its FIN are legal."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, poller: Poller, client: socket.socket, on_gone: Callable[[], object]
    ) -> None:
        self._poller = poller
        self._client = client
        self._fd = client.fileno()
        self._on_gone = on_gone
        self._watching = False
        self._timer = loop.call_later(PATIENCE_S, self._begin)

    def close(self) -> None:
        """Watch no more."""
        self._timer.cancel()
        if self._watching:
            self._watching = False
            self._poller.forget(self._fd)

    def _begin(self) -> None:
        with contextlib.suppress(OSError):  # no room to watch it: its reset is noticed later
            self._poller.watch(self._fd, self._on_client)
            self._watching = True

    def _on_client(self, events: int) -> None:
        if has_failed(self._client, events):
            self.close()
            self._on_gone()
