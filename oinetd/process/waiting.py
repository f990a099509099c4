"""Waiting for work that an event can end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

__all__ = ["unless"]


async def unless(event: asyncio.Event, work: Coroutine[Any, Any, object]) -> bool:
    """Await `work`, but cancel it if `event` is set first; whether it was done. Raises what `work` raises."""
    doing, waiting = asyncio.ensure_future(work), asyncio.ensure_future(event.wait())
    await asyncio.wait({doing, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    done = doing.done()
    doing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await doing
    return done
