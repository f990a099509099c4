"""In which order subjects are measured, and how a run tells where it is."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

__all__ = ["Plan", "interleave"]

T = TypeVar("T")


def interleave(items: Sequence[T], rounds: int) -> Iterator[tuple[int, T]]:
    """`(round, item)`, every other round in reverse: what the machine does meanwhile falls on all alike."""
    for number in range(rounds):
        for item in items if number % 2 == 0 else reversed(items):
            yield number, item


@dataclass
class Plan:
    """A progress bar over steps whose length is known beforehand, about.

    What is left is reckoned from the steps done: the plan's seconds are corrected by how the first ones went.
    """

    console: Console
    planned_s: float
    _done_s: float = 0.0
    _started: float = 0.0

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._task = self._progress.add_task("starting", total=self.planned_s, left=self._left())
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def now(self, what: str) -> None:
        """Say what is being done."""
        self._progress.update(self._task, description=what, left=self._left())
        if not self.console.is_terminal:
            self.console.print(f"{what} ({self._left()})", highlight=False)

    def did(self, seconds: float) -> None:
        """A step of `seconds`, as planned, is over."""
        self._done_s += seconds
        self._progress.update(self._task, completed=self._done_s, left=self._left())

    def say(self, text: str) -> None:
        """A line that stays."""
        self._progress.console.print(text, highlight=False)

    def _left(self) -> str:
        left = self.planned_s - self._done_s
        if self._done_s > 0:
            left *= (time.monotonic() - self._started) / self._done_s
        return f"about {max(0, left):.0f} s left"
