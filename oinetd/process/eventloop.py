"""The event loop of the program: uvloop where it is installed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

__all__ = ["loop_factory"]

logger = logging.getLogger("oinetd")


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes the loop, for `asyncio.Runner`: the policy of the process stays as it is."""
    try:
        import uvloop
    except ImportError:
        logger.warning("uvloop is not installed: plain asyncio serves")
        return asyncio.new_event_loop
    return uvloop.new_event_loop
