"""What the engines in Python have in common: they know the relays that run."""

from __future__ import annotations

import asyncio
from typing import Protocol

from oinetd.core.record import RelayResult

__all__ = ["Running", "RunningRelays"]


class Running(Protocol):
    """A relay that can be begun and aborted; `done` gets its result."""

    done: asyncio.Future[RelayResult]

    def start(self) -> None: ...

    def abort(self) -> None:
        """End now; does nothing where it has ended."""
        ...


class RunningRelays:
    """The relays of one engine."""

    def __init__(self) -> None:
        self._relays: set[Running] = set()

    async def run(self, relay: Running) -> RelayResult:
        """Begin, and wait for the end; a cancelled relay is aborted."""
        self._relays.add(relay)
        try:
            relay.start()
            return await relay.done
        finally:
            relay.abort()
            self._relays.discard(relay)

    def abort_all(self) -> None:
        for relay in tuple(self._relays):
            relay.abort()
