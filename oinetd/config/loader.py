"""Reads a configuration file and its includes → statements, in order.

`include GLOB` is relative to the directory of the including file. The files are read in the order of their names, as
if their text were in place of the directive. A name without wildcards must exist.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from oinetd.config.compile import argument_problem
from oinetd.config.privacy import everyone_may_read
from oinetd.config.syntax import Statement, read_statements
from oinetd.config.vocabulary import DIRECTIVES, Duty
from oinetd.errors import ConfigError, Problem
from oinetd.file_state import FileSource, State, state_of

__all__ = ["load_statements"]

INCLUDE_DEPTH_MAX = 16
"""Deep enough for any real tree of files."""

INCLUDE_FILES_MAX = 10_000
"""If each file included two others, `INCLUDE_DEPTH_MAX` alone would allow 2¹⁶ files."""

FILE_BYTES_MAX = 64 << 20
"""A million rules. It is the limit for endless files such as /dev/zero."""

_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def load_statements(path: str, sources: list[FileSource] | None = None) -> Iterator[Statement]:
    """The statements of the file and of its includes; what is read on the way is added to `sources`.

    Raises `ConfigError` if the file itself cannot be read.
    """
    try:
        content = _read(path, path)
    except _Unreadable as error:
        raise ConfigError(Problem(f"cannot be read: {error.reason}", path, hint=error.hint)) from None
    reader = _Reader(path, [] if sources is None else sources)
    reader.sources.append(FileSource(path, content.state))
    return reader.statements(path, content, (content.identity,))


class _Unreadable(Exception):
    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint


class _Content(NamedTuple):
    """The content of a file, which is `identity` (device and inode); if it is `hidden`, no message shows its text."""

    text: str
    identity: tuple[int, int]
    hidden: bool
    state: State


@dataclass(slots=True)
class _Reader:
    """Reads the files of one configuration, and counts them."""

    main: str
    sources: list[FileSource] = field(default_factory=list)
    files: int = 1

    def statements(self, path: str, content: _Content, stack: tuple[tuple[int, int], ...]) -> Iterator[Statement]:
        """The statements of a file; `stack` has the identities of this file and of those that include it."""
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
        if has_magic(pattern):
            self.sources.append(FileSource(pattern, tuple(names)))
        for name in names:
            try:
                if len(stack) > INCLUDE_DEPTH_MAX:
                    raise _Unreadable(f"includes are nested more than {INCLUDE_DEPTH_MAX} deep")
                if self.files > INCLUDE_FILES_MAX:
                    raise _Unreadable(f"more than {INCLUDE_FILES_MAX} files are included")
                content = _read(name, self.main, regular=True)
                if content.identity in stack:
                    raise _Unreadable("it includes itself, directly or through other files")
            except _Unreadable as error:
                problem = statement.line.problem(
                    f"{name} cannot be included: {error.reason}", word.column, word.width, error.hint
                )
                yield Statement(statement.line, problems=(problem,))
                if self.files > INCLUDE_FILES_MAX:
                    return
                continue
            self.files += 1
            self.sources.append(FileSource(name, content.state))
            yield from self.statements(name, content, (*stack, content.identity))


def _read(path: str, main: str, *, regular: bool = False) -> _Content:
    """Read a file. `main` is the configuration's main file. `regular` refuses pipes, which might never end."""
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
    # A byte of another encoding is kept as a surrogate escape: in a comment or a file name it does no harm.
    return _Content(content.decode("utf-8", "surrogateescape"), (found.st_dev, found.st_ino), hidden, state_of(found))
