"""The pid file: which process serves, and that there is only one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
from typing import Final

from oinetd.core.safe_open import Location, kind_of
from oinetd.errors import ConfigError, OinetdError, Problem

__all__ = ["PidFile", "PidFileFault", "PidFileHeld"]

RACES_MAX: Final = 100
"""How often a file that another process has just removed is made anew before that counts as held."""

MODE: Final = 0o644
"""Whatever the umask: the number of a process is no secret, and scripts of other users read it."""

CONTENT_BYTES_MAX: Final = 64
"""More than any process id with its newline."""

_CONTENT: Final = re.compile(rb"\s*\d*\s*")
_HINT: Final = "a pid file is a file that is empty or holds a number; name another one, such as /run/oinetd.pid"


class PidFileHeld(OinetdError):
    """Another oinetd that lives holds the pid file."""


class PidFileFault(OinetdError):
    """The pid file cannot be opened or written; `errno` is the system's reason."""

    def __init__(self, path: str, error: OSError) -> None:
        super().__init__(f"pid file {path}: {error.strerror or error}")
        self.errno = error.errno or 0


class PidFile:
    """A locked file with the process id in it.

    The lock tells a live holder from a file that a crash has left behind, which is simply taken over. It is taken
    before the sockets are bound, so that a second oinetd learns the true reason, and the number is written after.

    Nothing is written to a file that could be anything else, and nothing is removed that this process did not make or
    write. The file stays whose it was when `acquire` made it: a process that gives up root writes and empties it
    through the descriptor.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = -1
        self._made = False
        self._content = b""

    @staticmethod
    def check(path: str) -> None:
        """Raise `ConfigError` if `path` cannot be a pid file, for what is there now. Nothing is made or changed."""
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
            return  # A fault that may have passed at the start; whoever checks may not be who starts.

    def acquire(self) -> None:
        """Take the lock, and make the file if it is not there.

        Raises `ConfigError` for what is no pid file, `PidFileHeld`, or `PidFileFault` if the file cannot be opened.
        """
        try:
            for _ in range(RACES_MAX):
                try:
                    fd, made = self._open()
                except FileNotFoundError:
                    if not os.path.isdir(os.path.dirname(self.path) or "."):
                        raise
                    continue  # Removed by its holder between our look and our open.
                try:
                    self._lock(fd)
                    if self._is_at_path(fd):
                        self._fd, self._made, fd = fd, made, -1
                        return
                finally:
                    if fd >= 0:
                        os.close(fd)  # Removed by its holder between our open and our lock.
        except OSError as error:
            raise PidFileFault(self.path, error) from error
        raise PidFileHeld(f"the pid file {self.path} is removed as often as it is made")

    def _open(self) -> tuple[int, bool]:
        """A descriptor of the file, and whether it was made."""
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
            who = f"process {holder}" if holder else "just starting"
            raise PidFileHeld(f"another oinetd ({who}) holds the pid file {self.path}") from None

    def write(self) -> None:
        """Put this process's id into the file. Raises `PidFileFault` (a full disk)."""
        content = f"{os.getpid()}\n".encode()
        try:
            os.ftruncate(self._fd, 0)
            self._content = content
            if os.pwrite(self._fd, content, 0) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise PidFileFault(self.path, error) from error

    def release(self) -> None:
        """Remove the file if this process made or wrote it, and give the lock up. May be called twice.

        A process that has given up its privileges may not remove a file from root's directory: there the file is left
        empty, and the next start takes it over.
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
        """Whether the file holds what this process has put there, and not what it has found or somebody else wrote."""
        if not self._content and not self._made:
            return False
        return os.pread(fd, CONTENT_BYTES_MAX, 0) == self._content

    def _is_at_path(self, fd: int) -> bool:
        """Whether the file that is open is the one that has the name."""
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
        raise ConfigError(Problem(f"pid file {path}: has another name (a hard link)", hint=_HINT))
    if found.st_uid not in (0, os.geteuid()) and os.geteuid() == 0:
        # Its owner could write any number into it, and root's scripts would send that process a signal.
        hint = f"remove it, or give it to root: chown root {path}"
        raise ConfigError(Problem(f"pid file {path}: belongs to user {found.st_uid}, who can change it", hint=hint))


def _check_content(path: str, fd: int) -> None:
    """Raises `ConfigError` if there is anything in the file that is not a number."""
    content = os.pread(fd, CONTENT_BYTES_MAX + 1, 0)
    if len(content) > CONTENT_BYTES_MAX or not _CONTENT.fullmatch(content):
        raise ConfigError(Problem(f"pid file {path}: holds something else than a process id", hint=_HINT))
