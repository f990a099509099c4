"""The socket pair between the two processes of an upgrade. Calls wait, so they are made in a thread."""

from __future__ import annotations

import array
import contextlib
import errno
import math
import os
import socket
import time
from types import TracebackType
from typing import Final, Self

from oinetd.upgrade.frames import DESCRIPTORS_MAX, HEADER_BYTES, BadFrame, Frame, Header

__all__ = ["Channel", "ChannelClosed", "close_all"]

PIECE_BYTES: Final = 1 << 18
END_WAIT_S: Final = 2.0
TOO_MANY_PAUSE_S: Final = 0.01
"""Between two tries while too many descriptors are in flight (ETOOMANYREFS)."""


class ChannelClosed(Exception):
    """The other process has gone, or said nothing for too long."""


def close_all(descriptors: tuple[int, ...] | list[int]) -> None:
    """Close descriptors that nobody wants."""
    for fd in descriptors:
        with contextlib.suppress(OSError):
            os.close(fd)


class Channel:
    """Frames over `sock`, a connected unix stream socket, which it owns. `timeout_s` bounds each wait, if given."""

    def __init__(self, sock: socket.socket, timeout_s: float | None) -> None:
        self.sock = sock
        sock.settimeout(timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; a call that waits in another thread ends."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()

    def send(self, frame: Frame) -> None:
        """Send a frame; its descriptors stay open here. Raises `ChannelClosed`."""
        header, rest = frame.encode()
        ancillary = []
        if frame.descriptors:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", frame.descriptors))]
        patience_s = self.sock.gettimeout()
        deadline = math.inf if patience_s is None else time.monotonic() + patience_s
        try:
            while True:
                try:
                    sent = self.sock.sendmsg([header], ancillary)
                    break
                except OSError as error:
                    if error.errno != errno.ETOOMANYREFS or time.monotonic() >= deadline:
                        raise
                    time.sleep(TOO_MANY_PAUSE_S)
            self.sock.sendall(header[sent:] + rest)
        except OSError as error:
            raise ChannelClosed(f"the other process is gone: {error}") from None

    def receive(self) -> Frame:
        """The next frame; its descriptors are the caller's. Raises `ChannelClosed` or `BadFrame`."""
        descriptors: list[int] = []
        try:
            data = self._header(descriptors)
            header = Header.read(data)
            body = self._exactly(header.document_bytes + header.data_bytes)
            return Frame.decode(header, body, tuple(descriptors))
        except OSError as error:
            close_all(descriptors)
            raise ChannelClosed(f"the other process is gone: {error}") from None
        except BaseException:
            close_all(descriptors)
            raise

    def receive_late(self) -> Frame | None:
        """The frame after `done`; None if the other process has none or has gone. Waits some seconds at most.

        That process has told the service manager then which process is the main one.
        """
        try:
            self.sock.settimeout(END_WAIT_S)
            return self.receive()
        except (OSError, ChannelClosed, BadFrame):
            return None

    def _header(self, descriptors: list[int]) -> bytes:
        data = b""
        room = socket.CMSG_SPACE(DESCRIPTORS_MAX * array.array("i").itemsize)
        while len(data) < HEADER_BYTES:
            part, ancillary, flags, _ = self.sock.recvmsg(HEADER_BYTES - len(data), room, socket.MSG_CMSG_CLOEXEC)
            for level, kind, content in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    numbers = array.array("i")
                    numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
                    descriptors.extend(numbers)
            if flags & socket.MSG_CTRUNC:
                raise BadFrame("descriptors were lost: the limit of this process is too low")
            if not part:
                raise ChannelClosed("the other process has closed the channel")
            data += part
        return data

    def _exactly(self, count: int) -> bytes:
        parts = []
        while count:
            part = self.sock.recv(min(count, PIECE_BYTES))
            if not part:
                raise ChannelClosed("the other process has closed the channel")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)
