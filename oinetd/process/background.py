"""Becoming a daemon while the shell still hears how that went.

The shell's process forks first of all, before there is a thread, and waits on a pipe. Its grandchild, in a session of
its own, reads the configuration and binds, with the shell's standard error still open for what it has to say. When it
is ready or has failed it tells so through the pipe, and the shell's process exits with that code.
"""

from __future__ import annotations

import os
import sys
from typing import Final

__all__ = ["Handover", "split"]

EX_OSERR: Final = 71
EX_INTERRUPTED: Final = 130
"""As the shell has it for Ctrl-C."""


class Handover:
    """The daemon's end of the pipe: exactly one of `ready` and `failed` is told, once."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def ready(self) -> bool:
        """Let the shell go on, and cut the last ties to it; False where nobody waits any more (Ctrl-C)."""
        sys.stdout.flush()
        sys.stderr.flush()
        if not self._tell(0):
            return False
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        os.close(null)
        os.chdir("/")  # Whatever directory it was may be unmounted.
        return True

    def failed(self, code: int) -> None:
        """End the shell's wait with `code`; nothing after `ready`."""
        self._tell(code)

    def _tell(self, code: int) -> bool:
        fd, self._fd = self._fd, -1
        if fd < 0:
            return True
        try:
            os.write(fd, bytes((code,)))
        except BrokenPipeError:
            return False
        finally:
            os.close(fd)
        return True


def split() -> Handover | int:
    """Fork. The daemon gets its `Handover`, the shell's process the exit code when the daemon has started."""
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        try:
            return _wait(child, reader)
        finally:
            os.close(reader)
    os.close(reader)
    os.setsid()
    # The second fork: a process that leads no session can never get a terminal by opening one.
    if os.fork():
        os._exit(0)
    return Handover(writer)


def _wait(child: int, reader: int) -> int:
    try:
        os.waitpid(child, 0)
        told = os.read(reader, 1)
    except KeyboardInterrupt:
        return EX_INTERRUPTED
    if not told:
        print("oinetd: ended before it was ready", file=sys.stderr)
        return EX_OSERR
    return told[0]
