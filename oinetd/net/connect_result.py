"""What became of a connect that was under way: asked so that nothing the peer has sent already is thrown away.

A second connect(2) would answer as well. But on a connection that the peer has reset meanwhile it empties the receive
queue, and it cannot be told from one that was refused.
"""

from __future__ import annotations

import errno
import socket

__all__ = ["connect_result"]

_SYN_SENT, _SYN_RECV, _CLOSE = 2, 3, 7
"""States of linux/tcp_states.h, the first byte of struct tcp_info."""


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
