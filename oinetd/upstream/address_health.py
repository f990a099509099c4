"""That an address of a destination fails, and that it works again: each is said once, with the address and the reason.

Both lanes and all listeners tell it here. An address that changes more often than once a second is told of once a
second, as it is then.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Callable
from typing import Final

__all__ = ["AddressHealth", "words_for"]

log = logging.getLogger("oinetd")

PAUSE_S: Final = 1.0
"""Least time between two lines about one address."""

_WORDS: Final = {
    errno.EINPROGRESS: "does not answer (another address was faster)",
    errno.ETIMEDOUT: "does not answer (timed out)",
    errno.ECONNREFUSED: "refuses connections (connection refused)",
    errno.EHOSTUNREACH: "cannot be reached (no route to host)",
    errno.ENETUNREACH: "cannot be reached (network is unreachable)",
}


def words_for(code: int) -> str:
    """What an address that fails with this errno does."""
    return _WORDS.get(code) or f"fails ({os.strerror(code).lower()})"


class _State:
    """One address: how it fails, 0 where it works; what was said of it last, and the timer until it may be again."""

    __slots__ = ("code", "said", "timer")

    def __init__(self) -> None:
        self.code = 0
        self.said = 0
        self.timer: asyncio.TimerHandle | None = None


class AddressHealth:
    """The addresses of one host, with their ports; `usable` says how many of a port there are."""

    def __init__(self, host: str, usable: Callable[[], int]) -> None:
        self._host = host
        self._usable = usable
        self._states: dict[tuple[str, int], _State] = {}
        self._stopped = False

    def failed(self, host: str, port: int, code: int) -> None:
        """An address does not take connections; `code` is the errno."""
        state = self._states.get((host, port))
        if self._stopped:
            return
        if state is None:
            state = self._states[host, port] = _State()
        if not state.code:
            state.code = code
            self._changed(host, port, state)

    def worked(self, host: str, port: int) -> None:
        """An address took a connection."""
        state = self._states.get((host, port))
        if state is not None and state.code:
            state.code = 0
            self._changed(host, port, state)

    def changed(self, host: str, port: int, code: int) -> None:
        """An address fails with an errno, or works again at 0."""
        if code:
            self.failed(host, port, code)
        else:
            self.worked(host, port)

    def forget(self, hosts: set[str]) -> None:
        """Only `hosts` are addresses of it any more."""
        for key, state in tuple(self._states.items()):
            if key[0] not in hosts:
                if state.timer is not None:
                    state.timer.cancel()
                del self._states[key]

    @property
    def failing(self) -> dict[tuple[str, int], int]:
        """The addresses that fail, with the errno of each."""
        return {key: state.code for key, state in self._states.items() if state.code}

    def _changed(self, host: str, port: int, state: _State) -> None:
        if state.timer is None:
            self._say(host, port, state)

    def _say(self, host: str, port: int, state: _State) -> None:
        """Say how it is now, where that is something new, and nothing more of this address for a while."""
        state.timer = None
        if bool(state.code) is bool(state.said):
            if not state.code:
                del self._states[host, port]
            return
        what = f"destination {self._host} {port}: "
        if host != self._host:
            what += f"{host} "
        if state.code:
            left = self._usable() - sum(at == port for _, at in self.failing)
            rest = f"; {_count(left)} left" if host != self._host else ""
            log.warning("%s%s%s", what, words_for(state.code), rest)
        else:
            log.info("%sworks again", what)
        state.said = state.code
        state.timer = asyncio.get_running_loop().call_later(PAUSE_S, self._say, host, port, state)

    def stop(self) -> None:
        """Say nothing more."""
        self._stopped = True
        for state in self._states.values():
            if state.timer is not None:
                state.timer.cancel()
        self._states.clear()


def _count(number: int) -> str:
    return "no address" if number <= 0 else "1 address" if number == 1 else f"{number} addresses"
