"""Datagrams to the system log. The thread that logs never waits.

A message is sent at once if the system log accepts it. If not (its queue is full, it is being restarted), the message
is queued, and a thread waits for room; later messages queue behind it. When `HELD_MESSAGES_MAX` are queued, further
ones are dropped, and a message in their place has their number.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import threading
import time
from collections import deque
from typing import Final

__all__ = ["HELD_MESSAGES_MAX", "SystemLog"]

HELD_MESSAGES_MAX: Final = 4096
"""At most 8 MiB: a message has at most 2 KiB. The queue of the system log's own socket has 10 to 512."""

SEND_WAIT_S: Final = 0.25
"""How long one call of the thread waits for room; `close` may be late by this time."""

RETRY_S: Final = 0.25
"""Between two tries while there is no system log."""

CLOSE_WAIT_S: Final = 2.0
"""How long `close` waits for queued messages; it does not if this machine never had a system log (a container)."""


class SystemLog:
    """Sends to the datagram socket at `address`. A message about dropped ones is between `gap_head` and `gap_tail`."""

    def __init__(self, address: str, gap_head: bytes, gap_tail: bytes = b"") -> None:
        self._address = address
        self._gap_head = gap_head
        self._gap_tail = gap_tail
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._changed = threading.Condition()
        self._held: deque[bytes] = deque()
        self._dropped = 0  # since the last queued message
        self._thread: threading.Thread | None = None
        self._reached = False  # whether it ever took a message
        self._deadline: float | None = None  # set by `close`

    def send(self, message: bytes) -> None:
        """Send, queue or drop; never waits. After `close` it does nothing."""
        with self._changed:
            if self._deadline is not None:
                return
            if not self._held and not self._dropped and not _send(self._socket, message, self._address):
                self._reached = True
                return
            if len(self._held) >= HELD_MESSAGES_MAX:
                self._dropped += 1
                return
            self._report_dropped()
            self._held.append(message)
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="oinetd-syslog", daemon=True)
                with contextlib.suppress(RuntimeError):  # the limit of threads; the next message tries again
                    thread.start()
                    self._thread = thread
            self._changed.notify()

    def close(self) -> None:
        """Send what is queued, within two seconds; a last message counts what could not be sent."""
        with self._changed:
            may_come = self._reached or os.path.exists(self._address)
            self._deadline = time.monotonic() + (CLOSE_WAIT_S if may_come else 0.0)
            thread, self._thread = self._thread, None
            self._changed.notify()
        if thread is not None:
            thread.join()
        with self._changed:
            self._dropped += len(self._held)
            self._held.clear()
            self._report_dropped()
            for message in self._held:
                _send(self._socket, message, self._address)
        self._socket.close()

    def _report_dropped(self) -> None:
        """Queue a message with the number of dropped messages, if there are any; under the lock."""
        if self._dropped:
            text = f"system log too slow: {self._dropped} message{'s' * (self._dropped > 1)} dropped"
            self._held.append(self._gap_head + text.encode() + self._gap_tail)
            self._dropped = 0

    def _run(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as patient:
            # Not `settimeout`, which polls first: this socket is always writable, so it would spin.
            patient.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 0, int(SEND_WAIT_S * 1e6)))
            while (message := self._next()) is not None:
                failure = _send(patient, message, self._address)
                with self._changed:
                    if not failure:
                        self._reached = True
                        self._held.popleft()
                    elif failure not in (errno.EAGAIN, errno.EINTR):  # with EAGAIN the call itself has waited
                        self._changed.wait_for(self._is_over, RETRY_S)

    def _next(self) -> bytes | None:
        """The next message, which stays in the queue; None at the end."""
        with self._changed:
            while not self._held:
                self._report_dropped()
                if not self._held:
                    if self._deadline is not None:
                        return None
                    self._changed.wait()
            return None if self._is_over() else self._held[0]

    def _is_over(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline


def _send(sock: socket.socket, message: bytes, address: str) -> int:
    """0 if the message is done with, else the errno. It is sent by address: a restarted system log gets it, too."""
    try:
        sock.sendto(message, address)
    except OSError as error:
        return 0 if error.errno == errno.EMSGSIZE else error.errno or errno.EIO
    return 0
