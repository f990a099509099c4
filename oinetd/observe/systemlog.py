"""Datagrams to the system log without ever waiting for it in the thread that has something to say.

A message goes out at once where the system log takes it. Where it does not (its queue is full, it is being restarted),
the message is held, and a thread of its own waits for room; later messages queue behind it. What comes while
`HELD_MESSAGES_MAX` are held is left out, and the gap is told in its place: "N messages were left out".
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import threading
import time
from collections import deque
from typing import Final

__all__ = ["HELD_MESSAGES_MAX", "SystemLog"]

HELD_MESSAGES_MAX: Final = 4096
"""At most 8 MiB, each being a datagram of at most 2 KiB. The queue of the system log's socket has 10 to 512."""

SEND_WAIT_S: Final = 0.25
"""How long the thread waits in one call for room; also the time that `close` may be late."""

RETRY_S: Final = 0.25
"""Between two tries where the system log is not there."""

CLOSE_WAIT_S: Final = 2.0
"""How long `close` waits for what is held."""


class SystemLog:
    """Sends to the datagram socket at `address`. `gap_head` stands before the text of a message that tells of a gap."""

    def __init__(self, address: str, gap_head: bytes) -> None:
        self._address = address
        self._gap_head = gap_head
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._changed = threading.Condition()
        self._held: deque[bytes] = deque()
        self._left_out = 0  # behind the held ones
        self._thread: threading.Thread | None = None
        self._deadline: float | None = None  # of the end, once `close` was called

    def send(self, message: bytes) -> None:
        """Send, hold or leave out; never waits. After `close` it goes nowhere."""
        with self._changed:
            if self._deadline is not None:
                return
            if not self._held and not self._left_out and _sent(self._socket, message, self._address):
                return
            if len(self._held) >= HELD_MESSAGES_MAX:
                self._left_out += 1
                return
            self._tell_gap()
            self._held.append(message)
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="oinetd-syslog", daemon=True)
                with contextlib.suppress(RuntimeError):  # the limit of threads; the next message tries again
                    thread.start()
                    self._thread = thread
            self._changed.notify()

    def close(self) -> None:
        """Let what is held go out, within two seconds, and end; what could not go out is counted in a last message."""
        with self._changed:
            self._deadline = time.monotonic() + CLOSE_WAIT_S
            thread, self._thread = self._thread, None
            self._changed.notify()
        if thread is not None:
            thread.join()
        with self._changed:
            self._left_out += len(self._held)
            self._held.clear()
            self._tell_gap()
            for message in self._held:
                _sent(self._socket, message, self._address)
        self._socket.close()

    def _tell_gap(self) -> None:
        """Queue the word of what was left out, where something was; under the lock."""
        if self._left_out:
            noun = "message was" if self._left_out == 1 else "messages were"
            text = f"{self._left_out} {noun} left out: the system log did not take messages as fast as they came"
            self._held.append(self._gap_head + text.encode())
            self._left_out = 0

    def _run(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as patient:
            # Not `settimeout`: it would poll the socket, which is always ready, and spin.
            patient.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 0, int(SEND_WAIT_S * 1e6)))
            while (message := self._next()) is not None:
                if _sent(patient, message, self._address):
                    with self._changed:
                        self._held.popleft()

    def _next(self) -> bytes | None:
        """The message to be sent next, which stays in the queue; None is the end."""
        with self._changed:
            while not self._held:
                self._tell_gap()
                if not self._held:
                    if self._deadline is not None:
                        return None
                    self._changed.wait()
            if self._deadline is not None and time.monotonic() >= self._deadline:
                return None
            return self._held[0]


def _sent(sock: socket.socket, message: bytes, address: str) -> bool:
    """Whether the message is out of our hands. By address each time: a system log that was restarted is found again."""
    try:
        sock.sendto(message, address)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EINTR) and sock.getblocking():
            time.sleep(RETRY_S)  # on the thread; where there is room, the call itself has waited
        return error.errno == errno.EMSGSIZE
    return True
