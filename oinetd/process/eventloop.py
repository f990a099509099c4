"""The event loop of the program: uvloop if it is installed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

__all__ = ["loop_factory"]

logger = logging.getLogger("oinetd")


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """The loop factory for `asyncio.Runner`: the event loop policy of the process is not changed."""
    try:
        import uvloop
    except ImportError:
        logger.warning("uvloop not installed; using asyncio")
        return asyncio.new_event_loop
    return uvloop.new_event_loop
