"""The result of a non-blocking connect, without losing data that the peer has sent already; and whether the peer still
acknowledges data.

A second connect(2) also returns the result. But if the peer has reset the connection meanwhile, it empties the receive
queue, and its error is the same as that of a refused connection.
"""

from __future__ import annotations

import errno
import socket
import sys

from oinetd.net.sockets import unsent_bytes

__all__ = ["connect_result", "unacknowledged_s"]

_SYN_SENT, _SYN_RECV, _CLOSE = 2, 3, 7
"""From linux/tcp_states.h; the first byte of struct tcp_info."""

_LAST_ACK_AT = 56
"""The offset of tcpi_last_ack_recv (milliseconds, 32 bits) in struct tcp_info."""


def connect_result(sock: socket.socket) -> int:
    """0 if connected, EINPROGRESS if there is no answer yet, else the errno.

    ECONNRESET means that the peer accepted the connection and reset it without sending data; a refusal is ECONNREFUSED.
    If the peer sent data before the reset, the result is 0: the data can be read, and the reset follows.
    """
    state = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    if state in (_SYN_SENT, _SYN_RECV):
        return errno.EINPROGRESS
    if state != _CLOSE:
        return 0
    try:
        sock.recv(1, socket.MSG_PEEK)  # data or a FIN comes first, and leaves the error for a later call
    except BlockingIOError:
        return errno.ECONNABORTED
    except OSError as error:
        return errno.ECONNRESET if error.errno == errno.EPIPE else error.errno or errno.EIO
    return 0


def unacknowledged_s(sock: socket.socket) -> float:
    """The time since the last acknowledgement if the send queue is not empty, else 0.

    A peer whose receive window is zero acknowledges the window probes. Bytes without a route count as well.
    """
    if not unsent_bytes(sock):
        return 0.0
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_ACK_AT + 4)
    return int.from_bytes(info[-4:], sys.byteorder) / 1000
