"""Who -u names; becoming it is in tests/daemon."""

from __future__ import annotations

import ctypes
import errno
import grp
import os
import pwd

import pytest

from oinetd import parse_config
from oinetd.process import privileges
from oinetd.process.privileges import PR_SET_KEEPCAPS, Identity, drop_root

DAEMON = pwd.getpwnam("daemon")


def test_a_name_brings_its_groups() -> None:
    groups = tuple(sorted(os.getgrouplist("daemon", DAEMON.pw_gid)))
    assert Identity.parse("daemon") == Identity(DAEMON.pw_uid, DAEMON.pw_gid, groups)
    assert Identity.parse(str(DAEMON.pw_uid)) == Identity(DAEMON.pw_uid, DAEMON.pw_gid, groups)


def test_another_group() -> None:
    gid = grp.getgrnam("nogroup").gr_gid
    for text in ("daemon:nogroup", f"daemon:{gid}", f"{DAEMON.pw_uid}:nogroup"):
        identity = Identity.parse(text)
        assert (identity.uid, identity.gid) == (DAEMON.pw_uid, gid)
        assert gid in identity.groups


def test_numbers_without_names() -> None:
    assert Identity.parse("54321:54322") == Identity(54321, 54322, (54322,))
    assert Identity.parse("daemon:54322").gid == 54322
    assert Identity.parse("54321:nogroup").gid == grp.getgrnam("nogroup").gr_gid


@pytest.mark.parametrize(
    "text", ["", ":", ":nogroup", "54321", "54321:", "no-such-user", "daemon:no-such-group", "daemon:"]
)
def test_mistakes(text: str) -> None:
    with pytest.raises(ValueError, match=r"unknown (user|group)"):
        Identity.parse(text)


def test_who_is_not_root_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def setgroups(_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "setgroups", setgroups)
    try:
        with pytest.raises(PermissionError, match=r"^-u: only root can become another user; start it as root, or as"):
            Identity(0, 54321, ()).assume()
    finally:
        ctypes.CDLL(None).prctl(PR_SET_KEEPCAPS, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("user", "message"),
    [(54321, "-u: only root can become another user; start it as root"), (0, "-u: cannot give LOG to its user: no")],
)
def test_a_log_that_cannot_be_given_away(monkeypatch: pytest.MonkeyPatch, user: int, message: str) -> None:
    """Not by another user than root, and not by root on some network disks."""

    def give(path: str, uid: int, gid: int) -> None:
        raise PermissionError(errno.EPERM, "no", "log")

    monkeypatch.setattr(privileges, "give_empty_file", give)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    with pytest.raises(PermissionError) as caught:
        drop_root(Identity(12345, 12345, ()), parse_config("logfile LOG\n"))
    assert str(caught.value).startswith(message)
