"""Writes lines to a file in a thread, so that the thread that logs never waits for the disk.

`LineWriter.write` puts a line on a queue in memory. One thread, started with the first line, writes a batch every
`BATCH_INTERVAL_S` with one call. So a line waits no longer than that, and a busy log costs ten wake-ups a second. The
thread sleeps without a timeout while the queue is empty.

If the file cannot be written (full disk, missing directory, a FIFO without a reader), the write is retried with a
growing delay. Up to `HELD_BYTES_MAX` of lines are queued meanwhile; above that the oldest are dropped and counted. A
full disk neither breaks a line nor repeats one (see `logfile`).

At `reopen` and `retarget` the lines queued so far still go to the present file. If its disk is full and the next file
is on the same disk, they wait for room. After any other failure they go to the next file, also a partly written line.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Final

from oinetd.observe.logfile import LogFile

__all__ = ["HELD_BYTES_MAX", "LineWriter"]

BATCH_INTERVAL_S: Final = 0.1
"""The time between two writes, and so the longest delay of a line."""

BATCH_BYTES_MAX: Final = 4 << 20
"""The size of one write. A queue of this size is written at once."""

HELD_BYTES_MAX: Final = 32 << 20
"""The queue, in bytes of text: enough for 70,000 connections that close at once with lines in JSON.
The batch that is being written is not included."""

RETRY_MIN_S: Final = 0.1
RETRY_MAX_S: Final = 5.0
"""The first and the longest delay of a retry; it doubles each time. An operator who has freed space sees the log
continue within seconds."""

CLOSE_WAIT_S: Final = 2.0
"""How long `close` waits for a write that does not return: a stopped terminal, a dead network disk."""

logger = logging.getLogger("oinetd")


class LineWriter:
    """Appends lines to `target`: a path, or an open descriptor, which is used as it is and never closed.

    All methods may be called from any thread, and only `close` waits. `on_trouble` is called with a message when lines
    can no longer be written, and again when they can, with the number of lost lines. It is called on the writer's
    thread, or within `write` or `close`, so it has to be thread-safe.
    """

    def __init__(
        self,
        target: str | int,
        on_trouble: Callable[[str], None],
        *,
        held_bytes_max: int = HELD_BYTES_MAX,
        opened: int = -1,
    ) -> None:
        self._on_trouble = on_trouble
        self._held_bytes_max = held_bytes_max
        self._crowded_bytes = min(BATCH_BYTES_MAX, held_bytes_max)

        # Shared between threads, protected by this lock.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._rested = threading.Condition(self._lock)
        self._target = target
        self._lines: deque[bytes] = deque()
        self._held_bytes = 0
        self._lost = 0  # since the failure began
        self._trouble = False
        self._switch: str | int | None = None  # the next target
        self._before_switch = 0  # queued lines that still go to the present target
        self._turning = False  # `_target` is new, `_file` is still the old file
        self._asleep = True
        self._closing = False
        self._given_up = False
        self._hurried = False  # write the next batch at once
        self._flushing = 0  # calls that wait until everything is written
        self._failing = False  # the last write failed
        self._not_before = 0.0
        self._thread: threading.Thread | None = None

        # The writer thread's own.
        self._file = LogFile(target, opened)
        self._retry_s = RETRY_MIN_S
        self._look_again = 0.0  # the earliest time of the next try to reopen an outdated file
        # Opened here, before a daemon drops its privileges. If that fails, the first line tries again and reports it.
        with contextlib.suppress(OSError):
            self._file.open()

    def write(self, line: bytes) -> None:
        """Queue `line`, which ends in a newline; does nothing after `close`."""
        with self._lock:
            if self._closing:
                return
            self._lines.append(line)
            self._held_bytes += len(line)
            report = self._crowded() if self._held_bytes > self._crowded_bytes else ""
            if self._asleep:
                self._wake()
        if report:
            self._report(report)

    def reopen(self) -> None:
        """Lines queued so far go to the open file, later ones to the file that is then at the path."""
        with self._changed:
            self._switch_to(self._target if self._switch is None else self._switch)

    def retarget(self, target: str | int) -> None:
        """Lines queued so far go to the old target, later ones to `target`."""
        with self._changed:
            if target != (self._target if self._switch is None else self._switch):
                self._switch_to(target)

    def descriptor(self) -> int:
        """A copy of the descriptor of the open file; -1 if there is none. Call it after `flush`."""
        with self._lock:
            return self._file.duplicate()

    def flush(self, wait_s: float = CLOSE_WAIT_S) -> bool:
        """Write what is queued, and wait at most `wait_s` seconds for it; whether it was all written.

        A line that the file has no room for is taken out of it again: another process may append meanwhile.
        """
        deadline = time.monotonic() + wait_s
        with self._changed:
            self._flushing += 1
            self._changed.notify()
            try:
                while self._thread is not None and not self._asleep and (left_s := deadline - time.monotonic()) > 0:
                    self._rested.wait(left_s)
                return self._thread is None or self._asleep
            finally:
                self._flushing -= 1

    def close(self, wait_s: float = CLOSE_WAIT_S) -> None:
        """Write what is queued and end, within `wait_s` seconds; lines that could not be written are reported."""
        with self._changed:
            self._closing = True
            self._not_before = 0.0
            thread, self._thread = self._thread, None
            self._changed.notify()
        if thread is None:
            self._file.give_up()
            return
        thread.join(wait_s)
        with self._changed:
            self._given_up = True
            lost = self._lost + len(self._lines) + (self._file.begun is not None)
            self._lines.clear()
            self._changed.notify()
        if lost or thread.is_alive():
            self._report(f"{_named(self._target)}: closed, lines lost: {max(1, lost)}")

    def _report(self, text: str) -> None:
        try:
            self._on_trouble(text)
        except Exception:
            logger.exception("on_trouble failed with: %s", text)

    # Under the lock.

    def _wake(self) -> None:
        if self._closing:
            return
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="oinetd-log", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                return  # Out of threads or memory. The next line tries again.
            self._thread = thread
        else:
            self._changed.notify()
        self._asleep = False

    def _switch_to(self, target: str | int) -> None:
        # A pending switch keeps its place among the lines and gets the newer target.
        if self._switch is None:
            self._before_switch = len(self._lines)
        self._switch = target
        if self._asleep:
            self._wake()

    def _crowded(self) -> str:
        """Wake the thread, drop the oldest lines; returns a message if this is the first drop."""
        if not self._hurried and not self._failing:
            self._hurried = True
            self._not_before = 0.0
            self._changed.notify()
        if self._held_bytes <= self._held_bytes_max:
            return ""
        while self._held_bytes > self._held_bytes_max and self._lines:
            self._held_bytes -= len(self._lines.popleft())
            self._before_switch = max(0, self._before_switch - 1)
            self._lost += 1
        if self._trouble:
            return ""
        self._trouble = True
        return f"{_named(self._target)}: writing is too slow, dropping the oldest lines"

    def _take(self) -> list[bytes]:
        """The next lines to write: at most `BATCH_BYTES_MAX`, and none after a pending switch."""
        last = len(self._lines) if self._switch is None else self._before_switch
        count = size = 0
        for line in islice(self._lines, last):
            if count and size + len(line) > BATCH_BYTES_MAX:
                break
            size += len(line)
            count += 1
        self._held_bytes -= size
        if self._switch is not None:
            self._before_switch -= count
        return [self._lines.popleft() for _ in range(count)]

    def _put_back(self, lines: list[bytes]) -> None:
        self._lines.extendleft(reversed(lines))
        self._held_bytes += sum(map(len, lines))
        if self._switch is not None:
            self._before_switch += len(lines)

    def _turn(self) -> None:
        """Make the next target the present one; the thread opens it before the next write."""
        assert self._switch is not None
        self._target, self._switch, self._before_switch = self._switch, None, 0
        self._turning = True

    # On the writer's thread.

    def _run(self) -> None:
        # Blocked: a pipe without a reader is then EPIPE, and does not kill a program with the default of SIGPIPE.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})
        while (batch := self._next_batch()) is not None:
            report = self._go_over(batch)
            if report:
                self._report(report)
            failure = self._file.append(batch)
            report = self._settle(batch, failure, self._may_get_room(failure))
            if report:
                self._report(report)
        if self._file.give_up() is not None:
            with self._lock:
                self._lost += 1

    def _next_batch(self) -> list[bytes] | None:
        """Wait for lines and for the time of the next batch; None at the end."""
        with self._changed:
            while not (self._pending() or self._closing):
                self._asleep = True
                self._rested.notify_all()
                self._changed.wait()
            self._asleep = False
            # Bounded by `RETRY_MAX_S`; `close` cuts it short.
            while not self._given_up and (pause_s := self._not_before - time.monotonic()) > 0:
                if self._flushing:
                    if not self._failing:
                        break
                    if (line := self._file.give_up()) is not None:
                        self._put_back([line])
                self._changed.wait(pause_s)
            if self._given_up or not self._pending():
                return None
            if self._switch is not None and not self._before_switch and self._file.begun is None:
                self._turn()
            self._not_before = time.monotonic() + BATCH_INTERVAL_S
            self._hurried = False
            return self._take()

    def _pending(self) -> bool:
        return bool(self._lines or self._switch is not None or self._turning or self._file.begun is not None)

    def _go_over(self, batch: list[bytes]) -> str:
        """Open the next file if it is due; returns a message, or an empty text."""
        now = time.monotonic()
        if not self._turning and not (self._file.outdated and self._file.begun is None and now >= self._look_again):
            return ""
        self._turning = False
        if self._file.begun is not None or self._file.target != self._target:
            if (line := self._file.give_up()) is not None:
                batch.insert(0, line)
            self._file = LogFile(self._target)
            return ""
        outdated, failure = self._file.outdated, self._file.reopen()
        self._look_again = now + RETRY_MAX_S
        if failure is None:
            return f"{_named(self._target)}: reopened" if outdated else ""
        if outdated:
            return ""
        return f"{_named(self._target)}: cannot reopen: {failure.strerror}; still writing to the old file, retrying"

    def _may_get_room(self, failure: OSError | None) -> bool:
        """Whether to wait for room in the present file although a switch is pending."""
        switch = self._switch
        return (
            failure is not None
            and failure.errno == errno.ENOSPC
            and switch is not None
            and self._file.is_beside(switch)
        )

    def _settle(self, left: list[bytes], failure: OSError | None, may_get_room: bool) -> str:
        """Plan the next write; returns a message, or an empty text."""
        with self._changed:
            self._put_back(left)
            self._failing = failure is not None
            if failure is None:
                self._retry_s = RETRY_MIN_S
                if self._switch is not None or self._held_bytes > BATCH_BYTES_MAX:
                    self._not_before = 0.0
                if not self._trouble or self._held_bytes > self._held_bytes_max // 2:
                    return ""
                lost, self._lost, self._trouble = self._lost, 0, False
                return f"{_named(self._target)}: writing again, lines lost: {lost}"
            if self._switch is not None and not (may_get_room and self._held_bytes <= self._held_bytes_max // 2):
                self._turn()
                return ""
            if failure.errno == errno.EAGAIN:
                return ""  # The reader is slow. It is a failure only when lines are dropped.
            self._given_up = self._closing
            self._not_before = time.monotonic() + self._retry_s
            self._retry_s = min(2 * self._retry_s, RETRY_MAX_S)
            if self._trouble:
                return ""
            self._trouble = True
            return f"{_named(self._target)}: cannot write: {failure.strerror}; queueing lines, retrying"


def _named(target: str | int) -> str:
    if isinstance(target, int):
        return {1: "standard output", 2: "standard error"}.get(target, f"descriptor {target}")
    return target
