"""All UDP sessions of a forwarder, by how long ago they were heard of: who is silent for too long ends, and who makes
room for a new one.

One order serves each question. `shares` say who makes room; a `Queue` has the sessions of one rule that have one
timeout, so that the first in it is the next to end, and one timer a queue is enough. Nothing here ticks: with no
session there is no timer, and with silent ones it fires when the first of them is due.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Protocol

from oinetd.core.admission import Gate
from oinetd.core.record import Ending
from oinetd.core.registry import RuleEntry
from oinetd.lanes.python.udp.shares import Shares

__all__ = ["Queue", "SessionTable", "Timed"]

HELD_BYTES_MAX = 32 * 1024 * 1024
"""What all sessions together may keep of datagrams that wait for a TCP connection or for the program's `admit`."""

ANSWER_S = 2.0
"""How long a session that waits for an answer is waited for when the process stops."""

GRAIN_S = 0.05
"""Sessions that are due so soon after each other end in one wake."""


class Timed(Protocol):
    """A session, as the table knows it, with times of the loop.

    `last` is when it was heard of, `asked` when the client first wrote since the last answer, 0 if it did not, and
    `answered` whether an answer ever came.
    """

    answered: bool
    asked: float
    rule: RuleEntry
    queue: Queue
    last: float
    timeout_s: float

    def end(self, ending: Ending, code: int = 0) -> None:
        """End, and leave the table."""
        ...


class Queue:
    """The sessions of one rule with one timeout, the one that has been silent for longest first."""

    __slots__ = ("order", "timer")

    def __init__(self) -> None:
        self.order: OrderedDict[Timed, None] = OrderedDict()
        self.timer: asyncio.TimerHandle | None = None


class SessionTable:
    """Belongs to one loop. `gate` counts the UDP sessions of the process, those of the reactors too."""

    def __init__(self, loop: asyncio.AbstractEventLoop, gate: Gate) -> None:
        self.held_bytes = 0
        self.gate = gate
        self._loop = loop
        self._count = 0
        self._shares: Shares[Timed] = Shares()
        self._queues: dict[RuleEntry, dict[float, Queue]] = {}

    def __len__(self) -> int:
        return self._count

    def make_room(self, rule: RuleEntry) -> bool:
        """Take a place for one more session of `rule`, ending others if need be.

        False if the reactors have all places; then none is taken.
        """
        while not self.gate.enter():  # each turn ends one
            if not self.displace(rule):
                return False
        while not rule.gate.enter():  # who is inside is in the table, so that each turn ends one
            self._shares.victim_of(rule).end(Ending.DISPLACED)
        return True

    def displace(self, newcomer: RuleEntry | None = None) -> bool:
        """End a session for one of the rule `newcomer`; False if there is none. `shares` says which."""
        session = self._shares.victim(newcomer)
        if session is None:
            return False
        session.end(Ending.DISPLACED)
        return True

    def end_quiet(self) -> None:
        """The process stops: end the sessions in which nothing is under way."""
        late = self._loop.time() - ANSWER_S
        for queues in tuple(self._queues.values()):
            for session in [session for queue in queues.values() for session in queue.order]:
                if session.asked <= late:
                    session.end(Ending.ABORTED)

    def trim(self) -> None:
        """End the sessions above the limit of the gate, as for new ones."""
        while self.gate.live_max and self.gate.live > self.gate.live_max and self.displace():
            pass

    def enter(self, session: Timed, last: float = 0.0) -> None:
        """A session begins, in a place that was made; or one goes on that was heard of `last` in another process."""
        queue = self._queues.setdefault(session.rule, {}).setdefault(session.timeout_s, Queue())
        session.queue = queue
        session.last = last or self._loop.time()
        queue.order[session] = None
        self._shares.enter(session)
        self._count += 1
        if queue.timer is None and session.timeout_s:
            queue.timer = self._loop.call_at(session.last + session.timeout_s, self._on_timer, queue)

    def touch(self, session: Timed) -> None:
        """It was heard of."""
        session.last = self._loop.time()
        self._shares.touch(session)
        session.queue.order.move_to_end(session)

    def answer(self, session: Timed) -> None:
        """The first answer came for it."""
        self._shares.leave(session)
        session.answered = True
        self._shares.enter(session)

    def leave(self, session: Timed) -> None:
        """It has ended."""
        queue = session.queue
        self._shares.leave(session)
        self._count -= 1
        del queue.order[session]
        if not queue.order:
            if queue.timer is not None:
                queue.timer.cancel()
                queue.timer = None
            queues = self._queues[session.rule]
            del queues[session.timeout_s]
            if not queues:
                del self._queues[session.rule]

    def hold(self, size: int) -> bool:
        """Whether `size` more bytes may wait; they are counted until `let_go`."""
        if self.held_bytes + size > HELD_BYTES_MAX:
            return False
        self.held_bytes += size
        return True

    def let_go(self, size: int) -> None:
        """Bytes that waited do so no more."""
        self.held_bytes -= size

    def _on_timer(self, queue: Queue) -> None:
        """End who is due; the timer then goes to the first that is left. Each turn ends one or is the last."""
        queue.timer = None
        due = self._loop.time() + GRAIN_S
        while queue.order:
            first = next(iter(queue.order))
            ends_at = first.last + first.timeout_s
            if ends_at > due:
                queue.timer = self._loop.call_at(ends_at, self._on_timer, queue)
                return
            first.end(Ending.IDLE_TIMEOUT)
