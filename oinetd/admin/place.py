"""Where the admin socket is: its default path, and how it is made and found without a moment of wider rights.

The directory has to belong to root or to the user of this process, and nobody else may write to it; a directory for
temporary files is never used. A socket gets its final mode before it has a name.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import socket
import stat
from collections.abc import Iterator, Mapping
from typing import Final

from oinetd.net.unix_sockets import FileAccess, peer_of
from oinetd.safe_open import Location

__all__ = [
    "InUse",
    "PlaceUnavailable",
    "bind_socket",
    "default_folders",
    "instance_name",
    "owner_ids",
    "short_path",
]

SYSTEM_FOLDER: Final = "/run/oinetd"
PATH_BYTES_MAX: Final = 107
"""sun_path of a unix address, less its NUL."""

BACKLOG: Final = 64
SUFFIX: Final = ".sock"
_UNFIT: Final = re.compile(r"[^A-Za-z0-9_.-]")


logger = logging.getLogger("oinetd")


class PlaceUnavailable(OSError):
    """There is no place for the socket; `strerror` says why, with the remedy."""

    def __str__(self) -> str:
        return self.strerror or ""


class InUse(PlaceUnavailable):
    """Another oinetd has this socket; `strerror` has its pid."""


def instance_name(conf_file: str, pid: int) -> str:
    """The name of an instance: the stem of its configuration file, or `oinetd-PID` if there is none."""
    stem = os.path.splitext(os.path.basename(conf_file))[0] if conf_file else ""
    return _UNFIT.sub("_", stem).lstrip(".")[:64] or f"oinetd-{pid}"


def default_folders(environ: Mapping[str, str], uid: int) -> list[str]:
    """The directories in which sockets of instances may be, the one for a new instance first.

    The service manager's `RUNTIME_DIRECTORY` comes before /run/oinetd (root) and `$XDG_RUNTIME_DIR/oinetd`.
    """
    managed = [path for path in environ.get("RUNTIME_DIRECTORY", "").split(":") if path.startswith("/")][:1]
    own = environ.get("XDG_RUNTIME_DIR", "")
    users = [os.path.join(own, "oinetd")] if own.startswith("/") and uid else []
    return list(dict.fromkeys([*managed, *([SYSTEM_FOLDER] if not uid else []), *users]))


def owner_ids(owner: str) -> tuple[int, int]:
    """The uid and gid of `user` or `user:group`; -1 if nothing is said. Raises `PlaceUnavailable`."""
    try:
        return FileAccess(owner=owner).ids()
    except LookupError as error:
        raise PlaceUnavailable(errno.ENOENT, f"admin socket: {error}") from None


def bind_socket(path: str, mode: int, uid: int, gid: int, *, make_folder: bool) -> socket.socket:
    """A listening unix socket at `path` with this mode and owner (-1: unchanged).

    A socket that no process listens on any more is replaced. Raises `InUse` or `PlaceUnavailable`.
    """
    folder = os.path.dirname(path)
    try:
        if make_folder:
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder, 0o755)
        with Location.of(path, follow=False) as place:
            if place.is_shared:
                raise _unavailable(path, f"other users can write to the directory {folder}", errno.EPERM)
            if place.found is not None and not stat.S_ISSOCK(place.found.st_mode):
                raise _unavailable(path, "there is another file of this name", errno.EEXIST)
            own = os.open(f"/proc/self/fd/{place.folder}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(own, fcntl.LOCK_EX)  # two that start at the same time
                return _bind(place, path, mode, uid, gid)
            finally:
                os.close(own)
    except PlaceUnavailable:
        raise
    except OSError as error:
        raise _unavailable(path, error.strerror or str(error), error.errno or 0) from None


def _bind(place: Location, path: str, mode: int, uid: int, gid: int) -> socket.socket:
    if place.found is not None:
        pid = _listener(place, path)
        if pid:
            raise InUse(errno.EADDRINUSE, _in_use(path, pid))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(place.name, dir_fd=place.folder)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        # The file of a socket begins with the mode of its descriptor, less the umask.
        os.fchmod(sock.fileno(), mode & 0o600)
        sock.bind(path if len(os.fsencode(path)) <= PATH_BYTES_MAX else f"/proc/self/fd/{place.folder}/{place.name}")
        if uid >= 0 or gid >= 0:
            os.chown(place.name, uid, gid, dir_fd=place.folder, follow_symlinks=False)
        os.chmod(f"/proc/self/fd/{place.folder}/{place.name}", mode)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _listener(place: Location, path: str) -> int:
    """The pid of the process that listens on the socket; 0 if there is none, or if it is about to end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2.0)
        try:
            probe.connect(f"/proc/self/fd/{place.folder}/{place.name}")
            pid = peer_of(probe).pid
            probe.sendall(b"GET /v1/health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            answer = b""
            while len(answer) < 4096 and (part := probe.recv(4096)):
                answer += part
        except ConnectionRefusedError:
            logger.info("admin socket %s: replacing the file of a process that has ended", path)
            return 0
        except (TimeoutError, BlockingIOError):
            return peer_of(probe).pid or -1  # it is busy, or has stopped
        except ConnectionError:
            return 0
    return 0 if b'"status":"draining"' in answer else pid


@contextlib.contextmanager
def short_path(path: str) -> Iterator[str]:
    """A path of the socket that a unix address has room for."""
    if len(os.fsencode(path)) <= PATH_BYTES_MAX:
        yield path
        return
    folder = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{os.path.basename(path)}"
    finally:
        os.close(folder)


def _in_use(path: str, pid: int) -> str:
    who = f"another oinetd (pid {pid})" if pid > 0 else "another process"
    return (
        f"admin socket {path}: in use by {who}; choose another name (-n NAME) or path (admin unix:PATH), or admin off"
    )


def _unavailable(path: str, why: str, number: int) -> PlaceUnavailable:
    return PlaceUnavailable(number, f"admin socket {path}: {why}; choose another path (admin unix:PATH), or admin off")
