"""Lines go to a file without the thread that has them ever waiting for it.

`LineWriter.write` puts a line on a queue in memory. One thread, started with the first line, takes what has
come together and writes it with one call: a batch every `BATCH_INTERVAL_S`, so that a line waits no longer than
that and a busy log costs ten wake-ups a second. With nothing to write the thread sleeps without a timeout.

A file that takes no lines (full disk, missing directory, a FIFO nobody reads) is tried again, later and later.
Until then up to `HELD_BYTES_MAX` of lines are held; beyond that the oldest are dropped and counted. A line of
which the file has taken a part is completed before anything else: a full disk neither breaks a line nor doubles
one. Only where the file is given up at that moment (`reopen`, `retarget`) its last line stays broken off, and is
whole in the next file.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Final

__all__ = ["HELD_BYTES_MAX", "LineWriter"]

BATCH_INTERVAL_S: Final = 0.1
"""From one write to the next; also the longest that a line waits while the file takes lines."""

BATCH_BYTES_MAX: Final = 4 << 20
"""One write. As much as this waiting is written before its time."""

HELD_BYTES_MAX: Final = 32 << 20
"""The queue, in bytes of text: 70,000 connections may be closed at one moment and have their lines in JSON.
What is being written comes on top."""

RETRY_MIN_S: Final = 0.1
RETRY_MAX_S: Final = 5.0
"""The first wait after a failure, and the longest, doubling in between: whoever has made room sees the log go on
while still looking."""

CLOSE_WAIT_S: Final = 2.0
"""How long `close` waits for a write that does not return: a stopped terminal, a dead network disk."""

NEW_FILE_MODE: Final = 0o640
"""The log says who spoke to whom: it is not for everybody's eyes."""

_KEPT_AFTER: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EAGAIN})
"""After these the descriptor is still good, and a line that was begun can be completed on it."""

logger = logging.getLogger("oinetd")


class LineWriter:
    """Appends lines to `target`: a path, or an open descriptor, which is used as it is and never closed.

    All methods may be called from any thread, and only `close` waits. `on_trouble` is called with a sentence
    when lines can no longer be written and once more when they can, with the number of those lost. It is called
    on the writer's thread or within `write` or `close`, so it has to be thread-safe.
    """

    def __init__(
        self, target: str | int, on_trouble: Callable[[str], None], *, held_bytes_max: int = HELD_BYTES_MAX
    ) -> None:
        self._on_trouble = on_trouble
        self._held_bytes_max = held_bytes_max
        self._crowded_bytes = min(BATCH_BYTES_MAX, held_bytes_max)

        # Shared, and touched only under this lock.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._target = target
        self._lines: deque[bytes] = deque()
        self._held_bytes = 0
        self._lost = 0  # since the trouble began
        self._trouble = False
        self._switch: str | int | None = None  # the next target ...
        self._before_switch = 0  # ... and how many of the queued lines still go to the present one
        self._asleep = True
        self._closing = False
        self._given_up = False
        self._hurried = False  # the next batch need not wait for its time
        self._failing = False  # the last write failed: only time helps
        self._not_before = 0.0
        self._thread: threading.Thread | None = None

        # The writer thread's own.
        self._begun: tuple[bytes, int] | None = None  # a line, and how many bytes of it the file has
        self._retry_s = RETRY_MIN_S
        self._fd = -1
        # Opened here and now, so that a daemon holds its log before it gives its privileges up. Where that fails,
        # the first line tries again, and there is something to report.
        with contextlib.suppress(OSError):
            self._fd = _open(target)

    def write(self, line: bytes) -> None:
        """Queue `line`, which ends in a newline; after `close` it goes nowhere."""
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
        """Lines up to here go to the file as it is open, later ones to what has its name then."""
        with self._changed:
            self._switch_to(self._target if self._switch is None else self._switch)

    def retarget(self, target: str | int) -> None:
        """Lines up to here go to the old target, later ones to `target`."""
        with self._changed:
            if target != (self._target if self._switch is None else self._switch):
                self._switch_to(target)

    def close(self, wait_s: float = CLOSE_WAIT_S) -> None:
        """Write what is left and end, within `wait_s` seconds; what could not be written is reported."""
        with self._changed:
            self._closing = True
            self._not_before = 0.0
            thread, self._thread = self._thread, None
            self._changed.notify()
        if thread is None:
            self._fd = _close(self._fd, self._target)
            return
        thread.join(wait_s)
        with self._changed:
            self._given_up = True
            lost = self._lost + len(self._lines) + (self._begun is not None)
            self._lines.clear()
            self._changed.notify()
        if lost or thread.is_alive():
            self._report(f"{_named(self._target)}: {max(1, lost)} lines could not be written")

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
                return  # The limit of threads or memory is reached. The next line tries again.
            self._thread = thread
        else:
            self._changed.notify()
        self._asleep = False

    def _switch_to(self, target: str | int) -> None:
        # A switch that still waits keeps its place among the lines and gets the newer target.
        if self._switch is None:
            self._before_switch = len(self._lines)
        self._switch = target
        if self._asleep:
            self._wake()

    def _crowded(self) -> str:
        """Hurry the thread; drop the oldest; returns what to report, where this is the beginning of trouble."""
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
        return f"{_named(self._target)} does not take lines as fast as they come: the oldest are dropped"

    def _take(self) -> list[bytes]:
        """The next lines to write, at most `BATCH_BYTES_MAX` of them and none beyond a switch."""
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
        """Go over to the next target."""
        assert self._switch is not None
        self._fd = _close(self._fd, self._target)
        if self._begun:
            self._put_back([self._begun[0]])
            self._begun = None
        self._target, self._switch, self._before_switch = self._switch, None, 0

    # On the writer's thread.

    def _run(self) -> None:
        # A pipe whose reader has gone would end a program that left SIGPIPE at its default; so it is only EPIPE.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})
        while (batch := self._next_batch()) is not None:
            failure = self._append(batch)
            report = self._settle(batch, failure)
            if report:
                self._report(report)
        self._fd = _close(self._fd, self._target)

    def _next_batch(self) -> list[bytes] | None:
        """Wait until there is something to write, and the time for it has come; None is the end."""
        with self._changed:
            while not (self._lines or self._begun or self._switch is not None or self._closing):
                self._asleep = True
                self._changed.wait()
            self._asleep = False
            # Bounded by `RETRY_MAX_S`; `close` cuts it short.
            while not self._given_up and (pause_s := self._not_before - time.monotonic()) > 0:
                self._changed.wait(pause_s)
            if self._given_up or not (self._lines or self._begun or self._switch is not None):
                return None
            if self._switch is not None and not self._before_switch and not self._begun:
                self._turn()
            self._not_before = time.monotonic() + BATCH_INTERVAL_S
            self._hurried = False
            return self._take()

    def _append(self, batch: list[bytes]) -> OSError | None:
        """Write the line that was begun, then `batch`; what the file has not taken stays in `batch`."""
        done = 0
        if self._begun:
            batch.insert(0, self._begun[0])
            done = self._begun[1]
        failure = None
        data = memoryview(b"".join(batch))
        try:
            if self._fd < 0:
                self._fd = _open(self._target)
            # Bounded: each turn takes at least a byte of the batch.
            while done < len(data):
                done += os.write(self._fd, data[done:])
        except OSError as error:
            # Not the error itself: it holds this frame, which would hold it and the batch, until a collection.
            failure = OSError(error.errno, error.strerror)
            if error.errno not in _KEPT_AFTER:
                self._fd = _close(self._fd, self._target)
        whole = 0
        while whole < len(batch) and done >= len(batch[whole]):
            done -= len(batch[whole])
            whole += 1
        del batch[:whole]
        # What takes its place after such a failure has seen nothing of the line.
        self._begun = (batch.pop(0), done) if done and self._fd >= 0 else None
        return failure

    def _settle(self, left: list[bytes], failure: OSError | None) -> str:
        """Plan the next write; returns what to report."""
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
                return f"{_named(self._target)} takes lines again; {lost} were lost"
            if self._switch is not None:
                self._turn()
                return ""
            if failure.errno == errno.EAGAIN:
                return ""  # A reader that is behind; trouble begins when lines are dropped.
            self._given_up = self._closing
            self._not_before = time.monotonic() + self._retry_s
            self._retry_s = min(2 * self._retry_s, RETRY_MAX_S)
            if self._trouble:
                return ""
            self._trouble = True
            return f"{_named(self._target)}: {failure.strerror}; lines are held and tried again"


def _open(target: str | int) -> int:
    if isinstance(target, int):
        return target
    # Not blocking, for a FIFO that nobody reads: opening it would wait for ever.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        return os.open(target, flags, NEW_FILE_MODE)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise OSError(errno.ENXIO, "nobody reads this FIFO") from error
        raise


def _close(fd: int, target: str | int) -> int:
    """Close what `_open` opened; returns -1."""
    if fd >= 0 and not isinstance(target, int):
        # The kernel has closed it also where it reports that earlier bytes did not reach the disk.
        with contextlib.suppress(OSError):
            os.close(fd)
    return -1


def _named(target: str | int) -> str:
    if isinstance(target, int):
        return {1: "standard output", 2: "standard error"}.get(target, f"descriptor {target}")
    return target
