"""Giving up root, once the sockets are bound and the files are open."""

from __future__ import annotations

import ctypes
import grp
import logging
import os
import pwd
from dataclasses import dataclass
from typing import Final, Self

__all__ = ["Identity"]

PR_SET_KEEPCAPS: Final = 8
CAP_NET_BIND_SERVICE: Final = 10
LINUX_CAPABILITY_VERSION_3: Final = 0x20080522
"""From linux/prctl.h and linux/capability.h; version 3 has two words for each set."""

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
        """Become this user for good. Raises `PermissionError` where the process is not root.

        Kept is the one capability to bind ports below 1024, so that a reload can add such a rule; where the kernel
        refuses that, such a reload will fail and say so.
        """
        if (os.getuid(), os.getgid()) == (self.uid, self.gid) and os.geteuid() == self.uid:
            return
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)
        # The order matters: after the user is changed, the groups can no longer be.
        os.setgroups(self.groups)
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)
        if self.uid:
            _keep_only(libc, 1 << CAP_NET_BIND_SERVICE)


def _keep_only(libc: ctypes.CDLL, capabilities: int) -> None:
    """Reduce the calling thread to `capabilities`; without them where it does not have them itself."""
    header = (ctypes.c_uint32 * 2)(LINUX_CAPABILITY_VERSION_3, 0)
    for kept in (capabilities, 0):
        # Effective, permitted, inheritable: the low words, then the high ones.
        sets = (ctypes.c_uint32 * 6)(kept, kept, 0, 0, 0, 0)
        if libc.capset(header, sets) == 0:
            break
    if kept != capabilities:
        logger.info("without the capability to bind ports below 1024: a reload cannot add any")
