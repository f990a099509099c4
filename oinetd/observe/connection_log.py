"""The connection log: one line when a connection is opened, one when it is closed or refused."""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from oinetd.core.record import SessionRecord
from oinetd.errors import ConfigError, Problem
from oinetd.model import LogSettings
from oinetd.observe.formats import line_format
from oinetd.observe.refusals import GAP_S, RefusedLines, is_bounded
from oinetd.observe.system_lines import SystemLines, is_system_log, system_log_fault
from oinetd.observe.writer import LineWriter
from oinetd.safe_open import Location, UnsafePath, own_descriptor

if TYPE_CHECKING:
    from asyncio import TimerHandle

__all__ = ["ConnectionLog"]

STDOUT_FD = 1


class ConnectionLog:
    """The log that `settings` describe. Without a file it does nothing.

    The file `-` or `stdout` is standard output, a path such as /dev/stdout the standard stream; `syslog` and `journal`
    are those (see `system_lines`). Lines reach the file within a tenth of a second, in the order of the calls. A thread
    writes them (see `writer`): only `close` waits for the file. A file that cannot be written never stops the service.
    `on_trouble` is then called with a message,
    once when the failure begins and once when it ends. It is mostly called on the writer's thread, so it has to be
    thread-safe. By default the messages are warnings of the logger `oinetd`.

    The lines about refused clients, and about UDP clients that fail without an answer, are limited (see `refusals`);
    one line counts those above the limit. `call_later` is the event loop's, to write this line in time; without it the
    line is written together with a later one. `reopened` counts the calls of `reopen`.
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
        self._gap_due = 0.0  # 0: nothing was omitted
        self._on_trouble = on_trouble or logging.getLogger("oinetd").warning
        self._settings = settings
        self._format = line_format(settings.format)
        self._writer = self._open_writer()
        self.reopened = 0

    @staticmethod
    def check(settings: LogSettings) -> None:
        """Raise `ConfigError` if the log file is certainly an operator's mistake. Nothing is created or opened.

        A mistake is a directory or a socket at the path, a missing parent directory, or no permission. A full disk or
        a FIFO without a reader may pass, and is no mistake.
        """
        if is_system_log(settings.file):
            if fault := system_log_fault(settings.file):
                place = settings.origin
                raise ConfigError(Problem(f"logfile {settings.file}: {fault}", place.file, place.line))
        elif settings.file and _target(settings.file) == settings.file and (fault := _fault(settings.file)):
            place = settings.origin
            raise ConfigError(Problem(f"logfile {settings.file}: {fault}", place.file, place.line))

    @classmethod
    def is_file(cls, settings: LogSettings) -> bool:
        """Whether the log is a file, at a path."""
        return bool(settings.file) and not is_system_log(settings.file) and not cls.is_standard_stream(settings)

    @staticmethod
    def is_standard_stream(settings: LogSettings) -> bool:
        """Whether the log is this process's standard output or standard error, under any name."""
        return isinstance(_target(settings.file), int)

    def check_change(self, settings: LogSettings) -> None:
        """`check` for a change to `settings`.

        A file that is already open is not checked: a process that has dropped its privileges may no longer be allowed
        to open it.
        """
        if settings.file != self._settings.file:
            self.check(settings)

    def opened(self, record: SessionRecord) -> None:
        """Log that the connection was admitted."""
        if self._writer is None:
            return
        line = self._format.opened(record, time.time())
        if self._refused.holds(record, line):
            self._begin_gap(record)
        else:
            self._writer.write(line)

    def closed(self, record: SessionRecord) -> None:
        """Log how the connection ended, or why it was refused; `record.ending` is set."""
        if self._writer is None:
            return
        assert record.ending is not None
        opened = self._refused.release(record)
        if is_bounded(record):
            begun = opened is None and not record.ending.refused
            if not self._refused.admits(record.route, begun=begun):
                self._begin_gap(record)
                return
        if self._gap_due and self._gap_due <= time.monotonic():
            self._tell_gaps()
        if opened is not None:
            self._writer.write(opened)
        self._writer.write(self._format.closed(record, time.time()))

    def _begin_gap(self, record: SessionRecord) -> None:
        """A line is left out, or waits."""
        now = time.monotonic()
        if not self._gap_due:
            self._gap_due = now + GAP_S
            self._on_trouble(self._refused.explain(record.route))
            if self._call_later is not None:
                self._gap_timer = self._call_later(GAP_S, self._tell_gaps)
        elif now >= self._gap_due:
            self._tell_gaps()

    def _tell_gaps(self) -> None:
        """Write how many clients were omitted, and lines that were held back; schedule the next report if needed."""
        if self._gap_timer is not None:
            self._gap_timer.cancel()
            self._gap_timer = None
        more = self._refused.any_left_out
        if self._writer is not None:
            for route, count in self._refused.take_left_out():
                self._writer.write(self._format.left_out(route, count, time.time()))
            for line in self._refused.take_held():
                self._writer.write(line)
        more = more or self._refused.any_held
        self._gap_due = time.monotonic() + GAP_S if more else 0.0
        if more and self._call_later is not None:
            self._gap_timer = self._call_later(GAP_S, self._tell_gaps)

    def end_gaps(self) -> None:
        """Write now how many clients were omitted, and all lines that were held back. Call it on the loop's thread,
        unlike `close`."""
        for line in self._refused.take_held(every=True):
            if self._writer is not None:
                self._writer.write(line)
        self._tell_gaps()
        self._tell_gaps()  # Nothing was omitted since the first call, so this one stops the timer.

    def descriptor(self) -> int:
        """A copy of the descriptor of the log file, for another process; -1 if there is no file that is open."""
        return self._writer.descriptor() if isinstance(self._writer, LineWriter) else -1

    def take_over(self, settings: LogSettings, descriptor: int) -> None:
        """Log to the file that `settings` name, which another process has opened."""
        self._settings = settings
        self._format = line_format(settings.format)
        self._writer = LineWriter(_target(settings.file), self._on_trouble, opened=descriptor)

    def flush(self) -> bool:
        """Write the queued lines, within two seconds; no line is left half written. Whether all were written."""
        return self._writer.flush() if isinstance(self._writer, LineWriter) else True

    def reconfigure(self, settings: LogSettings) -> None:
        """Switch to `settings`; lines logged before the call still go to the old file."""
        self.end_gaps()
        self._refused.forget()
        old, self._settings = self._settings, settings
        if settings.format is not old.format:
            self._format = line_format(settings.format)
        if settings.file == old.file:
            return
        if self._writer is None:
            self._writer = self._open_writer()
        elif settings.file and (isinstance(self._writer, SystemLines) or is_system_log(settings.file)):
            self._writer.close()
            self._writer = self._open_writer()
        elif settings.file:
            assert isinstance(self._writer, LineWriter)
            self._writer.retarget(_target(settings.file))
        else:
            self.close()

    def reopen(self) -> None:
        """Reopen the file after a rename: earlier lines go to the old file, later ones to a new file at the path."""
        self.reopened += 1
        if self._writer is not None:
            self._tell_gaps()
            self._writer.reopen()

    def close(self) -> None:
        """Write the queued lines, within two seconds; lines that could not be written are reported as lost."""
        self.end_gaps()
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def _open_writer(self) -> LineWriter | SystemLines | None:
        if is_system_log(self._settings.file):
            return SystemLines(self._settings.file)
        return LineWriter(_target(self._settings.file), self._on_trouble) if self._settings.file else None


def _target(file: str) -> str | int:
    """The path, or the descriptor if the path names one of this process: a descriptor is never opened again."""
    if file in ("-", "stdout"):
        return STDOUT_FD
    own = own_descriptor(file) if file else None
    return file if own is None else own


def _fault(path: str) -> str:
    """What is wrong with `path` as a log file; empty if nothing is."""
    try:
        with Location.of(path):
            pass
    except UnsafePath as error:
        return error.strerror or str(error)
    except OSError:
        pass  # `os.stat` below reports it.
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
