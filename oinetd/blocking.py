"""A forwarder for programs without asyncio: it runs on a loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, TypeVar

from oinetd.core.hooks import Admit, Hook, ServerHook
from oinetd.core.record import SessionRecord
from oinetd.core.registry import Stats
from oinetd.core.router import RouteHook
from oinetd.core.tap import Tap
from oinetd.forwarder import Forwarder
from oinetd.model import Config, Rule
from oinetd.net.ports import BoundAddress

__all__ = ["BlockingForwarder"]

_T = TypeVar("_T")


class BlockingForwarder:
    """As `Forwarder`, with methods that may be called from any thread and wait for the answer.

    Hooks are called in the thread of the loop. Use it in `with`, or call `start` and `stop`.
    """

    def __init__(
        self,
        config: Config,
        *,
        admit: Admit | None = None,
        route: RouteHook | None = None,
        tap: Tap | None = None,
        on_open: Hook | None = None,
        on_close: Hook | None = None,
        on_server: ServerHook | None = None,
    ) -> None:
        self._forwarder = Forwarder(
            config, admit=admit, route=route, tap=tap, on_open=on_open, on_close=on_close, on_server=on_server
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> BlockingForwarder:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the thread, and begin to accept. Raises what `Forwarder.start` raises."""
        if self._thread is not None:
            raise RuntimeError("a BlockingForwarder starts once; make another one")
        started = threading.Event()
        failure: list[BaseException] = []

        async def serve() -> None:
            self._loop = asyncio.get_running_loop()
            try:
                await self._forwarder.start()
            except BaseException as error:
                failure.append(error)
                return
            finally:
                started.set()
            await self._forwarder.serve_forever()

        def run() -> None:
            with asyncio.Runner(loop_factory=_new_loop) as runner:
                runner.run(serve())

        self._thread = threading.Thread(target=run, name="oinetd", daemon=True)
        self._thread.start()
        started.wait()
        if failure:
            self._thread.join()
            self._loop = None
            raise failure[0]

    def stop(self) -> None:
        """Close the listeners, reset the sessions that are left, and end the thread."""
        if self._loop is not None and self._thread is not None and self._thread.is_alive():
            self._await(self._forwarder.stop())
            self._thread.join()
        self._loop = None

    def drain(self, timeout_s: float) -> int:
        """Accept no more, and wait for the sessions to end; the number of those that were cut. Then only `stop`."""
        return self._await(self._forwarder.drain(timeout_s))

    def reload(self, config: Config) -> None:
        """Put another configuration in force, or raise and leave everything as it was."""
        self._await(self._forwarder.reload(config))

    def add_rule(self, rule: Rule) -> None:
        """As `Forwarder.add_rule`."""
        self._await(self._forwarder.add_rule(rule))

    def remove_rule(self, rule: Rule) -> None:
        """As `Forwarder.remove_rule`."""
        self._await(self._forwarder.remove_rule(rule))

    def replace_rule(self, old: Rule, new: Rule) -> None:
        """As `Forwarder.replace_rule`."""
        self._await(self._forwarder.replace_rule(old, new))

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self._forwarder.config

    @property
    def addresses(self) -> tuple[BoundAddress, ...]:
        """Where it listens."""
        return self._call(lambda: self._forwarder.addresses)

    def sessions(self) -> list[SessionRecord]:
        """The live sessions, oldest first."""
        return self._call(self._forwarder.sessions)

    def kill(self, session_id: int) -> bool:
        """End one session; False if there is none with this id."""
        return self._call(lambda: self._forwarder.kill(session_id))

    def stats(self) -> Stats:
        """The counters since the start."""
        return self._call(self._forwarder.stats)

    def _call(self, function: Callable[[], _T]) -> _T:
        async def call() -> _T:
            return function()

        return self._await(call())

    def _await(self, work: Coroutine[Any, Any, _T]) -> _T:
        loop, thread = self._loop, self._thread
        if loop is None or thread is None or not thread.is_alive():
            work.close()
            raise RuntimeError("the forwarder is not running")
        if threading.current_thread() is thread:
            work.close()
            raise RuntimeError("a hook cannot call this: it would wait for itself")
        return asyncio.run_coroutine_threadsafe(work, loop).result()


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
