"""Who -u names; becoming it is in tests/daemon."""

from __future__ import annotations

import ctypes
import errno
import grp
import os
import pwd

import pytest

from oinetd.process.privileges import PR_SET_KEEPCAPS, Identity

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
