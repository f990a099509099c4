"""The thread in which an upgrade waits for the other process.

It is there before anything is handed over: on a machine that has no thread or memory left for another one, an upgrade
would end in the middle.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Self, TypeVar

__all__ = ["UpgradeThread"]

_T = TypeVar("_T")


class UpgradeThread:
    """Makes one call at a time, until `close`."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool

    @classmethod
    async def start(cls) -> Self:
        """Raises `OSError` if there can be no further thread."""
        pool = ThreadPoolExecutor(1, "upgrade")  # which starts none later
        try:
            await asyncio.wrap_future(pool.submit(int))
        except RuntimeError:
            raise OSError(errno.EAGAIN, "no thread can be started") from None
        return cls(pool)

    async def call(self, function: Callable[..., _T], *words: object) -> _T:
        """What the function returns or raises."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *words)

    def close(self) -> None:
        """End the thread after the last call; nobody waits for it."""
        self._pool.shutdown(wait=False)
