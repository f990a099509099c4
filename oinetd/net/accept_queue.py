"""The accept queue of a listening socket: its length, and how to stop new connections from entering it."""

from __future__ import annotations

import socket
import sys

from oinetd.net.unix_sockets import UnixListener, has_clients

__all__ = ["queue_length", "stop_queueing"]

_SO_BINDTOIFINDEX = 62
_NO_INTERFACE = 0x7FFFFFFF
_TCPI_UNACKED = 24
"""The offset in struct tcp_info of linux/tcp.h; for a listening socket it is the length of the accept queue."""


def stop_queueing(sock: socket.socket) -> bool:
    """Stop new connections to a listening socket; its accept queue and running handshakes stay. Returns the success.

    New connections go to another listener on the port, if there is one. Without this, a connection that arrives between
    a look at the empty queue and the close would be reset. The socket is bound to an interface index that does not
    exist, which the kernel allows (Linux 5.0, without privilege 5.7); an older kernel keeps this gap. The file of a
    unix socket is removed.
    """
    if sock.family == socket.AF_UNIX:
        return isinstance(sock, UnixListener) and sock.remove_file()
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_BINDTOIFINDEX, _NO_INTERFACE)
    except OSError:
        return False
    return True


def queue_length(sock: socket.socket) -> int:
    """The number of connections in the accept queue of a listening socket; of a unix socket, 1 for any number."""
    if sock.family == socket.AF_UNIX:
        return int(has_clients(sock))
    return int.from_bytes(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCPI_UNACKED + 4)[-4:], sys.byteorder)
