"""What became of a connect that was under way, asked so that nothing the peer has sent already is thrown away; and
whether a connection is still acknowledged.

A second connect(2) would answer as well. But on a connection that the peer has reset meanwhile it empties the receive
queue, and it cannot be told from one that was refused.
"""

from __future__ import annotations

import errno
import socket
import struct

__all__ = ["connect_result", "unacknowledged_s"]

_SYN_SENT, _SYN_RECV, _CLOSE = 2, 3, 7
"""States of linux/tcp_states.h, the first byte of struct tcp_info."""

_UNACKED_AT, _LAST_ACK_AT = 24, 56
"""Of tcpi_unacked and tcpi_last_ack_recv, in milliseconds, in struct tcp_info; 32 bits each."""


def connect_result(sock: socket.socket) -> int:
    """0 for a connection, EINPROGRESS where there is no answer yet, else the errno.

    ECONNRESET means that the peer took the connection and reset it without a word: one that refuses is ECONNREFUSED. A
    connection that the peer has reset after it sent something is a connection: its bytes are there to be read, and the
    reset comes behind them.
    """
    state = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    if state in (_SYN_SENT, _SYN_RECV):
        return errno.EINPROGRESS
    if state != _CLOSE:
        return 0
    try:
        sock.recv(1, socket.MSG_PEEK)  # bytes first, then the error: it stays where there are bytes, or a FIN
    except BlockingIOError:
        return errno.ECONNABORTED
    except OSError as error:
        return errno.ECONNRESET if error.errno == errno.EPIPE else error.errno or errno.EIO
    return 0


def unacknowledged_s(sock: socket.socket) -> float:
    """For how long the peer of a connection has acknowledged nothing while something was to be acknowledged; else 0.

    A peer that has no room acknowledges that it has none.
    """
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_ACK_AT + 4)
    (unacked,) = struct.unpack_from("=I", info, _UNACKED_AT)
    (last_ack_ms,) = struct.unpack_from("=I", info, _LAST_ACK_AT)
    return last_ack_ms / 1000 if unacked else 0.0
