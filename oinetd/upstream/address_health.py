"""Log lines about addresses of a destination: one when an address fails, with the reason, one when it works again.

Both lanes and all listeners report here. An address that changes often has at most one line each second.
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
"""Minimum time between two lines about one address."""

_WORDS: Final = {
    errno.EINPROGRESS: "does not answer (another address was faster)",
    errno.ETIMEDOUT: "does not answer (timed out)",
    errno.ECONNREFUSED: "refuses connections (connection refused)",
    errno.EHOSTUNREACH: "cannot be reached (no route to host)",
    errno.ENETUNREACH: "cannot be reached (network is unreachable)",
}


def words_for(code: int) -> str:
    """The text for an address that fails with this errno."""
    return _WORDS.get(code) or f"fails ({os.strerror(code).lower()})"


class _State:
    """One address: its errno, 0 if it works; the errno logged last; the timer until the next line is allowed."""

    __slots__ = ("code", "said", "timer")

    def __init__(self) -> None:
        self.code = 0
        self.said = 0
        self.timer: asyncio.TimerHandle | None = None


class AddressHealth:
    """The addresses of one host, with their ports; `usable` returns the number of addresses."""

    def __init__(self, host: str, usable: Callable[[], int]) -> None:
        self._host = host
        self._usable = usable
        self._states: dict[tuple[str, int], _State] = {}
        self._stopped = False
        self.told_by_group = False
        """Whether the destination is a server of a group, which tells the state of an address itself."""

    def failed(self, host: str, port: int, code: int) -> None:
        """An address failed; `code` is the errno."""
        state = self._states.get((host, port))
        if self._stopped:
            return
        if state is None:
            state = self._states[host, port] = _State()
        if not state.code:
            state.code = code
            self._changed(host, port, state)

    def worked(self, host: str, port: int) -> None:
        """An address accepted a connection."""
        state = self._states.get((host, port))
        if state is not None and state.code:
            state.code = 0
            self._changed(host, port, state)

    def changed(self, host: str, port: int, code: int) -> None:
        """An address failed with an errno, or works again if `code` is 0."""
        if code:
            self.failed(host, port, code)
        else:
            self.worked(host, port)

    def forget(self, hosts: set[str]) -> None:
        """Keep only the addresses in `hosts`."""
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
        """Log the state if it has changed, and nothing more about this address for a while."""
        state.timer = None
        if self.told_by_group and host == self._host:
            state.said = state.code
        if bool(state.code) is bool(state.said):
            if not state.code:
                del self._states[host, port]
            return
        what = f"destination {self._host} {port}: " if port else f"destination {self._host}: "
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
        """Log nothing more."""
        self._stopped = True
        for state in self._states.values():
            if state.timer is not None:
                state.timer.cancel()
        self._states.clear()


def _count(number: int) -> str:
    return "no address" if number <= 0 else "1 address" if number == 1 else f"{number} addresses"
