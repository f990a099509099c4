"""Resolves names in threads, so that a slow name server blocks neither the loop nor other names.

getaddrinfo blocks and cannot be cancelled. So each lookup has a daemon thread, which the exit of the process does not
wait for; the loop's default executor is left to the program. Callers that ask for the same name share one lookup. At
most `THREADS_MAX` lookups run at a time and the others queue. A lookup that takes longer than `SLOW_S` is no longer
counted, so that silent name servers do not delay other names.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import time
from collections import deque
from typing import Final

from oinetd.net.sockets import Address, is_numeric, lookup

__all__ = ["Resolver", "is_temporary", "resolve"]

THREADS_MAX: Final = 32
"""Running lookups, without slow ones."""
THREADS_TOTAL_MAX: Final = 256
"""Running lookups, with slow ones."""
SLOW_S: Final = 2.0
"""A lookup that takes longer waits for a silent name server (the C library tries for 5 s and more)."""
LOOK_S: Final = 0.25
"""How often a caller checks whether a queued lookup can start."""
GIVE_UP_S: Final = 15.0
"""The timeout of a caller. The thread goes on, and its answer is used by later callers for the same name."""
ABANDONED_S: Final = 60.0
"""A lookup of this age is assumed never to end: the next one for its name gets a new thread."""

_PERMANENT: Final = frozenset({
    socket.EAI_NONAME, socket.EAI_NODATA, socket.EAI_FAIL, socket.EAI_FAMILY, socket.EAI_ADDRFAMILY,
    socket.EAI_SERVICE, socket.EAI_SOCKTYPE, socket.EAI_BADFLAGS,
})  # fmt: skip


def is_temporary(error: OSError) -> bool:
    """Whether a lookup that failed with `error` may succeed later: no answer from the name server, or out of memory."""
    return not isinstance(error, socket.gaierror) or error.errno not in _PERMANENT


class _Lookup:
    """One lookup, running or queued (`began` is 0 then), and its waiters, each with its loop."""

    __slots__ = ("began", "host", "waiters")

    def __init__(self, host: str) -> None:
        self.host = host
        self.began = 0.0
        self.waiters: dict[asyncio.Future[tuple[Address, ...]], asyncio.AbstractEventLoop] = {}


class Resolver:
    """All lookups of a process; may be used from several threads and loops."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all lookups: their threads do not exist in a forked child."""
        self._lock = threading.Lock()
        self._current: dict[str, _Lookup] = {}
        self._running: set[_Lookup] = set()
        self._queue: deque[_Lookup] = deque()

    async def resolve(self, host: str, patience_s: float = GIVE_UP_S) -> tuple[Address, ...]:
        """All addresses of `host`, in the order of the system's resolver; an address is returned as it is.

        Raises `OSError` (`socket.gaierror` if the name has none); see `is_temporary`. No answer within `patience_s` is
        a temporary failure.
        """
        if is_numeric(host):
            return lookup(host)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[tuple[Address, ...]] = loop.create_future()
        wanted = self._enter(host, answer, loop)
        give_up = loop.time() + patience_s
        try:
            while not answer.done() and (left_s := give_up - loop.time()) > 0:
                self._begin()
                await asyncio.wait({answer}, timeout=min(left_s, LOOK_S))
        finally:
            self._leave(wanted, answer)
            answer.cancel()  # does nothing if it is done
        if answer.cancelled():
            raise socket.gaierror(socket.EAI_AGAIN, f"no answer from the name server within {patience_s:g} s")
        return answer.result()

    def _enter(
        self, host: str, answer: asyncio.Future[tuple[Address, ...]], loop: asyncio.AbstractEventLoop
    ) -> _Lookup:
        with self._lock:
            found = self._current.get(host)
            if found is None or (found.began and time.monotonic() - found.began >= ABANDONED_S):
                found = self._current[host] = _Lookup(host)
                self._queue.append(found)
            found.waiters[answer] = loop
            return found

    def _leave(self, wanted: _Lookup, answer: asyncio.Future[tuple[Address, ...]]) -> None:
        with self._lock:
            wanted.waiters.pop(answer, None)
            if not wanted.waiters and wanted.began == 0:
                self._queue.remove(wanted)
                self._drop(wanted)

    def _begin(self) -> None:
        """Start as many queued lookups as the limits allow."""
        while (wanted := self._next()) is not None:
            name = f"oinetd lookup {wanted.host}"
            try:
                threading.Thread(target=self._work, args=(wanted,), name=name, daemon=True).start()
            except RuntimeError as error:  # the limit of threads is reached
                self._settle(wanted, OSError(0, f"cannot start a thread for the lookup: {error}"))

    def _next(self) -> _Lookup | None:
        with self._lock:
            now = time.monotonic()
            quick = sum(now - each.began < SLOW_S for each in self._running)
            if not self._queue or quick >= THREADS_MAX or len(self._running) >= THREADS_TOTAL_MAX:
                return None
            wanted = self._queue.popleft()
            wanted.began = now
            self._running.add(wanted)
            return wanted

    def _work(self, wanted: _Lookup) -> None:
        """The body of a thread: this lookup, then queued ones."""
        following: _Lookup | None = wanted
        while following is not None:
            try:
                answer: tuple[Address, ...] | OSError = lookup(following.host)
            except OSError as error:
                answer = error
            except Exception as error:  # the waiters need an answer in any case
                answer = OSError(0, f"the lookup failed: {error!r}")
            self._settle(following, answer)
            following = self._next()

    def _settle(self, wanted: _Lookup, answer: tuple[Address, ...] | OSError) -> None:
        with self._lock:
            self._running.discard(wanted)
            self._drop(wanted)
            waiters, wanted.waiters = wanted.waiters, {}
        for future, loop in waiters.items():
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(_set_answer, future, answer)

    def _drop(self, wanted: _Lookup) -> None:
        if self._current.get(wanted.host) is wanted:
            del self._current[wanted.host]


def _set_answer(future: asyncio.Future[tuple[Address, ...]], answer: tuple[Address, ...] | OSError) -> None:
    if future.done():
        return
    if isinstance(answer, OSError):
        future.set_exception(answer)
    else:
        future.set_result(answer)


_resolver = Resolver()
os.register_at_fork(after_in_child=_resolver.reset)


async def resolve(host: str, patience_s: float = GIVE_UP_S) -> tuple[Address, ...]:
    """`Resolver.resolve` of the one resolver of the process."""
    return await _resolver.resolve(host, patience_s)
