"""The pid file: which process serves, and that there is only one."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import Final

from oinetd.errors import OinetdError

__all__ = ["PidFile", "PidFileHeld"]

RACES_MAX: Final = 100
"""How often a file that another process has just removed is made anew before that counts as held."""


class PidFileHeld(OinetdError):
    """Another oinetd that lives holds the pid file."""


class PidFile:
    """A locked file with the process id in it.

    The lock tells a live holder from a file that a crash has left behind, which is simply taken over. It is taken
    before the sockets are bound, so that a second oinetd learns the true reason, and the number is written after.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = -1

    def acquire(self) -> None:
        """Take the lock. Raises `PidFileHeld`, or `OSError` where the file cannot be made."""
        for _ in range(RACES_MAX):
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(fd, 32).decode("ascii", "replace").strip()
                os.close(fd)
                who = f"process {holder}" if holder else "just starting"
                raise PidFileHeld(f"another oinetd ({who}) holds the pid file {self.path}") from None
            except OSError:
                os.close(fd)
                raise
            if self._is_at_path(fd):
                self._fd = fd
                return
            os.close(fd)  # Removed by its holder between our open and our lock.
        raise PidFileHeld(f"the pid file {self.path} is removed as often as it is made")

    def write(self) -> None:
        """Put this process's id into the file. Raises `OSError` (a full disk)."""
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Remove the file, or empty it where that is not permitted; then give the lock up. May be called twice.

        A process that has given up its privileges cannot remove a file from root's directory.
        """
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        try:
            if self._is_at_path(fd):
                os.unlink(self.path)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(fd, 0)
        finally:
            os.close(fd)

    def give_to(self, uid: int, gid: int) -> None:
        """Change the owner of the file, for a process about to become `uid`."""
        os.fchown(self._fd, uid, gid)

    def _is_at_path(self, fd: int) -> bool:
        """Whether the file that is open is the one that has the name."""
        try:
            return os.path.samestat(os.fstat(fd), os.stat(self.path, follow_symlinks=False))
        except FileNotFoundError:
            return False
