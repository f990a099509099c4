"""The connection log: one line when a connection is opened, one when it is closed or refused."""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from oinetd.core.record import SessionRecord
from oinetd.core.safe_open import Location, UnsafePath, own_descriptor
from oinetd.errors import ConfigError, Problem
from oinetd.model import LogSettings
from oinetd.observe.formats import line_format
from oinetd.observe.refusals import GAP_S, RefusedLines
from oinetd.observe.writer import LineWriter

if TYPE_CHECKING:
    from asyncio import TimerHandle

__all__ = ["Journal"]

STDOUT_FD = 1


class Journal:
    """The log that `settings` ask for; with no file it costs nothing and writes nothing.

    The file `-` is the standard output, and so is one that leads to it, such as /dev/stdout; the same for standard
    error. Lines reach the file within a tenth of a second, in the order of the
    calls, through a thread of their own (see `linewriter`): no method waits for the file but `close`. A file that
    cannot be written never stops the service. `on_trouble` then gets a sentence, once when the trouble begins and
    once when it ends, mostly on that other thread, so it has to be thread-safe; without it the sentences are
    warnings of the logger `oinetd`.

    Refused clients have their lines up to a bound (see `refusals`), and beyond it one line for many. `call_later` is
    that of the event loop, to write that line in time; without it, it comes with the next line after its time.
    """

    def __init__(
        self,
        settings: LogSettings,
        on_trouble: Callable[[str], None] | None = None,
        call_later: Callable[[float, Callable[[], None]], TimerHandle] | None = None,
    ) -> None:
        self._refused = RefusedLines()
        self._call_later = call_later
        self._gap_timer: TimerHandle | None = None
        self._gap_due = 0.0  # 0 while nothing is left out
        self._on_trouble = on_trouble or logging.getLogger("oinetd").warning
        self._settings = settings
        self._format = line_format(settings.format)
        self._writer = self._open_writer()

    @staticmethod
    def check(settings: LogSettings) -> None:
        """Raise `ConfigError` where the log file can be nothing but an operator's mistake.

        That is a directory or a socket in its place, a missing directory above it, no permission. A full disk or
        a FIFO without a reader are troubles of the day and pass. Nothing is made or opened.
        """
        if settings.file and _target(settings.file) == settings.file and (fault := _fault(settings.file)):
            place = settings.origin
            raise ConfigError(Problem(f"logfile {settings.file}: {fault}", place.file, place.line))

    @staticmethod
    def is_standard_stream(settings: LogSettings) -> bool:
        """Whether the log is this process's standard output or standard error, by whatever name."""
        return isinstance(_target(settings.file), int)

    def check_change(self, settings: LogSettings) -> None:
        """`check` for a change to `settings`.

        A file that is in use already is not looked at again: a process that has given up its privileges writes to a
        file which it could not open any more.
        """
        if settings.file != self._settings.file:
            self.check(settings)

    def opened(self, record: SessionRecord) -> None:
        """Log that the connection was admitted."""
        if self._writer is not None:
            self._writer.write(self._format.opened(record, time.time()))

    def closed(self, record: SessionRecord) -> None:
        """Log how the connection ended, or why it was refused; `record.ending` is set."""
        if self._writer is None:
            return
        assert record.ending is not None
        if record.ending.refused and not self._refused.admits(record.route):
            self._leave_out(record)
            return
        if self._gap_due and self._gap_due <= time.monotonic():
            self._tell_gaps()
        self._writer.write(self._format.closed(record, time.time()))

    def _leave_out(self, record: SessionRecord) -> None:
        now = time.monotonic()
        if not self._gap_due:
            self._gap_due = now + GAP_S
            self._on_trouble(self._refused.explain(record.route))
            if self._call_later is not None:
                self._gap_timer = self._call_later(GAP_S, self._tell_gaps)
        elif now >= self._gap_due:
            self._tell_gaps()

    def _tell_gaps(self) -> None:
        """Write how many were left out; while there are more, again after some time."""
        if self._gap_timer is not None:
            self._gap_timer.cancel()
            self._gap_timer = None
        more = self._refused.any_left_out
        if self._writer is not None:
            for route, count in self._refused.take_left_out():
                self._writer.write(self._format.left_out(route, count, time.time()))
        self._gap_due = time.monotonic() + GAP_S if more else 0.0
        if more and self._call_later is not None:
            self._gap_timer = self._call_later(GAP_S, self._tell_gaps)

    def end_gaps(self) -> None:
        """Write now how many refused clients were left out; on the loop's thread, which `close` need not be on."""
        self._tell_gaps()
        self._tell_gaps()  # nothing more was left out since: the timer ends

    def reconfigure(self, settings: LogSettings) -> None:
        """Go over to `settings`; lines up to here still go to the old file."""
        self.end_gaps()
        self._refused.forget()
        old, self._settings = self._settings, settings
        if settings.format is not old.format:
            self._format = line_format(settings.format)
        if settings.file == old.file:
            return
        if self._writer is None:
            self._writer = self._open_writer()
        elif settings.file:
            self._writer.retarget(_target(settings.file))
        else:
            self.close()

    def reopen(self) -> None:
        """The file was renamed: lines up to here go to the old one, later ones to a new one of its name."""
        if self._writer is not None:
            self._tell_gaps()
            self._writer.reopen()

    def close(self) -> None:
        """Write what is left, within two seconds; what could not be written is reported as lost."""
        self.end_gaps()
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def _open_writer(self) -> LineWriter | None:
        return LineWriter(_target(self._settings.file), self._on_trouble) if self._settings.file else None


def _target(file: str) -> str | int:
    """The path, or the descriptor that it names: that one is used as it is, and never opened anew."""
    if file == "-":
        return STDOUT_FD
    own = own_descriptor(file) if file else None
    return file if own is None else own


def _fault(path: str) -> str:
    """What is wrong with `path` as a log file; empty where nothing is."""
    try:
        with Location.of(path):
            pass
    except UnsafePath as error:
        return error.strerror or str(error)
    except OSError:
        pass  # The next look says what it is.
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        above = os.path.dirname(path) or "."
        if not os.path.isdir(above):
            return f"there is no directory {above}"
        may_write = os.access(above, os.W_OK | os.X_OK, effective_ids=True)
        return "" if may_write else f"no permission to write in {above}"
    except OSError as error:
        return error.strerror or str(error)
    if stat.S_ISDIR(mode):
        return "is a directory"
    if stat.S_ISSOCK(mode):
        return "is a socket"
    return "" if os.access(path, os.W_OK, effective_ids=True) else "no permission to write"
