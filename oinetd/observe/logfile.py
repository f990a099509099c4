"""One file that takes lines at its end: no line of it stays a half.

A file may take a part of a line: the disk was full, the size limit reached. The rest of this line is written before
anything else. Where the file is given up before, the part is cut off, and the caller has the line back.

Nothing here is thread-safe, and every call may wait for the disk.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import stat
from collections.abc import Iterator, Sequence
from typing import Final

from oinetd.core.safe_open import open_to_append

__all__ = ["LogFile"]

NEW_FILE_MODE: Final = 0o640
"""The log says who spoke to whom: it is not for everybody's eyes."""

_KEPT_AFTER: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EAGAIN})
"""After these the descriptor is still good, and a line that was begun can be completed on it."""


class LogFile:
    """Appends to `target`: a path, or an open descriptor, which is used as it is and never closed.

    `begun` is the line of which the file has a part, None where there is none. `outdated` says that the file has lost
    its name and the one that has the name now could not be opened.
    """

    def __init__(self, target: str | int) -> None:
        self.target = target
        self.begun: bytes | None = None
        self.outdated = False
        self._begun_bytes = 0  # how much of `begun` the file has
        self._fd = -1
        self._pipe = False

    def open(self) -> None:
        """Open the file where it is not open. Raises `OSError`."""
        if self._fd < 0:
            self._fd = _open(self.target)
            self._pipe = stat.S_ISFIFO(os.fstat(self._fd).st_mode)

    def append(self, lines: list[bytes]) -> OSError | None:
        """Write `begun` and then `lines`; what the file has not taken stays in `lines`. Returns why it stopped."""
        done = self._begun_bytes
        if self.begun is not None:
            lines.insert(0, self.begun)
        failure = None
        data = memoryview(b"".join(lines))
        try:
            self.open()
            for end in self._stops(lines, len(data)):
                # Bounded: each turn takes at least a byte of the batch.
                while done < end:
                    done += os.write(self._fd, data[done:end])
        except OSError as error:
            # Not the error itself: it holds this frame, which would hold it and the batch, until a collection.
            failure = OSError(error.errno, error.strerror)
        whole = 0
        while whole < len(lines) and done >= len(lines[whole]):
            done -= len(lines[whole])
            whole += 1
        del lines[:whole]
        self.begun, self._begun_bytes = (lines.pop(0), done) if done else (None, 0)
        if failure is not None and failure.errno not in _KEPT_AFTER and (line := self.give_up()) is not None:
            lines.insert(0, line)
        return failure

    def _stops(self, lines: Sequence[bytes], total: int) -> Iterator[int]:
        """Where one write ends and the next begins: a pipe takes up to PIPE_BUF bytes whole or not at all."""
        if self._pipe:
            start = end = 0
            for line in lines:
                if end > start and end + len(line) - start > select.PIPE_BUF:
                    yield end
                    start = end
                end += len(line)
        yield total

    def reopen(self) -> OSError | None:
        """Go over to the file that has the name now; no line may be begun.

        Where it cannot be opened, the present file stays, is `outdated`, and the error is returned. (One without any
        name is closed: nobody would ever read what it gets.)
        """
        if self._fd < 0 or isinstance(self.target, int):
            return None
        present = os.fstat(self._fd)
        with contextlib.suppress(OSError):
            named = os.stat(self.target)
            if (named.st_dev, named.st_ino) == (present.st_dev, present.st_ino):
                self.outdated = False
                return None
        try:
            new = _open(self.target)
        except OSError as error:
            if not present.st_nlink:
                self._close()
                return None
            self.outdated = True
            return OSError(error.errno, error.strerror)
        self._close()
        self._fd, self._pipe = new, stat.S_ISFIFO(os.fstat(new).st_mode)
        return None

    def is_beside(self, target: str | int) -> bool:
        """Whether `target` is, or would be, on the filesystem of this file, so that both are full or none."""
        if self._fd < 0 or isinstance(target, int):
            return False
        try:
            present = os.fstat(self._fd)
            other = os.stat(target if os.path.exists(target) else os.path.dirname(target) or ".")
        except OSError:
            return False
        return stat.S_ISREG(present.st_mode) and present.st_nlink > 0 and present.st_dev == other.st_dev

    def give_up(self) -> bytes | None:
        """Close the file, without the part of a line that it may have; returns that line."""
        line, self.begun = self.begun, None
        if line is not None and self._fd >= 0:
            self._cut(self._begun_bytes)
        self._begun_bytes = 0
        self._close()
        return line

    def _cut(self, count: int) -> None:
        """Take the last `count` bytes away, where the file is one that can be cut and they are still its last."""
        with contextlib.suppress(OSError):
            status, place = os.fstat(self._fd), os.lseek(self._fd, 0, os.SEEK_CUR)
            if stat.S_ISREG(status.st_mode) and status.st_size == place >= count:
                os.ftruncate(self._fd, place - count)
                os.lseek(self._fd, place - count, os.SEEK_SET)

    def _close(self) -> None:
        fd, self._fd, self.outdated = self._fd, -1, False
        if fd >= 0 and not isinstance(self.target, int):
            # The kernel has closed it also where it reports that earlier bytes did not reach the disk.
            with contextlib.suppress(OSError):
                os.close(fd)


def _open(target: str | int) -> int:
    if isinstance(target, int):
        return target
    # Not blocking, for a FIFO that nobody reads: opening it would wait for ever.
    try:
        return open_to_append(target, NEW_FILE_MODE)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise OSError(errno.ENXIO, "nobody reads this FIFO") from error
        raise
