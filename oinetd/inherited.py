"""Listening sockets that the service manager has opened: the protocol of sd_listen_fds(3)."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import MutableMapping
from typing import Final

__all__ = ["inherited_sockets"]

FIRST_FD: Final = 3
"""SD_LISTEN_FDS_START: behind standard input, output and error."""

logger = logging.getLogger("oinetd")


def inherited_sockets(environ: MutableMapping[str, str], pid: int) -> tuple[socket.socket, ...]:
    """The listening TCP sockets and bound UDP sockets that were passed to the process `pid`, which the caller now owns.

    The variables are removed from `environ`. What is neither is closed, with a warning: a relay could do nothing with
    it.
    """
    meant_for, count, names = (environ.pop(f"LISTEN_{part}", "") for part in ("PID", "FDS", "FDNAMES"))
    if meant_for != str(pid) or not count.isdecimal():
        return ()
    labels = names.split(":") if names else []
    found = []
    for position, fd in enumerate(range(FIRST_FD, FIRST_FD + int(count))):
        label = labels[position] if position < len(labels) else "unknown"
        try:
            os.set_inheritable(fd, False)
        except OSError as error:
            logger.warning("inherited descriptor %d (%s): %s", fd, label, error.strerror)
            continue
        if (listener := _listener(fd)) is not None:
            found.append(listener)
        else:
            logger.warning(
                "inherited descriptor %d (%s) is neither a listening TCP socket nor a bound UDP one: closed", fd, label
            )
    return tuple(found)


def _listener(fd: int) -> socket.socket | None:
    """The socket `fd`, if it is a listening TCP socket or a bound UDP one; otherwise `fd` is closed."""
    try:
        listener = socket.socket(fileno=fd)
    except OSError:
        os.close(fd)
        return None
    if listener.family in (socket.AF_INET, socket.AF_INET6) and _serves(listener):
        listener.setblocking(False)
        return listener
    listener.close()
    return None


def _serves(sock: socket.socket) -> bool:
    """Whether clients can reach the socket."""
    if sock.type == socket.SOCK_DGRAM:
        return bool(sock.getsockname()[1])
    return sock.type == socket.SOCK_STREAM and bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
