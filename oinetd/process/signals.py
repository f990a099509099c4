"""Signals of the daemon, which the event loop delivers, or the interpreter if the loop has not heard of them.

The loop hears of a signal by a byte in a socket, which the interpreter writes when the signal comes. If the kernel has
no memory for it the byte is lost ("Exception ignored when trying to write to the signal wakeup fd", ENOBUFS), and the
loop would never deliver the signal. The Python handler runs in any case, as soon as the loop calls something.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Mapping
from typing import Final

__all__ = ["handle_signals"]

TURNS: Final = 4
"""Of the loop, in which it reads a byte that is there, and calls what belongs to it."""


def handle_signals(answers: Mapping[signal.Signals, Callable[[], object]]) -> None:
    """Call the answer to each signal in the running loop, once, although a byte is lost."""
    loop = asyncio.get_running_loop()
    noted: dict[int, object] = {}
    """The last one of each signal that has come and was not delivered."""

    def deliver(number: signal.Signals) -> None:
        noted.pop(number, None)
        answers[number]()

    def look(number: signal.Signals, one: object, turns: int) -> None:
        if noted.get(number) is not one:
            return
        if turns:
            loop.call_soon(look, number, one, turns - 1)
        else:
            deliver(number)

    def note(number: int, _: object) -> None:
        noted[number] = one = object()
        loop.call_soon_threadsafe(look, signal.Signals(number), one, TURNS)

    for number in answers:
        loop.add_signal_handler(number, deliver, number)
        signal.signal(number, note)  # in place of one that does nothing
        signal.siginterrupt(number, False)
