"""Becoming a daemon. The shell waits until the daemon has started, and gets its exit code.

The process that the shell started forks before there is any thread, and waits on a pipe. Its grandchild, in a session
of its own, reads the configuration and binds; its standard error is still the shell's. It writes its exit code to the
pipe when it is ready or has failed, and the first process exits with this code.
"""

from __future__ import annotations

import os
import sys
from typing import Final

__all__ = ["Handover", "split"]

EX_OSERR: Final = 71
EX_INTERRUPTED: Final = 130
"""The shell's code for Ctrl-C."""


class Handover:
    """The daemon's end of the pipe: one of `ready` and `failed` is written, once."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def ready(self) -> bool:
        """Let the shell continue, and detach from it; False if it no longer waits (Ctrl-C)."""
        sys.stdout.flush()
        sys.stderr.flush()
        if not self._write(0):
            return False
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        os.close(null)
        os.chdir("/")  # so that the directory of the start can be unmounted
        return True

    def failed(self, code: int) -> None:
        """End the shell's wait with `code`; does nothing after `ready`."""
        self._write(code)

    def _write(self, code: int) -> bool:
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
    """Fork. Returns a `Handover` in the daemon, and in the first process the exit code once the daemon has started."""
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
    # The second fork: a process that does not lead its session never gets a controlling terminal by opening one.
    if os.fork():
        os._exit(0)
    return Handover(writer)


def _wait(child: int, reader: int) -> int:
    try:
        os.waitpid(child, 0)
        code = os.read(reader, 1)
    except KeyboardInterrupt:
        return EX_INTERRUPTED
    if not code:
        print("oinetd: the daemon exited before it was ready", file=sys.stderr)
        return EX_OSERR
    return code[0]
