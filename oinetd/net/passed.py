"""Descriptors that another process has opened and passed: which of them are listening sockets that can be served."""

from __future__ import annotations

import os
import socket
from typing import Final

from oinetd.net.options import IPPROTO_MPTCP
from oinetd.net.unix_sockets import UnixListener

__all__ = ["passed_listener"]

_KINDS: Final = {
    (socket.AF_UNIX, socket.SOCK_STREAM, 0),
    *(
        (family, kind, protocol)
        for family in (socket.AF_INET, socket.AF_INET6)
        for kind, protocol in (
            (socket.SOCK_STREAM, socket.IPPROTO_TCP),
            (socket.SOCK_STREAM, IPPROTO_MPTCP),
            (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
        )
    ),
}
"""Domain, type and protocol."""


def passed_listener(fd: int) -> socket.socket | None:
    """The socket `fd`, if it listens on TCP or on a unix stream, or is a bound UDP one; otherwise `fd` is closed.

    The file of a unix socket is another process's: it is never removed, and has its mode and owner.
    """
    try:
        listener = socket.socket(fileno=fd)
    except OSError:
        os.close(fd)
        return None
    if (listener.family, listener.type, listener.proto) in _KINDS and _serves(listener):
        if listener.family == socket.AF_UNIX:
            listener = UnixListener(fileno=listener.detach())
        listener.setblocking(False)
        return listener
    listener.close()
    return None


def _serves(sock: socket.socket) -> bool:
    """Whether clients can reach the socket."""
    if sock.type == socket.SOCK_DGRAM:
        return bool(sock.getsockname()[1])
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
