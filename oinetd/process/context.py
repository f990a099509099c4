"""What a process inherits from whoever starts it, put in order before anything else is opened.

A starter may be a shell, cron, a service manager, a container, or a program with faults of its own. Nothing of what it
hands on is taken as given:

- Descriptors 0-2: one that is closed becomes /dev/null. The next file that is opened would get its number otherwise,
  and messages would be written into it.
- Other descriptors: a daemon closes those that were not passed to it by the service manager's protocol.
- Signals: none that oinetd answers to stays ignored or blocked, nor SIGCHLD. The mask is the one that is asked for.
- Working directory: it may have been removed; then only absolute names can be used.
- umask: what it takes from group and others counts, what it takes from the owner does not.
- Limits: the soft limit of descriptors is raised to the hard one.
- Environment: standard output is UTF-8, as configurations are, whatever the locale says. A variable that is set to
  nothing counts as one that is not set.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import logging
import os
import resource
import signal
import sys
from collections.abc import Collection
from typing import Final

from oinetd.process.inherited import passed_descriptors

__all__ = ["HELD_SIGNALS", "close_inherited", "prepare", "raise_descriptor_limit", "working_directory"]

HELD_SIGNALS: Final = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Held back until there are handlers: at their default they would end the process."""

DESCRIPTORS_MAX: Final = 1_048_576
"""The soft limit of descriptors is raised to the hard one, but not beyond this, the kernel's usual `fs.nr_open`."""

UMASK_KEPT: Final = 0o077

_PYTHON_IGNORES: Final = (signal.SIGPIPE, signal.SIGXFSZ)
"""The interpreter ignores these itself: a write then fails with EPIPE or EFBIG."""

logger = logging.getLogger("oinetd")


def prepare(held: Collection[int] = ()) -> None:
    """Put everything in order but what only a daemon does; `held` are the signals to block. Call it first of all."""
    _fill_standard_streams()
    _reset_signals(held)
    os.umask(os.umask(UMASK_KEPT) & UMASK_KEPT)


def _fill_standard_streams() -> None:
    for number in (0, 1, 2):
        try:
            fcntl.fcntl(number, fcntl.F_GETFD)
        except OSError:
            # The lowest number that is free is this one: those below are open by now.
            null = os.open(os.devnull, os.O_RDWR)
            assert null == number, f"/dev/null became descriptor {null} instead of {number}"
            os.set_inheritable(null, True)
    # The interpreter has no object for a descriptor that was closed.
    sys.stdin = sys.stdin or os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A configuration is read as UTF-8 with stray bytes carried through, and printed as the same bytes.
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")


def _reset_signals(held: Collection[int]) -> None:
    for number in signal.valid_signals():
        if number in _PYTHON_IGNORES or signal.getsignal(number) is not signal.SIG_IGN:
            continue
        with contextlib.suppress(OSError, ValueError):  # those that the C library keeps for itself
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    # In one step: a signal that was blocked and has come is not lost.
    signal.pthread_sigmask(signal.SIG_SETMASK, held)


def close_inherited(environ: dict[str, str] | os._Environ[str], pid: int) -> None:
    """For a daemon: close what was inherited beyond 0-2 and was not passed on purpose to the process `pid`.

    A descriptor that came through exec is not marked to be closed on exec, and all that the interpreter and oinetd open
    are. One that stays open would keep a lock, a pipe or a terminal busy for as long as the daemon lives.
    """
    passed = passed_descriptors(environ, pid)
    for number in sorted(map(int, os.listdir("/proc/self/fd"))):
        if number <= 2 or number in passed:
            continue
        with contextlib.suppress(OSError):  # the descriptor that lists the folder
            if not fcntl.fcntl(number, fcntl.F_GETFD) & fcntl.FD_CLOEXEC:
                os.close(number)


def working_directory() -> str:
    """The directory that relative names start from; empty if it has been removed."""
    try:
        return os.getcwd()
    except OSError:
        return ""


def raise_descriptor_limit() -> None:
    """Raise the soft limit of descriptors as far as that is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_MAX if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS_MAX)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError) as error:  # a filter of system calls, a kernel that allows fewer
            logger.warning("the limit of descriptors stays at %d: %s", soft, error)
