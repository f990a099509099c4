"""Dropping root: after the files are opened, before any thread starts, name is resolved or client served."""

from __future__ import annotations

import contextlib
import grp
import importlib
import logging
import os
import pwd
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from oinetd.model import Config
from oinetd.observe.connection_log import ConnectionLog
from oinetd.safe_open import give_empty_file

if TYPE_CHECKING:
    import ctypes  # not at the start: libffi opens a file then, and standard streams may still be closed

__all__ = ["Identity", "drop_root", "has_ambient", "keep_to_oneself", "kept_for", "passed_on"]

PR_SET_KEEPCAPS: Final = 8
PR_CAPBSET_READ: Final = 23
PR_CAPBSET_DROP: Final = 24
PR_SET_NO_NEW_PRIVS: Final = 38
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_RAISE: Final = 2
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
CAP_NET_BIND_SERVICE: Final = 10
CAP_NET_ADMIN: Final = 12
CAP_NET_RAW: Final = 13
LINUX_CAPABILITY_VERSION_3: Final = 0x20080522
"""From linux/prctl.h and linux/capability.h; version 3 has two 32-bit words for each set."""

CAPABILITIES_MAX: Final = 64
"""The number of bits of a set."""

KEPT: Final = 1 << CAP_NET_BIND_SERVICE
"""Sockets are bound after the change of user, at start and for rules that a reload adds."""

KEPT_FOR_MARK: Final = 1 << CAP_NET_ADMIN
KEPT_FOR_TRANSPARENT: Final = 1 << CAP_NET_RAW
"""Only if a rule has `mark`, or `src=client` or `transparent` (IP_TRANSPARENT, ip(7)): each connection to a server sets
it, and each new listener."""

IMPORTED_LATER: Final = (
    "concurrent.futures.thread",
    "difflib",
    "encodings.ascii",
    "encodings.idna",
    "encodings.latin_1",
    "glob",
    "oinetd.admin.scrape",
    "oinetd.observe.metrics",
)
"""Modules that are imported on demand. The new user may not be able to read the interpreter's files."""

NOT_ROOT: Final = "-u: only root can become another user; start it as root, or as the user that is to serve, without -u"

logger = logging.getLogger("oinetd")


class _Refused(PermissionError):
    """The process may not do what -u needs; its text is the message."""

    def __str__(self) -> str:
        return str(self.strerror)


@dataclass(frozen=True, slots=True)
class Identity:
    """The user and groups to become; `groups` are the supplementary groups."""

    uid: int
    gid: int
    groups: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """`user` or `user:group`, by name or number. Raises `ValueError` with a message for the operator."""
        user, colon, group = text.partition(":")
        try:
            account = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
        except KeyError:
            if not (user.isdecimal() and group):
                raise ValueError(f"unknown user {user!r}") from None
            account = None
        try:
            entry = grp.getgrgid(int(group)) if group.isdecimal() else grp.getgrnam(group) if colon else None
        except KeyError:
            if not group.isdecimal():
                raise ValueError(f"unknown group {group!r}") from None
            entry = None
        if account is None:
            gid = entry.gr_gid if entry else int(group)
            return cls(int(user), gid, (gid,))
        gid = entry.gr_gid if entry else int(group) if group else account.pw_gid
        return cls(account.pw_uid, gid, tuple(sorted(os.getgrouplist(account.pw_name, gid))))

    def assume(self, kept: int = KEPT) -> None:
        """Become this user for good, with the capabilities `kept`. Raises `OSError` if the process may not.

        Only the calling thread changes its capabilities, so the process must have no other thread; later threads
        inherit what is left. The capabilities left are to bind ports below 1024, and what the rules need for their
        connections: in the effective, permitted and bounding sets. A program that it starts has only the rights of the
        user (no_new_privs, and empty inheritable and ambient sets).
        """
        if (os.getuid(), os.getgid()) == (self.uid, self.gid) and os.geteuid() == self.uid:
            return
        for module in IMPORTED_LATER:
            importlib.import_module(module)
        libc = _libc()
        if self.uid:
            # While the process is root: this needs a capability itself.
            _limit_bounding_set(libc, kept)
        libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)
        # In this order: a process that is no longer root cannot change its groups.
        try:
            os.setgroups(self.groups)
        except PermissionError as error:
            raise _Refused(error.errno, NOT_ROOT) from None
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)
        libc.prctl(PR_SET_KEEPCAPS, 0, 0, 0, 0)
        if self.uid:
            _keep_only(libc, kept)
        libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
        if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
            logger.warning("cannot set no_new_privs: %s", os.strerror(_errno()))


def _limit_bounding_set(libc: ctypes.CDLL, kept: int) -> None:
    """Remove every capability that is not in `kept` from the bounding set of the calling thread."""
    for number in range(CAPABILITIES_MAX):
        present = libc.prctl(PR_CAPBSET_READ, number, 0, 0, 0)
        if present < 0:
            return  # beyond the last capability of this kernel
        if present and not kept >> number & 1 and libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0):
            logger.warning(
                "cannot reduce the capability bounding set: %s; no_new_privs still applies",
                os.strerror(_errno()),
            )
            return


def _keep_only(libc: ctypes.CDLL, capabilities: int) -> None:
    """Reduce the calling thread to `capabilities`, or to none if it does not have them. Raises `OSError`."""
    for kept in (capabilities, KEPT, 0):
        if _set_capabilities(libc, kept, 0):
            break
    else:
        number = _errno()
        raise OSError(number, f"cannot drop the capabilities of root: {os.strerror(number)}")
    if not kept:
        logger.info("CAP_NET_BIND_SERVICE not available: ports below 1024 cannot be bound, at start or on reload")


def kept_for(config: Config) -> int:
    """The capabilities that the rules need for as long as they serve."""
    options = [rule.options for rule in config.rules]
    mark = KEPT_FOR_MARK if any(each.mark for each in options) else 0
    return KEPT | mark | (KEPT_FOR_TRANSPARENT if any(each.from_client or each.transparent for each in options) else 0)


def drop_root(identity: Identity, config: Config) -> None:
    """Become `identity`. The new user, who has to reopen the log, becomes its owner if it is still empty."""
    log = config.log
    if ConnectionLog.is_file(log):
        try:
            give_empty_file(log.file, identity.uid, identity.gid)
        except FileNotFoundError:
            pass
        except PermissionError as error:
            if not os.geteuid():
                raise _Refused(error.errno, f"-u: cannot give {log.file} to its user: {error.strerror}") from None
            raise _Refused(error.errno, NOT_ROOT) from None
    identity.assume(kept_for(config))


def has_ambient() -> bool:
    """Whether programs that this process starts have its capabilities anyway, as the service manager has said."""
    return _capabilities("CapAmb") != 0


@contextlib.contextmanager
def passed_on() -> Iterator[None]:
    """What the calling thread starts meanwhile has its capabilities, too: only for the program that replaces this one.

    Without it a user other than root has none in a new program, and could bind no port below 1024.
    """
    kept = _capabilities("CapPrm")
    if os.geteuid() == 0 or not kept or has_ambient():
        yield
        return
    libc = _libc()
    _set_capabilities(libc, kept, kept)
    try:
        for number in range(CAPABILITIES_MAX):
            if kept >> number & 1 and libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number, 0, 0):
                logger.warning("upgrade: cannot pass capability %d on: %s", number, os.strerror(_errno()))
        yield
    finally:
        _set_capabilities(libc, kept, 0)  # takes them out of the ambient set, too


def keep_to_oneself() -> None:
    """The calling thread, the only one, was started with `passed_on`: what it starts has none of its capabilities."""
    _set_capabilities(_libc(), _capabilities("CapPrm"), 0)


def _capabilities(name: str) -> int:
    """A set of the calling thread, as proc(5) calls it."""
    for line in Path("/proc/thread-self/status").read_text(encoding="ascii", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value, 16)
    return 0


def _set_capabilities(libc: ctypes.CDLL, kept: int, inheritable: int) -> bool:
    """Whether the calling thread now has `kept` in force, and these are `inheritable`."""
    import ctypes

    header = (ctypes.c_uint32 * 2)(LINUX_CAPABILITY_VERSION_3, 0)
    low = (1 << 32) - 1
    # Effective, permitted, inheritable: the low words, then the high ones.
    sets = (ctypes.c_uint32 * 6)(kept & low, kept & low, inheritable & low, kept >> 32, kept >> 32, inheritable >> 32)
    return int(libc.capset(header, sets)) == 0


def _libc() -> ctypes.CDLL:
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


def _errno() -> int:
    import ctypes

    return ctypes.get_errno()
