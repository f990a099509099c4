"""The checks of all servers: one clock, concurrent, jittered.

A server is checked once, however many rules use its group.

A check is a `Probe` under way, without a task. One heap has what is due next: the next check of a server, or the end of
the present one. The number of checks under way is bounded; those that are due then wait in the order in which they were
due. A turn of the loop begins only a few, so that it is never held for long.
"""

from __future__ import annotations

import asyncio
import functools
import heapq
import logging
import random
from collections import deque
from collections.abc import Mapping
from typing import Final, NamedTuple

from oinetd.enums import SendProxy
from oinetd.net.descriptors import CHECKS_MAX
from oinetd.net.poller import Poller
from oinetd.upstream.group import Group
from oinetd.upstream.member import Member, State
from oinetd.upstream.probe import Probe

__all__ = ["Checked", "Checks", "pause_s"]

log = logging.getLogger("oinetd")

TURN_MAX: Final = 16
"""Checks that begin or time out in one turn of the loop: about half a millisecond."""

GRAIN_S: Final = 0.005
"""What is due so soon is done in the same turn."""

FIRST_MAX_S: Final = 2.0
"""The first checks are spread over the interval, and over no more than this: until then a state is only assumed."""

JITTER: Final = 0.1

RETRY_S: Final = 1.0
"""The pause if this machine had no descriptor for a check, which then says nothing of the server."""


def pause_s(member: Member) -> float:
    """The time until the next check of a server, without jitter."""
    options = member.options
    if member.check.in_transition:
        return options.check_fast_s
    return options.check_interval_s if member.check.is_up else options.check_down_s


class Checked(NamedTuple):
    """For whom a server is checked: its group, and the PROXY header that it expects."""

    group: Group
    header: SendProxy


class _Watched:
    """A server that is checked. Something is due at `due`: its next check, or the end of `probe`."""

    __slots__ = ("checked", "due", "member", "probe")

    def __init__(self, member: Member, checked: Checked) -> None:
        self.member = member
        self.checked: Checked | None = checked
        self.due = 0.0
        self.probe: Probe | None = None


class Checks:
    """Checks servers as long as `follow` names them; `at_once` bounds those under way, `late` counts those that had to
    wait for that."""

    def __init__(self, poller: Poller) -> None:
        self.at_once = CHECKS_MAX
        self.late = 0
        self._loop = asyncio.get_running_loop()
        self._poller = poller
        self._watched: dict[Member, _Watched] = {}
        self._heap: list[tuple[float, int, _Watched]] = []
        self._number = 0
        self._under_way = 0
        self._waiting: deque[_Watched] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0  # uvloop's timer does not tell it if it is due at once
        self._said_late = False
        self._said_short = False

    def follow(self, checked: Mapping[Member, Checked]) -> None:
        """Check these servers from now on; those that are checked already go on as they were."""
        for member in set(self._watched) - set(checked):
            self._stop(self._watched.pop(member))
        now = self._loop.time()
        for member, why in checked.items():
            watched = self._watched.get(member)
            if watched is not None:
                watched.checked = why
                continue
            watched = self._watched[member] = _Watched(member, why)
            self._due(watched, now + random.random() * min(member.options.check_interval_s, FIRST_MAX_S))
        self._arm()

    def close(self) -> None:
        """Check nothing more."""
        self.follow({})
        self._heap.clear()
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop(self, watched: _Watched) -> None:
        watched.checked, watched.due = None, 0.0
        if watched.probe is not None:
            watched.probe.give_up()
            self._under_way -= 1
            watched.probe = None

    # Time

    def _due(self, watched: _Watched, when: float) -> None:
        """Something is due then; what was due before is not."""
        watched.due = when
        self._number += 1
        heapq.heappush(self._heap, (when, self._number, watched))

    def _arm(self) -> None:
        """Let the timer fire when the first thing is due."""
        heap = self._heap
        while heap and heap[0][0] != heap[0][2].due:
            heapq.heappop(heap)
        when = heap[0][0] if heap else 0.0
        if self._waiting and self._under_way < self.at_once:
            when = self._loop.time()
        elif not heap:
            return
        if self._timer is not None:
            if self._timer_at <= when:
                return
            self._timer.cancel()
        self._timer_at = when
        self._timer = self._loop.call_at(when, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        heap, now = self._heap, self._loop.time() + GRAIN_S
        for _ in range(TURN_MAX):
            if self._waiting and self._under_way < self.at_once:
                self._begin(self._waiting.popleft())
            elif heap and heap[0][0] <= now:
                when, _, watched = heapq.heappop(heap)
                if when == watched.due:
                    self._on_due(watched)
            else:
                break
        self._arm()

    def _on_due(self, watched: _Watched) -> None:
        if watched.probe is not None:
            self._ended(watched, watched.probe.time_out())
        elif self._under_way < self.at_once:
            self._begin(watched)
        else:
            watched.due = 0.0
            self._waiting.append(watched)
            self.late += 1
            if not self._said_late:
                self._said_late = True
                log.warning(
                    "checks: %d are under way, which is the limit; others are late. Raise check-interval or the limit "
                    "of descriptors, or lower check-timeout", self.at_once,
                )  # fmt: skip

    # Checks

    def _begin(self, watched: _Watched) -> None:
        member, checked = watched.member, watched.checked
        if checked is None:  # it left while it waited
            return
        if member.operator is State.MAINT:
            self._plan(watched, pause_s(member))
            return
        watched.probe = Probe(member, self._poller, checked.header, functools.partial(self._ended, watched))
        self._under_way += 1
        self._due(watched, self._loop.time() + member.options.check_timeout_s)
        watched.probe.begin()

    def _ended(self, watched: _Watched, why: str | None) -> None:
        """A check has succeeded if `why` is empty, or failed for this reason; None if it could not be made."""
        watched.probe = None
        self._under_way -= 1
        if watched.checked is None:
            return
        if why is None:
            if not self._said_short:
                log.warning("checks: no descriptor or memory for a check; trying again")
            self._said_short = True
            self._plan(watched, RETRY_S)
        else:
            self._said_short = False
            watched.checked.group.checked(watched.member, why)
            self._plan(watched, pause_s(watched.member))
        self._arm()

    def _plan(self, watched: _Watched, wait_s: float) -> None:
        self._due(watched, self._loop.time() + wait_s * random.uniform(1 - JITTER, 1 + JITTER))
