"""A file that lines are appended to. No line stays half written.

A write may stop inside a line (disk full, size limit). The rest of this line is then written first. If the file is
closed before that, the written part is truncated and the line is returned to the caller.

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

from oinetd.safe_open import open_to_append

__all__ = ["LogFile"]

NEW_FILE_MODE: Final = 0o640
"""The log shows which clients use which servers: it is not world-readable."""

_KEPT_AFTER: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EAGAIN})
"""After these errors the descriptor is still usable, and a partly written line can be completed."""


class LogFile:
    """Appends to `target`: a path, or an open descriptor, which is used as it is and never closed.

    `begun` is the line that is partly written, None if there is none. `outdated` means that the path now names another
    file, which could not be opened. `opened` is the descriptor of a file that is open already.
    """

    def __init__(self, target: str | int, opened: int = -1) -> None:
        self.target = target
        self.begun: bytes | None = None
        self.outdated = False
        self._begun_bytes = 0  # written bytes of `begun`
        self._shared = opened >= 0  # another process may write to it, too
        self._fd = opened
        self._pipe = opened >= 0 and stat.S_ISFIFO(os.fstat(opened).st_mode)

    def duplicate(self) -> int:
        """A copy of the descriptor; -1 if there is none, or it is not the file's own."""
        if self._fd < 0 or isinstance(self.target, int):
            return -1
        try:
            copy = os.dup(self._fd)
        except OSError:
            return -1
        self._shared = True
        return copy

    def open(self) -> None:
        """Open the file if it is not open. Raises `OSError`."""
        if self._fd < 0:
            self._fd = _open(self.target)
            self._pipe = stat.S_ISFIFO(os.fstat(self._fd).st_mode)

    def append(self, lines: list[bytes]) -> OSError | None:
        """Write `begun` and then `lines`; unwritten lines stay in `lines`. Returns the error that stopped it."""
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
            # A copy: the error refers to this frame and so to the batch, a cycle that only the collector would free.
            failure = OSError(error.errno, error.strerror)
        whole = 0
        while whole < len(lines) and done >= len(lines[whole]):
            done -= len(lines[whole])
            whole += 1
        del lines[:whole]
        self.begun, self._begun_bytes = (lines.pop(0), done) if done else (None, 0)
        if self.begun is not None and self._shared:  # a line of the other process would follow its first half
            self._cut(done)
            lines.insert(0, self.begun)
            self.begun, self._begun_bytes = None, 0
        if failure is not None and failure.errno not in _KEPT_AFTER and (line := self.give_up()) is not None:
            lines.insert(0, line)
        return failure

    def _stops(self, lines: Sequence[bytes], total: int) -> Iterator[int]:
        """The end of each write. A write of at most PIPE_BUF bytes to a pipe is atomic."""
        if self._pipe:
            start = end = 0
            for line in lines:
                if end > start and end + len(line) - start > select.PIPE_BUF:
                    yield end
                    start = end
                end += len(line)
        yield total

    def reopen(self) -> OSError | None:
        """Switch to the file that is at the path now; no line may be partly written.

        If it cannot be opened, the error is returned, and the present file stays open and is `outdated`. A present
        file without any link is closed instead: no reader could ever find it.
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
        """Whether `target` is, or would be, on this file's filesystem, so that a full disk affects both."""
        if self._fd < 0 or isinstance(target, int):
            return False
        try:
            present, present_system = os.fstat(self._fd), os.fstatvfs(self._fd)
            place = target if os.path.exists(target) else os.path.dirname(target) or "."
            other, other_system = os.stat(place), os.statvfs(place)
        except OSError:
            return False
        if not stat.S_ISREG(present.st_mode) or not present.st_nlink:
            return False
        # In an overlay, the root of a container, a file's device is not that of its folder; the filesystem's number is.
        # Some filesystems have no number (0).
        return present.st_dev == other.st_dev or present_system.f_fsid == other_system.f_fsid != 0

    def give_up(self) -> bytes | None:
        """Close the file, truncate a partly written line, and return this line."""
        line, self.begun = self.begun, None
        if line is not None and self._fd >= 0:
            self._cut(self._begun_bytes)
        self._begun_bytes = 0
        self._close()
        return line

    def _cut(self, count: int) -> None:
        """Truncate the last `count` bytes if this is a regular file and they are still its last."""
        with contextlib.suppress(OSError):
            status, place = os.fstat(self._fd), os.lseek(self._fd, 0, os.SEEK_CUR)
            if stat.S_ISREG(status.st_mode) and status.st_size == place >= count:
                os.ftruncate(self._fd, place - count)
                os.lseek(self._fd, place - count, os.SEEK_SET)

    def _close(self) -> None:
        fd, self._fd, self.outdated = self._fd, -1, False
        if fd >= 0 and not isinstance(self.target, int):
            # The descriptor is closed even if the kernel reports that earlier bytes did not reach the disk.
            with contextlib.suppress(OSError):
                os.close(fd)


def _open(target: str | int) -> int:
    if isinstance(target, int):
        return target
    # Non-blocking: opening a FIFO without a reader would block for ever.
    try:
        return open_to_append(target, NEW_FILE_MODE)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise OSError(errno.ENXIO, "this FIFO has no reader") from error
        raise
