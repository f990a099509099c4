"""The reading of files: a configuration and what it includes → statements, in the order in which they count.

`include GLOB` is relative to the folder of the file that says it, takes the files in the order of their
names, and stands for their text: what comes before and after it goes on around it. A name without wildcards
has to exist.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from oinetd.config.compile import argument_problem
from oinetd.config.privacy import everyone_may_read
from oinetd.config.syntax import Statement, read_statements
from oinetd.config.vocabulary import DIRECTIVES, Duty
from oinetd.errors import ConfigError, Problem

__all__ = ["load_statements"]

INCLUDE_DEPTH_MAX = 16
"""Deep enough for any tree of files that somebody keeps."""

INCLUDE_FILES_MAX = 10_000
"""Files that include each other twice on every level would otherwise be read 2¹⁶ times."""

FILE_BYTES_MAX = 64 << 20
"""A million rules. It ends the reading of something that has no end, such as /dev/zero."""

_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def load_statements(path: str) -> Iterator[Statement]:
    """The statements of the file and of all it includes.

    Raises `ConfigError` where the file itself cannot be read.
    """
    try:
        content = _read(path, path)
    except _Unreadable as error:
        raise ConfigError(Problem(f"cannot be read: {error.reason}", path, hint=error.hint)) from None
    return _Reader(path).statements(path, content, (content.identity,))


class _Unreadable(Exception):
    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint


class _Content(NamedTuple):
    """A file that was read. `identity` is its device and inode, `hidden` whether no message shows its text."""

    text: str
    identity: tuple[int, int]
    hidden: bool


@dataclass(slots=True)
class _Reader:
    """Counts the files of one configuration."""

    main: str
    files: int = 1

    def statements(self, path: str, content: _Content, stack: tuple[tuple[int, int], ...]) -> Iterator[Statement]:
        """The statements of a file that has been read; `stack` holds the identities of the files around it."""
        for statement in read_statements(content.text, path, hidden=content.hidden):
            entry = DIRECTIVES.get(statement.words[0].text) if statement.words else None
            sound = entry is not None and not statement.problems and argument_problem(statement, entry) is None
            if sound and entry is not None and entry.duty is Duty.INCLUDE and statement.words[1].text:
                yield from self._included(path, statement, stack)
            else:
                yield statement

    def _included(self, path: str, statement: Statement, stack: tuple[tuple[int, int], ...]) -> Iterator[Statement]:
        # Imported here, because few configurations include anything.
        from glob import glob, has_magic

        word = statement.words[1]
        pattern = os.path.join(os.path.dirname(path), word.text)
        names = sorted(glob(pattern)) if has_magic(pattern) else [pattern]
        for name in names:
            try:
                if len(stack) > INCLUDE_DEPTH_MAX:
                    raise _Unreadable(f"includes are nested more than {INCLUDE_DEPTH_MAX} deep")
                if self.files > INCLUDE_FILES_MAX:
                    raise _Unreadable(f"more than {INCLUDE_FILES_MAX} files are included")
                content = _read(name, self.main, regular=True)
                if content.identity in stack:
                    raise _Unreadable("it is being read already: the files include each other in a circle")
            except _Unreadable as error:
                problem = statement.line.problem(
                    f"{name} cannot be included: {error.reason}", word.column, word.width, error.hint
                )
                yield Statement(statement.line, problems=(problem,))
                if self.files > INCLUDE_FILES_MAX:
                    return
                continue
            self.files += 1
            yield from self.statements(name, content, (*stack, content.identity))


def _read(path: str, main: str, *, regular: bool = False) -> _Content:
    """What is in a file. `main` is the configuration's main file. `regular` refuses pipes, which might never end."""
    try:
        if regular and not stat.S_ISREG(os.stat(path).st_mode):
            raise _Unreadable("it is not a regular file")
        with open(path, "rb") as file:
            found = os.fstat(file.fileno())
            hidden = not everyone_may_read(file.fileno(), path, main)
            content = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise _Unreadable(error.strerror or str(error)) from None
    except ValueError as error:
        raise _Unreadable(str(error)) from None
    if len(content) > FILE_BYTES_MAX:
        raise _Unreadable(f"it has more than {FILE_BYTES_MAX >> 20} MiB")
    if content.startswith(_UTF16_MARKS):
        raise _Unreadable("it is in UTF-16", "save it as UTF-8")
    # A stray byte of another encoding, in a comment or a file's name, is carried through and does no harm.
    return _Content(content.decode("utf-8", "surrogateescape"), (found.st_dev, found.st_ino), hidden)
