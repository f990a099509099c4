"""The pid file: the id of the process that serves, and a lock so that there is only one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
from collections.abc import Iterator
from typing import Final

from oinetd.errors import ConfigError, OinetdError, Problem
from oinetd.safe_open import Location, kind_of

__all__ = ["PidFile", "PidFileFault", "PidFileHeld", "exchanged"]

RACES_MAX: Final = 100
"""Tries to create a file that another process removes again, before the file counts as held."""

MODE: Final = 0o644
"""Independent of the umask: a process id is no secret, and scripts of other users read it."""

CONTENT_BYTES_MAX: Final = 64
"""More than any process id with its newline."""

_CONTENT: Final = re.compile(rb"\s*\d*\s*")
_HINT: Final = "a pid file is empty or contains a number; use another file, such as /run/oinetd.pid"


class PidFileHeld(OinetdError):
    """Another running oinetd has locked the pid file."""


class PidFileFault(OinetdError):
    """The pid file cannot be opened or written; `errno` has the reason."""

    def __init__(self, path: str, error: OSError) -> None:
        super().__init__(f"pid file {path}: {error.strerror or error}")
        self.errno = error.errno or 0


class PidFile:
    """A locked file that contains the process id.

    A file without a lock was left behind by a crash and is reused. The lock is taken before the sockets are bound, so
    that a second oinetd reports the true reason; the number is written afterwards.

    A file that may be something else is never written, and a file that this process neither created nor wrote is never
    removed. The owner of the file does not change: a process that has dropped root writes and truncates it through the
    open descriptor.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = -1
        self._made = False
        self._content = b""

    @staticmethod
    def check(path: str) -> None:
        """Raise `ConfigError` if the present file at `path` is no pid file. Nothing is created or changed."""
        if not path:
            return
        try:
            with Location.of(path, follow=False) as place:
                _check_kind(path, place.found)
                if place.found is not None:
                    fd = place.open(os.O_RDONLY)
                    try:
                        _check_content(path, fd)
                    finally:
                        os.close(fd)
        except OSError:
            return  # It may have passed when oinetd starts, or another user may start it.

    def acquire(self) -> None:
        """Create the file if it does not exist, and lock it.

        Raises `ConfigError` if it is no pid file, `PidFileHeld`, or `PidFileFault` if it cannot be opened.
        """
        try:
            for _ in range(RACES_MAX):
                try:
                    fd, made = self._open()
                except FileNotFoundError:
                    if not os.path.isdir(os.path.dirname(self.path) or "."):
                        raise
                    continue  # Removed by its holder between `stat` and `open`.
                try:
                    self._lock(fd)
                    if self._is_at_path(fd):
                        self._fd, self._made, fd = fd, made, -1
                        return
                finally:
                    if fd >= 0:
                        os.close(fd)  # Removed by its holder between `open` and `flock`.
        except OSError as error:
            raise PidFileFault(self.path, error) from error
        raise PidFileHeld(f"pid file {self.path}: another process keeps removing it")

    def adopt(self, fd: int) -> None:
        """Take over the file from another process, which has it open as `fd` and locked: the lock comes along."""
        self._fd, self._made = fd, True

    def leave(self) -> None:
        """Another process has the file and its lock now."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def fileno(self) -> int:
        """The descriptor of the locked file."""
        return self._fd

    def _open(self) -> tuple[int, bool]:
        """A descriptor of the file, and whether it was created."""
        with Location.of(self.path, follow=False) as place:
            _check_kind(self.path, place.found)
            if place.found is None:
                with contextlib.suppress(FileExistsError):
                    fd = place.open(os.O_RDWR | os.O_CREAT | os.O_EXCL, MODE)
                    os.fchmod(fd, MODE)
                    return fd, True
            fd = place.open(os.O_RDWR)
            try:
                _check_kind(self.path, os.fstat(fd))
                _check_content(self.path, fd)
            except BaseException:
                os.close(fd)
                raise
            return fd, False

    def _lock(self, fd: int) -> None:
        """Lock the file. Raises `PidFileHeld` if another process has it locked."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, CONTENT_BYTES_MAX, 0).decode("ascii", "replace").strip()
            state = f"pid {holder}" if holder else "starting"
            raise PidFileHeld(f"pid file {self.path}: locked by another oinetd ({state})") from None

    def write(self) -> None:
        """Write the process id to the file. Raises `PidFileFault` (a full disk)."""
        content = f"{os.getpid()}\n".encode()
        try:
            os.ftruncate(self._fd, 0)
            self._content = content
            if os.pwrite(self._fd, content, 0) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise PidFileFault(self.path, error) from error

    def release(self) -> None:
        """Remove the file if this process created or wrote it, and unlock it. May be called twice.

        A process that has dropped its privileges may not remove a file from root's directory. It truncates the file,
        and the next start reuses it.
        """
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        try:
            if self._is_at_path(fd) and self._is_as_written(fd):
                os.unlink(self.path)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(fd, 0)
        finally:
            os.close(fd)

    def _is_as_written(self, fd: int) -> bool:
        """Whether the content of the file is what this process wrote."""
        if not self._content and not self._made:
            return False
        return os.pread(fd, CONTENT_BYTES_MAX, 0) == self._content

    def _is_at_path(self, fd: int) -> bool:
        """Whether the open file is the one at the path."""
        try:
            return os.path.samestat(os.fstat(fd), os.stat(self.path, follow_symlinks=False))
        except FileNotFoundError:
            return False


def _check_kind(path: str, found: os.stat_result | None) -> None:
    if found is None:
        return
    if kind := kind_of(found.st_mode):
        raise ConfigError(Problem(f"pid file {path}: is {kind}", hint=_HINT))
    if found.st_nlink > 1:
        raise ConfigError(Problem(f"pid file {path}: has more than one hard link", hint=_HINT))
    if found.st_uid not in (0, os.geteuid()) and os.geteuid() == 0:
        # Its owner could write any number to it, and root's scripts would send a signal to this process.
        hint = f"remove it, or make root its owner: chown root {path}"
        raise ConfigError(Problem(f"pid file {path}: owned by user {found.st_uid}, who can change it", hint=hint))


def _check_content(path: str, fd: int) -> None:
    """Raise `ConfigError` if the file contains anything but a number."""
    content = os.pread(fd, CONTENT_BYTES_MAX + 1, 0)
    if len(content) > CONTENT_BYTES_MAX or not _CONTENT.fullmatch(content):
        raise ConfigError(Problem(f"pid file {path}: contains something other than a process id", hint=_HINT))


@contextlib.contextmanager
def exchanged(old: PidFile | None, path: str) -> Iterator[PidFile | None]:
    """The pid file at `path` ("" for none), in place of `old` once the body has succeeded.

    Raises what `acquire` and `write` raise; if they or the body raise, `old` is still there.
    """
    if path == (old.path if old else ""):
        yield old
        return
    new = PidFile(path) if path else None
    try:
        if new is not None:
            new.acquire()
            new.write()
        yield new
    except BaseException:
        if new is not None:
            new.release()
        raise
    if old is not None:
        old.release()
