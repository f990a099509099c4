"""perf, started with its events off and controlled through a pipe, so that the bench begins and ends each window."""

from __future__ import annotations

import gzip
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from bench.errors import BenchError
from bench.programs import bound
from bench.tools import need

__all__ = ["Perf", "write_script"]

START_PATIENCE_S = 15.0
END_PATIENCE_S = 60.0
_DATA_PAGES = "4M"
"""For each processor: events of half a second at full load."""
_FIRST = -20


class Perf:
    """One `perf stat` or `perf record`; `output` is what it writes. `wrapped` makes its command that of a wrapper."""

    def __init__(
        self, words: Sequence[str], output: Path, wrapped: Callable[[Sequence[str]], list[str]] = list
    ) -> None:
        self.output = output
        self._errors = output.with_name(output.name + ".stderr")
        control, self._control = os.pipe()
        self._acknowledged, acknowledge = os.pipe()
        what, *rest = words
        command = [need("perf"), what, "-o", str(output), "-D", "-1", f"--control=fd:{control},{acknowledge}", *rest]
        try:
            with self._errors.open("wb") as errors:
                self.process = subprocess.Popen(
                    bound(wrapped(command)), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors,
                    pass_fds=(control, acknowledge), start_new_session=True,
                )  # fmt: skip
        finally:
            os.close(control)
            os.close(acknowledge)
        with suppress(OSError):
            # On a busy machine the end would be requested long before perf is ready for it.
            os.setpriority(os.PRIO_PROCESS, self.process.pid, _FIRST)
        self.times_ns: list[int] = []
        """When it began and when it ended to count, of the monotonic clock."""

    @classmethod
    def counting(cls, where: Sequence[str], events: Sequence[str], output: Path) -> Perf:
        return cls(["stat", "-x,", "-e", ",".join(events), *where], output)

    @classmethod
    def recording(
        cls, where: Sequence[str], events: Sequence[str], output: Path,
        wrapped: Callable[[Sequence[str]], list[str]] = list,
    ) -> Perf:  # fmt: skip
        """Each event, not a sample of them."""
        words = ["record", "-q", "-N", "-c", "1", "-m", _DATA_PAGES, "-e", ",".join(events), *where]
        return cls(words, output, wrapped)

    @classmethod
    def stacks_of(cls, where: Sequence[str], events: Sequence[str], output: Path) -> Perf:
        """The call stack of each event; for rare ones."""
        return cls(["record", "-q", "-N", "-g", "-c", "1", "-e", ",".join(events), *where], output)

    @classmethod
    def sampling(cls, where: Sequence[str], per_second: int, output: Path, *, dwarf: bool = False) -> Perf:
        """Call stacks; perf takes cycles where the processor counts them, else the clock.

        `dwarf` unwinds programs without frame pointers; it copies 16 KiB of stack for each sample.
        """
        graph = ["--call-graph", "dwarf,16384"] if dwarf else ["-g"]
        return cls(["record", "-q", "-N", *graph, "-F", str(per_second), *where], output)

    def control(self, command: str) -> None:
        """`enable` or `disable`; returns when perf has done it. The time halfway is recorded."""
        asked = time.monotonic_ns()
        os.write(self._control, f"{command}\n".encode())
        if not select.select([self._acknowledged], [], [], START_PATIENCE_S)[0] or not os.read(self._acknowledged, 64):
            raise BenchError(f"perf does not count: {self._said()}")
        self.times_ns.append((asked + time.monotonic_ns()) // 2)

    def finish(self) -> None:
        """Stop perf; it writes its data."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(END_PATIENCE_S)
        self._close()
        if not self.output.exists():
            raise BenchError(f"perf wrote nothing: {self._said()}")
        self._errors.unlink()

    def stop(self) -> None:
        """End it, whatever it does; a second call, or one after `finish`, does nothing."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._close()

    def _close(self) -> None:
        for descriptor in (self._control, self._acknowledged):
            if descriptor >= 0:
                os.close(descriptor)
        self._control = self._acknowledged = -1

    def _said(self) -> str:
        return " ".join(self._errors.read_text(errors="replace").split())[-300:] or "it said nothing"


def write_script(recorded: Path, fields: str, text: Path) -> None:
    """What was recorded, as compressed text; the recording itself is removed: it holds nothing else of use."""
    command = [need("perf"), "script", "-i", str(recorded), "--ns", "--show-lost-events", "-F", fields]
    with subprocess.Popen(bound(command), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as script:
        assert script.stdout is not None
        with gzip.open(text, "wb", compresslevel=1) as file:
            while chunk := script.stdout.read(1 << 20):
                file.write(chunk)
        assert script.stderr is not None
        said = script.stderr.read().decode(errors="replace")
    if script.returncode != 0:
        raise BenchError(f"perf script: {said.strip()[-300:]}")
    recorded.unlink()
