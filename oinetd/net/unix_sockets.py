"""Unix sockets to listen on. The file of a socket is removed when the socket is closed.

A path that is in use is never taken from another program. A file that is not a socket, a link, and a socket with a
listening process are errors, and stay. Only a socket without a listening process, as a crash leaves it, is replaced.

The file is created without any permission, then gets its owner and mode, and only then does the socket listen. Its
folder is resolved as in `safe_open`: through no link that another user made.
"""

from __future__ import annotations

import errno
import grp
import logging
import os
import pwd
import select
import socket
import stat
import struct
from typing import NamedTuple

from oinetd.errors import BindError
from oinetd.model import RuleOptions
from oinetd.net.address import Address
from oinetd.safe_open import Location, kind_of

__all__ = ["Credentials", "FileAccess", "UnixListener", "bind_unix", "group_of", "has_clients", "peer_of", "user_of"]

logger = logging.getLogger("oinetd")

MODE = 0o660
"""The mode of the file without `mode=`: for programs of the same user and group."""

_UCRED = struct.Struct("3i")


class Credentials(NamedTuple):
    """The peer process of a unix socket, as the kernel recorded it at the connect."""

    pid: int
    uid: int
    gid: int


class FileAccess(NamedTuple):
    """Mode and owner of the file of a unix socket; None if the rule does not set them."""

    mode: int | None = None
    owner: str | None = None

    @classmethod
    def of(cls, options: RuleOptions) -> FileAccess:
        """Those of a rule."""
        return cls(options.unix_mode, options.unix_owner)

    def ids(self) -> tuple[int, int]:
        """The user and the group as numbers, -1 to leave one as it is. Raises `LookupError`, worded for the log."""
        user, _, group = (self.owner or "").partition(":")
        return (user_of(user) if user else -1, group_of(group) if group else -1)


def user_of(name: str) -> int:
    """The number of a user. Raises `LookupError`."""
    if name.isdecimal():
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise LookupError(f"there is no user {name!r}") from None


def group_of(name: str) -> int:
    """The number of a group. Raises `LookupError`."""
    if name.isdecimal():
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise LookupError(f"there is no group {name!r}") from None


def peer_of(sock: socket.socket) -> Credentials:
    """The peer process of a connected unix socket."""
    return Credentials(*_UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))


def has_clients(sock: socket.socket) -> bool:
    """Whether a connection waits in the accept queue of a listening socket."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


class UnixListener(socket.socket):
    """A unix socket to listen on. Closing it removes its file, if this is still the file that it created."""

    path = ""  # of the file; empty in the abstract namespace, or if another process owns the file now
    inode = (0, 0)
    lent = False  # by another process, whose file it is until all was taken over

    def own_file(self, path: str) -> None:
        """Treat the socket file that is at `path` now as the file of this socket."""
        found = os.lstat(path)
        self.path, self.inode = path, (found.st_dev, found.st_ino)

    def leave_file(self) -> None:
        """Never remove the file: another process has this socket, too, and listens."""
        self.path = ""

    def set_access(self, access: FileAccess) -> None:
        """Give the file its owner and mode. Raises `OSError`, also if the file was replaced."""
        if not self.path:
            return
        uid, gid = access.ids()
        with Location.of(self.path, follow=False) as place:
            fd = os.open(place.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place.folder)
            try:
                found = os.fstat(fd)
                if (found.st_dev, found.st_ino) != self.inode or not stat.S_ISSOCK(found.st_mode):
                    raise FileNotFoundError(errno.ENOENT, "the file of the socket was replaced", self.path)
                if (uid, gid) != (-1, -1):
                    os.chown(f"/proc/self/fd/{fd}", uid, gid)
                os.chmod(f"/proc/self/fd/{fd}", MODE if access.mode is None else access.mode)
            finally:
                os.close(fd)

    def remove_file(self) -> bool:
        """Remove the file, so that no new client connects; the accept queue stays. Returns whether it was removed."""
        path, self.path = self.path, ""
        if not path or self.lent:
            return False
        try:
            with Location.of(path, follow=False) as place:
                found = place.found
                if found is not None and (found.st_dev, found.st_ino) == self.inode and stat.S_ISSOCK(found.st_mode):
                    os.unlink(place.name, dir_fd=place.folder)
        except OSError as error:
            logger.warning("unix:%s: cannot remove the file of the socket: %s", path, error.strerror)
            return False
        return True

    def close(self) -> None:
        """Close the socket and remove its file."""
        if self.fileno() >= 0:
            self.remove_file()
        super().close()


def bind_unix(address: Address, access: FileAccess) -> UnixListener:
    """A unix socket bound to `address`, not yet listening. Raises `BindError`."""
    path = str(address.sockaddr)
    sock = UnixListener(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if path.startswith("\0"):
            sock.bind(path)
            return sock
        access.ids()
        with Location.of(path, follow=False) as place:
            if place.found is not None:
                _remove_stale(place)
            os.fchmod(sock.fileno(), 0)  # the file gets the mode of the socket's own inode
            sock.bind(path)
            made = os.stat(place.name, dir_fd=place.folder, follow_symlinks=False)
        sock.path, sock.inode = path, (made.st_dev, made.st_ino)
        sock.set_access(access)
    except (OSError, LookupError) as error:
        sock.close()
        raise _error(address, error) from error
    except BaseException:
        sock.close()
        raise
    return sock


class _InTheWayError(OSError):
    """The path of the socket is in use; `strerror` says by what, and the remedy."""


def _remove_stale(place: Location) -> None:
    """Remove a socket that no process listens on. Raises `OSError` for anything else."""
    assert place.found is not None
    if not stat.S_ISSOCK(place.found.st_mode):
        kind = kind_of(place.found.st_mode) or "a file"
        what = f"there is {kind} at this path, which is left as it is; remove it or choose another path"
        raise _InTheWayError(errno.EEXIST, what)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        code = probe.connect_ex(f"/proc/self/fd/{place.folder}/{place.name}")
    if code in (0, errno.EAGAIN, errno.EPROTOTYPE):
        raise _InTheWayError(errno.EADDRINUSE, "another program listens there (`ss -xlp` shows which)")
    if code == errno.ECONNREFUSED:
        os.unlink(place.name, dir_fd=place.folder)
    elif code != errno.ENOENT:
        raise _InTheWayError(code, f"cannot find out whether a program listens there: {os.strerror(code)}")


def _error(address: Address, error: OSError | LookupError) -> BindError:
    if isinstance(error, LookupError):
        return BindError(f"cannot listen on {address}: {error}", errno.EINVAL)
    remedy = {
        errno.ENOENT: "its folder does not exist (RuntimeDirectory= in a unit makes one)",
        errno.EACCES: "not permitted: this user cannot make files there",
        errno.EPERM: "not permitted to give the file this owner: needs root or CAP_CHOWN",
        errno.EADDRINUSE: "another program listens there (`ss -xlp` shows which)",
    }.get(error.errno or 0)
    if isinstance(error, _InTheWayError) or remedy is None:
        remedy = error.strerror or str(error)
    return BindError(f"cannot listen on {address}: {remedy}", error.errno or 0)
