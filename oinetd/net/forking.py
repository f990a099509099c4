"""Closes the sockets of a forwarder in a child process, if the embedding program forks.

A peer sees the end of a connection only when its last descriptor is closed, and a child would keep all of them open.
`os.fork` and everything that uses it call `_in_child`; `subprocess` closes inherited descriptors itself.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import weakref
from collections.abc import Iterable
from typing import Protocol

from oinetd.net.poller import Poller

__all__ = ["Held"]

_WATCHED = re.compile(r"^tfd:\s+(\d+) .*\bino:([0-9a-f]+)", re.MULTILINE)


class Reactors(Protocol):
    """The native threads, which do not exist in a child."""

    def epolls(self) -> list[int]: ...
    def abandon(self) -> None: ...


class Held:
    """The descriptors of one forwarder that no child may keep: listening sockets, and those in its epolls."""

    def __init__(self, poller: Poller) -> None:
        self.listening: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self.reactors: Reactors | None = None
        self._poller = poller
        _living.add(self)
        if not _registered:
            _registered.append(True)
            os.register_at_fork(after_in_child=_in_child)

    def let_go(self) -> None:
        """Close everything; called in a child."""
        epolls = [*self._poller.epolls(), *(self.reactors.epolls() if self.reactors is not None else ())]
        _replace([sock.fileno() for sock in self.listening])
        for epoll in epolls:
            _replace(_watched_by(epoll))
        if self.reactors is not None:
            self.reactors.abandon()


_living: weakref.WeakSet[Held] = weakref.WeakSet()
_registered: list[bool] = []


def _in_child() -> None:
    for held in tuple(_living):
        with contextlib.suppress(OSError):
            held.let_go()


def _watched_by(epoll: int) -> list[int]:
    """The descriptors in an epoll that still refer to the registered files."""
    found = []
    with open(f"/proc/self/fdinfo/{epoll}", encoding="ascii") as file:
        for fd, inode in _WATCHED.findall(file.read()):
            with contextlib.suppress(OSError):
                if os.fstat(int(fd)).st_ino == int(inode, 16):
                    found.append(int(fd))
    return found


def _replace(descriptors: Iterable[int]) -> None:
    """Replace the descriptors by /dev/null: a later close of these numbers then hits no other file."""
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in descriptors:
        if fd >= 0:
            os.dup2(nothing, fd, inheritable=False)
    os.close(nothing)
