"""Giving up root, once the files are open: before there is a thread, a name is looked up or a client served."""

from __future__ import annotations

import ctypes
import grp
import importlib
import logging
import os
import pwd
from dataclasses import dataclass
from typing import Final, Self

__all__ = ["Identity"]

PR_SET_KEEPCAPS: Final = 8
PR_CAPBSET_READ: Final = 23
PR_CAPBSET_DROP: Final = 24
PR_SET_NO_NEW_PRIVS: Final = 38
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
CAP_NET_BIND_SERVICE: Final = 10
LINUX_CAPABILITY_VERSION_3: Final = 0x20080522
"""From linux/prctl.h and linux/capability.h; version 3 has two words for each set."""

CAPABILITIES_MAX: Final = 64
"""As many as the sets have bits."""

KEPT: Final = 1 << CAP_NET_BIND_SERVICE
"""For the start, which binds after the change of user, and for rules that a reload adds."""

IMPORTED_LATER: Final = (
    "concurrent.futures.thread",
    "difflib",
    "encodings.ascii",
    "encodings.idna",
    "encodings.latin_1",
    "glob",
)
"""What is imported only when it is needed. The user may not be able to read the files of the interpreter."""

logger = logging.getLogger("oinetd")


@dataclass(frozen=True, slots=True)
class Identity:
    """A user and a group to become; `groups` are all that the process will be in."""

    uid: int
    gid: int
    groups: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """`user` or `user:group`, by name or number. Raises `ValueError` with a sentence for the operator."""
        user, colon, group = text.partition(":")
        try:
            account = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
        except KeyError:
            if not (user.isdecimal() and group):
                raise ValueError(f"there is no user {user!r}") from None
            account = None
        try:
            entry = grp.getgrgid(int(group)) if group.isdecimal() else grp.getgrnam(group) if colon else None
        except KeyError:
            if not group.isdecimal():
                raise ValueError(f"there is no group {group!r}") from None
            entry = None
        if account is None:
            gid = entry.gr_gid if entry else int(group)
            return cls(int(user), gid, (gid,))
        gid = entry.gr_gid if entry else int(group) if group else account.pw_gid
        return cls(account.pw_uid, gid, tuple(sorted(os.getgrouplist(account.pw_name, gid))))

    def assume(self) -> None:
        """Become this user for good. Raises `OSError` if the process may not.

        Only the calling thread changes its capabilities, so this is for a process that has no other thread yet; those
        that it starts later are as it is then. What is left of root is the one capability to bind ports below 1024: in
        the effective and permitted sets, and in the bounding set. No program that it could start would have more than
        the user has (no_new_privs, and empty inheritable and ambient sets).
        """
        if (os.getuid(), os.getgid()) == (self.uid, self.gid) and os.geteuid() == self.uid:
            return
        for module in IMPORTED_LATER:
            importlib.import_module(module)
        libc = ctypes.CDLL(None, use_errno=True)
        if self.uid:
            # While the process is root: dropping from the bounding set takes a capability itself.
            _limit_bounding_set(libc, KEPT)
        libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)
        # The order matters: after the user is changed, the groups can no longer be.
        os.setgroups(self.groups)
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)
        libc.prctl(PR_SET_KEEPCAPS, 0, 0, 0, 0)
        if self.uid:
            _keep_only(libc, KEPT)
        libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
        if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
            logger.warning("cannot set no_new_privs: %s", os.strerror(ctypes.get_errno()))


def _limit_bounding_set(libc: ctypes.CDLL, kept: int) -> None:
    """Take every capability out of the bounding set of the calling thread that is not in `kept`."""
    for number in range(CAPABILITIES_MAX):
        present = libc.prctl(PR_CAPBSET_READ, number, 0, 0, 0)
        if present < 0:
            return  # The kernel knows no more of them.
        if present and not kept >> number & 1 and libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0):
            logger.warning(
                "cannot reduce the capability bounding set: %s; no_new_privs holds all the same",
                os.strerror(ctypes.get_errno()),
            )
            return


def _keep_only(libc: ctypes.CDLL, capabilities: int) -> None:
    """Reduce the calling thread to `capabilities`; to none if it does not have them. Raises `OSError`."""
    header = (ctypes.c_uint32 * 2)(LINUX_CAPABILITY_VERSION_3, 0)
    for kept in (capabilities, 0):
        # Effective, permitted, inheritable: the low words, then the high ones.
        sets = (ctypes.c_uint32 * 6)(kept, kept, 0, 0, 0, 0)
        if libc.capset(header, sets) == 0:
            break
    else:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot give up the capabilities of root: {os.strerror(number)}")
    if kept != capabilities:
        logger.info("without the capability to bind ports below 1024: neither the start nor a reload can bind them")
