"""Socket activation: sockets that the service manager has opened and passes by the protocol of sd_listen_fds(3)."""

from __future__ import annotations

import logging
import os
import resource
import socket
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Final

from oinetd.net.passed import passed_listener
from oinetd.process.service_manager import STORED

__all__ = ["DESCRIPTORS_MAX", "Inherited", "inherited_sockets", "passed_descriptors"]

FIRST_FD: Final = 3
"""SD_LISTEN_FDS_START: behind standard input, output and error."""

DESCRIPTORS_MAX: Final = 1_048_576
"""The kernel's default of `fs.nr_open`: the soft limit of descriptors is never raised above this."""

DIGITS_MAX: Final = 9
"""Of a number of descriptors: a longer number cannot be true."""

WARNINGS_MAX: Final = 16
"""With a wrong count, only the first descriptors get a warning each."""

logger = logging.getLogger("oinetd")


def passed_descriptors(environ: Mapping[str, str], pid: int) -> range:
    """The descriptors that `environ` says were passed to the process `pid`, of any kind.

    They are no more than the descriptor limit, whatever number `environ` has.
    """
    count = environ.get("LISTEN_FDS", "")
    if environ.get("LISTEN_PID", "") != str(pid) or not count.isdecimal():
        return range(FIRST_FD, FIRST_FD)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = DESCRIPTORS_MAX if most == resource.RLIM_INFINITY else most
    return range(FIRST_FD, FIRST_FD + min(int(count[:DIGITS_MAX]), most))


@dataclass(frozen=True, slots=True)
class Inherited:
    """Listening sockets that others have opened. The service manager holds the `passed` ones open whatever happens;
    the `lent` ones are closed if no rule has their address: a process before this one opened them. `names` are those of
    lent ones in the manager's store."""

    passed: tuple[socket.socket, ...] = ()
    lent: tuple[socket.socket, ...] = ()
    names: tuple[str, ...] = ()


def inherited_sockets(environ: MutableMapping[str, str], pid: int) -> Inherited:
    """The listening TCP sockets and bound UDP sockets that were passed to the process `pid`, which the caller now owns.

    The variables are removed from `environ`. Any other descriptor is closed, with a warning.
    """
    passed = passed_descriptors(environ, pid)
    names = environ.get("LISTEN_FDNAMES", "") if passed else ""
    for part in ("PID", "FDS", "FDNAMES"):
        environ.pop(f"LISTEN_{part}", None)
    labels = names.split(":") if names else []
    found: list[socket.socket] = []
    stored: dict[str, list[socket.socket]] = {}
    for position, fd in enumerate(passed):
        label = labels[position] if position < len(labels) else "unknown"
        try:
            os.set_inheritable(fd, False)
        except OSError as error:
            logger.warning("inherited descriptor %d (%s): %s", fd, label, error.strerror)
            if position >= WARNINGS_MAX:
                logger.warning("inherited descriptors up to %d: ignored, LISTEN_FDS is wrong", passed[-1])
                break
            continue
        if (listener := passed_listener(fd)) is not None:
            (stored.setdefault(label, []) if STORED.fullmatch(label) else found).append(listener)
        else:
            logger.warning(
                "inherited descriptor %d (%s): closed, neither a listening socket nor a bound UDP socket",
                fd,
                label,
            )
    lent = tuple(sock for socks in stored.values() for sock in socks)
    return Inherited(tuple(found), lent, tuple(stored))
