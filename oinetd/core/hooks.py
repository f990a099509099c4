"""The hooks of an embedding program: what they raise is logged, and what they leave to be awaited is awaited.

A hook is called amid the accounting of sessions, often of a whole batch of them. Nothing that it raises may end that:
a session whose end is not reported would be counted as live for ever.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import TypeAlias, TypeVar

from oinetd.core.record import SessionRecord
from oinetd.upstream.member import ServerStatus

__all__ = ["Admit", "Hook", "Hooks", "ServerHook"]

log = logging.getLogger("oinetd")

Hook: TypeAlias = Callable[[SessionRecord], object]
ServerHook: TypeAlias = Callable[[ServerStatus], object]
Admit: TypeAlias = Callable[[SessionRecord], Awaitable[bool]]

_Told = TypeVar("_Told", SessionRecord, ServerStatus)

LAST_HOOKS_S = 10.0
"""How long `close` waits for hooks that are coroutines."""


class Hooks:
    """`on_open`, `on_close` and `on_server`, each of them perhaps None, a function or a coroutine function."""

    def __init__(self, on_open: Hook | None, on_close: Hook | None, on_server: ServerHook | None = None) -> None:
        self._on_open = on_open
        self._on_close = on_close
        self._on_server = on_server
        self._opening: dict[int, asyncio.Task[None]] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._watchers: list[tuple[Hook, Hook, ServerHook | None]] = []

    def __bool__(self) -> bool:
        """Whether somebody wants to hear of sessions."""
        return bool(self._on_open or self._on_close or self._watchers)

    def watch(self, opened: Hook, closed: Hook, server: ServerHook | None = None) -> Callable[[], None]:
        """Call these functions, too, until the result is called."""
        watcher = (opened, closed, server)
        self._watchers.append(watcher)
        return lambda: self._watchers.remove(watcher)

    def opened(self, record: SessionRecord) -> None:
        """A session was admitted."""
        for watcher in self._watchers:
            self._call(watcher[0], record, None)
        if self._on_open is not None:
            task = self._call(self._on_open, record, None)
            if task is not None:
                self._opening[record.id] = task
                task.add_done_callback(lambda _: self._opening.pop(record.id, None))

    def closed(self, record: SessionRecord) -> None:
        """A session ended, or was refused."""
        for watcher in self._watchers:
            self._call(watcher[1], record, None)
        if self._on_close is not None:
            self._call(self._on_close, record, self._opening.get(record.id))

    def server_changed(self, status: ServerStatus) -> None:
        """The state of a server has changed."""
        for watcher in self._watchers:
            if watcher[2] is not None:
                self._call(watcher[2], status, None)
        if self._on_server is not None:
            self._call(self._on_server, status, None)

    async def wait(self, timeout_s: float) -> set[asyncio.Task[None]]:
        """Wait for hooks that are coroutines, but for the one that waits here; those that have not ended in time."""
        waiting = self._running - {asyncio.current_task()}
        if not waiting:
            return set()
        _, late = await asyncio.wait(waiting, timeout=max(0.0, timeout_s))
        return late

    async def close(self) -> None:
        """Wait for hooks that are coroutines, and cancel what has not ended after `LAST_HOOKS_S`."""
        late = await self.wait(LAST_HOOKS_S)
        if late:
            log.error("%d hooks have not ended within %g s: cancelled", len(late), LAST_HOOKS_S)
            for task in late:
                task.cancel()
            await asyncio.wait(late)

    def _call(
        self, hook: Callable[[_Told], object], record: _Told, after: asyncio.Task[None] | None
    ) -> asyncio.Task[None] | None:
        """Call a hook; the task of what it leaves to be awaited, which is awaited after `after`."""
        try:
            result = hook(record)
            if not inspect.isawaitable(result):
                return None
            task = asyncio.get_running_loop().create_task(_finish(result, record, after))
        except (KeyboardInterrupt, SystemExit) as error:
            # Not ours to keep: the loop gets it, once the accounting is done.
            asyncio.get_running_loop().call_soon(_raise, error)
            return None
        except BaseException:
            log.exception("a hook failed for %s", _subject(record))
            return None
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task


def _subject(told: SessionRecord | ServerStatus) -> str:
    return f"session {told.id}" if isinstance(told, SessionRecord) else f"server {told.name} of the group {told.group}"


async def _finish(
    result: Awaitable[object], record: SessionRecord | ServerStatus, after: asyncio.Task[None] | None
) -> None:
    task = asyncio.current_task()
    try:
        if after is not None and not after.done():
            await asyncio.wait([after])
        await result
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
        log.exception("a hook failed for %s", _subject(record))
    finally:
        if inspect.iscoroutine(result):
            result.close()  # if it was not begun


def _raise(error: BaseException) -> None:
    raise error
