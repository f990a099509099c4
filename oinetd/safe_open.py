"""Opens the files of a configuration safely: other users cannot redirect them to other files.

Root opens logs and pid files in directories that other users may write to. Through a symbolic link of such a user it
would write to any file. So each part of a path is opened separately, and a link is followed only if it belongs to root
or to the user of this process.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections import deque
from dataclasses import dataclass
from typing import Final, Self

__all__ = ["Location", "UnsafePath", "give_empty_file", "kind_of", "open_to_append", "own_descriptor"]

LINKS_MAX: Final = 40
"""The kernel's own limit for one path."""

_LOOK: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_PROC_ROOT_INODE: Final = 1
_STANDARD: Final = {"stdout": 1, "stderr": 2}
_OUR_NAMES: Final = re.compile(r"/(?:proc/(?:self|thread-self|(?P<pid>\d+))|dev)/fd/(?P<number>[12])")


class UnsafePath(OSError):
    """A path that is refused because another user could choose the file; `strerror` has the reason."""


def _refuse(path: str, sentence: str) -> UnsafePath:
    return UnsafePath(errno.ELOOP, sentence, path)


@dataclass(slots=True)
class Location:
    """A resolved path: the open directory `folder`, the `name` in it, and what is `found` there, or None.

    `magic` is whether it is a link of /proc, which only the kernel can follow. Close it, or use it in `with`.
    """

    path: str
    folder: int
    name: str
    found: os.stat_result | None
    magic: bool = False

    @classmethod
    def of(cls, path: str, *, follow: bool = True) -> Self:
        """Resolve `path`. Raises `OSError` if a directory is missing, `UnsafePath` for the link of another user.

        Without `follow`, a link in the last part of the path is not followed; `found` is then the link.
        """
        if not path:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        parts = deque(path.split("/"))
        folder = _open_folder("/" if path.startswith("/") else ".")
        links = 0
        try:
            # Bounded: each turn removes a part of the path, and at most `LINKS_MAX` links add parts.
            while True:
                name = parts.popleft() or "."
                last = not any(parts)
                entry = _look(folder, name, may_be_missing=last)
                if entry is None:
                    return cls(path, folder, name, None)
                try:
                    found = os.fstat(entry)
                    is_link = stat.S_ISLNK(found.st_mode)
                    if last and (not is_link or not follow):
                        return cls(path, folder, name, found)
                    if is_link:
                        links += 1
                        if links > LINKS_MAX:
                            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                        if not _is_ours(found):
                            raise _refuse(path, f"{name} is a symbolic link that another user made")
                        if last and _is_proc(folder):
                            return cls(path, folder, name, os.stat(name, dir_fd=folder), magic=True)
                        above = _follow(folder, name, entry, parts)
                        if above is not None:
                            folder, above = above, folder
                            os.close(above)
                    else:
                        folder, entry = entry, folder
                finally:
                    os.close(entry)
        except BaseException:
            os.close(folder)
            raise

    def open(self, flags: int, mode: int = 0) -> int:
        """Open the file, or create it with O_CREAT. Never blocks; a terminal never becomes the controlling one."""
        flags |= os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | (0 if self.magic else os.O_NOFOLLOW)
        return os.open(self.name, flags, mode, dir_fd=self.folder)

    @property
    def is_shared(self) -> bool:
        """Whether users other than root and the user of this process can create files in the directory."""
        folder = os.fstat(self.folder)
        return not _is_ours(folder) or bool(folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH))

    def close(self) -> None:
        """Close the directory. May be called twice."""
        folder, self.folder = self.folder, -1
        if folder >= 0:
            os.close(folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_to_append(path: str, mode: int) -> int:
    """Open `path` for appending; create it with `mode` if it does not exist. Raises `OSError`."""
    with Location.of(path) as place:
        create = 0 if place.magic else os.O_CREAT
        fd = place.open(os.O_WRONLY | os.O_APPEND | create, mode)
        found = os.fstat(fd)
        if stat.S_ISREG(found.st_mode) and found.st_nlink > 1 and place.is_shared:
            os.close(fd)
            raise _refuse(path, "has more than one hard link, and other users can write to its directory")
        return fd


def give_empty_file(path: str, uid: int, gid: int) -> None:
    """Change the owner of an empty file of this process's user. A file with content keeps its owner."""
    with Location.of(path) as place:
        found = place.found
        if found is None or place.magic or not stat.S_ISREG(found.st_mode):
            return
        if found.st_size == 0 and found.st_uid == os.geteuid() and found.st_nlink == 1:
            os.chown(place.name, uid, gid, dir_fd=place.folder, follow_symlinks=False)


def own_descriptor(path: str) -> int | None:
    """1 or 2 if `path` is another name of this process's standard output or standard error, such as /dev/stdout.

    Such a path cannot be opened if the descriptor is a socket, or if its owner is a user that the process was before.
    """
    for _ in range(LINKS_MAX):
        path = os.path.normpath(path)
        if os.path.dirname(path) == "/dev" and os.path.basename(path) in _STANDARD:
            return _STANDARD[os.path.basename(path)]
        named = _OUR_NAMES.fullmatch(path)
        if named and named["pid"] in (None, str(os.getpid())):
            return int(named["number"])
        try:
            path = os.path.join(os.path.dirname(path), os.readlink(path))
        except OSError:
            return None
    return None


def kind_of(mode: int) -> str:
    """The kind of a file as text; empty for a regular file."""
    kinds = {
        stat.S_IFDIR: "a directory",
        stat.S_IFCHR: "a character device",
        stat.S_IFBLK: "a block device",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(mode), "")


def _look(folder: int, name: str, *, may_be_missing: bool) -> int | None:
    try:
        return os.open(name, _LOOK, dir_fd=folder)
    except FileNotFoundError:
        if may_be_missing:
            return None
        raise


def _follow(folder: int, name: str, link: int, parts: deque[str]) -> int | None:
    """Insert the target of a link before `parts`. Returns the directory to continue from, None if it is the same."""
    if _is_proc(folder):
        return _open_folder(name, folder)
    target = os.readlink("", dir_fd=link)
    parts.extendleft(reversed(target.split("/")))
    return _open_folder("/") if target.startswith("/") else None


def _open_folder(name: str, folder: int | None = None) -> int:
    return os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)


def _is_ours(found: os.stat_result) -> bool:
    return found.st_uid in (0, os.geteuid())


def _is_proc(folder: int) -> bool:
    """Whether the directory is in /proc, where the target of a link may have no path."""
    try:
        proc = os.stat("/proc")
    except OSError:
        return False
    return proc.st_ino == _PROC_ROOT_INODE and os.fstat(folder).st_dev == proc.st_dev != os.stat("/").st_dev
