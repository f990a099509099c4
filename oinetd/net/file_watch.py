"""Reports changed files: written, renamed into place, or reached by another symbolic link.

inotify watches folders, not files: an editor replaces a file, and Kubernetes changes a mounted ConfigMap by replacing
one link in a chain of links (`oinetd.conf -> ..data/oinetd.conf`, `..data -> ..2026_11_26_10_15`). So the folder of
the file is watched, and each folder in which a part of the path is a link. An event is only a hint: `look` decides
whether a file has changed, after `QUIET_S` without an event. So a file that is half written is not read, and an event
about another file of the folder costs a few calls of stat.

Some changes cause no event: another machine writes to a network disk, a parent folder is renamed, the limit of inotify
instances is reached. So the files are checked every `POLL_S` as well.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable
from glob import has_magic
from typing import TYPE_CHECKING, Final

from oinetd.file_state import FileSource, State, look

if TYPE_CHECKING:
    import ctypes

__all__ = ["FileWatch", "folders_of"]

QUIET_S: Final = 0.2
QUIET_MAX_S: Final = 2.0
"""Endless events in a folder delay the check by no more than this."""
POLL_S: Final = 5.0
LINKS_MAX: Final = 40
"""The kernel's own limit for one path."""
EVENTS_BYTES: Final = 65536

# From <sys/inotify.h>.
_IN_MODIFY: Final = 0x002
_IN_ATTRIB: Final = 0x004
_IN_CLOSE_WRITE: Final = 0x008
_IN_MOVED: Final = 0x0C0
_IN_CREATE: Final = 0x100
_IN_DELETE: Final = 0x200
_IN_SELF: Final = 0xC00
_IN_ONLYDIR: Final = 0x01000000
_WRITTEN: Final = _IN_MODIFY | _IN_ATTRIB | _IN_CLOSE_WRITE
_EVENTS: Final = _WRITTEN | _IN_MOVED | _IN_CREATE | _IN_DELETE | _IN_SELF | _IN_ONLYDIR

logger = logging.getLogger("oinetd")


class FileWatch:
    """Calls `changed` on the event loop when one of the watched files has changed."""

    def __init__(self, loop: asyncio.AbstractEventLoop, changed: Callable[[], object]) -> None:
        self._loop = loop
        self._changed = changed
        self._seen: dict[str, State] = {}
        self._fd = -1
        self._folders: set[str] = set()
        self._complained = False
        self._first_event_at = 0.0
        self._quiet: asyncio.TimerHandle | None = None
        self._poll: asyncio.TimerHandle | None = None

    def watch(self, sources: Iterable[FileSource]) -> None:
        """Watch these files, and no others. A file that differs from the state in its source has changed."""
        self._seen = dict(sources)
        if self._fd < 0:
            self._open()
        self._renew()
        if self._poll is None:
            self._poll = self._loop.call_later(POLL_S, self._on_poll)
        if self._find() is not None:
            self._wait_for_quiet()

    def close(self) -> None:
        """Stop watching."""
        for timer in (self._quiet, self._poll):
            if timer is not None:
                timer.cancel()
        self._quiet = self._poll = None
        self._forget()

    def _open(self) -> None:
        fd = _libc().inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if fd < 0:
            self._complain(_last_error())
            return
        try:
            self._loop.add_reader(fd, self._on_events)
        except OSError as error:
            os.close(fd)
            self._complain(error.strerror or str(error))
            return
        self._fd = fd

    def _forget(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
        self._fd = -1
        self._folders = set()

    def _renew(self) -> None:
        """Watch the folders on the present ways of the paths."""
        if self._fd < 0:
            return
        wanted = {folder for path in self._seen for folder in folders_of(path)}
        if self._folders - wanted:  # closing the descriptor is the simplest and fastest way to end watches
            self._forget()
            self._open()
        for folder in sorted(wanted - self._folders):
            if self._fd >= 0 and _libc().inotify_add_watch(self._fd, os.fsencode(folder), _EVENTS) < 0:
                self._complain(f"{folder}: {_last_error()}")
                continue
            self._folders.add(folder)

    def _complain(self, reason: str) -> None:
        if not self._complained:
            self._complained = True
            logger.warning("watch: no events for changed files (%s); looking every %g s", reason, POLL_S)

    def _on_events(self) -> None:
        try:
            if os.read(self._fd, EVENTS_BYTES):
                # A folder that was replaced has lost its watch. To add an existing watch again costs one call.
                self._folders.clear()
                self._wait_for_quiet()
        except BlockingIOError:
            return

    def _on_poll(self) -> None:
        self._poll = self._loop.call_later(POLL_S, self._on_poll)
        if self._quiet is None and self._find() is not None:
            self._wait_for_quiet()

    def _wait_for_quiet(self) -> None:
        now = self._loop.time()
        if self._quiet is None:
            self._first_event_at = now
        else:
            self._quiet.cancel()
        at = min(now + QUIET_S, self._first_event_at + QUIET_MAX_S)
        self._quiet = self._loop.call_at(max(at, now), self._on_quiet)

    def _on_quiet(self) -> None:
        self._quiet = None
        self._renew()
        path = self._find()
        if path is not None:
            # Report it once: a later change is another one.
            self._seen = {each: look(each) for each in self._seen}
            self._changed()

    def _find(self) -> str | None:
        """The first path whose file has changed; None if there is none."""
        return next((path for path, state in self._seen.items() if look(path) != state), None)


def folders_of(path: str) -> set[str]:
    """The folders in which a change can make `path` another file: of the file, and of each link on the way to it."""
    folders = set()
    if has_magic(path):
        while has_magic(path):
            path = os.path.dirname(path)
        path = os.path.join(path or ".", "*")
    done, left = "/", _parts(os.path.abspath(path))
    links = 0
    while left:
        part = left.pop(0)
        whole = os.path.normpath(os.path.join(done, part))
        try:
            target = os.readlink(whole) if links < LINKS_MAX else ""
        except OSError:
            target = ""
        if target:
            links += 1
            folders.add(done)
            left = _parts(target) + left
            done = "/" if target.startswith("/") else done
        elif left and not os.path.isdir(whole):
            break  # the rest may be created later: `done` is the last existing folder
        elif left:
            done = whole
    return folders | {done}


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _libc() -> ctypes.CDLL:
    import ctypes  # when something is watched: it takes a descriptor of libffi

    return ctypes.CDLL(None, use_errno=True)


def _last_error() -> str:
    import ctypes

    return os.strerror(ctypes.get_errno())
