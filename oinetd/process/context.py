"""The execution context that a process inherits, set to known values before anything is opened.

The parent may be a shell, cron, a service manager, a container, or a faulty program. Nothing that it passes is trusted:

- Descriptors 0-2: a closed one becomes /dev/null. Otherwise the next open file would get its number, and messages
  would be written to that file.
- Other descriptors: a daemon closes those that were not passed by the service manager's protocol.
- Signals: the handlers of oinetd's signals and SIGCHLD are reset, and the signal mask is set. Process 1 of a container
  ignores SIGCHLD: it leaves no zombies.
- Working directory: it may have been removed; then only absolute paths work.
- umask: the bits for group and others are kept, the bits for the owner are cleared.
- Limits: the soft limit of descriptors is raised to the hard one.
- Environment: standard output is UTF-8 like configurations, in every locale. An empty variable counts as unset.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import io
import logging
import os
import resource
import signal
import sys
from collections.abc import Collection
from typing import Final

from oinetd.process.socket_activation import DESCRIPTORS_MAX, passed_descriptors

__all__ = [
    "HELD_SIGNALS",
    "close_inherited",
    "prepare",
    "raise_descriptor_limit",
    "settle_memory",
    "working_directory",
]

HELD_SIGNALS: Final = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Blocked until there are handlers: by default they end the process."""

UMASK_KEPT: Final = 0o077

_PYTHON_IGNORES: Final = (signal.SIGPIPE, signal.SIGXFSZ)
"""The interpreter ignores these itself: a write then fails with EPIPE or EFBIG."""

logger = logging.getLogger("oinetd")


def prepare(held: Collection[int] = ()) -> None:
    """Set all of it except what only a daemon does; `held` are the signals to block. Call it first of all."""
    _fill_standard_streams()
    _reset_signals(held)
    os.umask(os.umask(UMASK_KEPT) & UMASK_KEPT)


def _fill_standard_streams() -> None:
    for number in (0, 1, 2):
        try:
            fcntl.fcntl(number, fcntl.F_GETFD)
        except OSError:
            # The lower descriptors are open, so `open` returns this number.
            null = os.open(os.devnull, os.O_RDWR)
            assert null == number, f"/dev/null became descriptor {null} instead of {number}"
            os.set_inheritable(null, True)
    # The interpreter has no object for a descriptor that was closed.
    sys.stdin = sys.stdin or os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A configuration is read as UTF-8 with surrogate escapes, and printed as the same bytes.
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")


def _reset_signals(held: Collection[int]) -> None:
    for number in signal.valid_signals():
        if number in _PYTHON_IGNORES or signal.getsignal(number) is not signal.SIG_IGN:
            continue
        with contextlib.suppress(OSError, ValueError):  # signals that the C library reserves
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    if os.getpid() == 1:
        # In a container the orphans of other processes (health checks) become children of this one. Nothing
        # waits for them, so the kernel is told to reap them.
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    # In one step, so that a pending signal is not lost.
    signal.pthread_sigmask(signal.SIG_SETMASK, held)


def close_inherited(environ: dict[str, str] | os._Environ[str], pid: int) -> None:
    """For a daemon: close inherited descriptors above 2 that were not passed to the process `pid`.

    An inherited descriptor has no close-on-exec flag; every descriptor that the interpreter and oinetd open has it. An
    inherited one would keep a lock, a pipe or a terminal busy as long as the daemon runs.
    """
    passed = passed_descriptors(environ, pid)
    for number in sorted(map(int, os.listdir("/proc/self/fd"))):
        if number <= 2 or number in passed:
            continue
        with contextlib.suppress(OSError):  # the descriptor of the listing itself
            if not fcntl.fcntl(number, fcntl.F_GETFD) & fcntl.FD_CLOEXEC:
                os.close(number)


def working_directory() -> str:
    """The working directory; empty if it has been removed."""
    try:
        return os.getcwd()
    except OSError:
        return ""


def raise_descriptor_limit() -> None:
    """Raise the soft limit of descriptors to the hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_MAX if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS_MAX)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError) as error:  # a system call filter, or a lower `fs.nr_open`
            logger.warning("cannot raise the descriptor limit: %s; it stays at %d", error, soft)


def settle_memory() -> None:
    """What the start has made stays: the collector need not look at it again, each time for several milliseconds."""
    gc.collect()
    gc.freeze()
