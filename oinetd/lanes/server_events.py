"""What follows when the state of a server changes: a log line, the program's hook, and the end of its sessions."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from oinetd.core.capacity import WAITING, Capacity
from oinetd.core.record import Ending
from oinetd.lanes.outages import Outages
from oinetd.model import Protocol
from oinetd.upstream.group import Group
from oinetd.upstream.member import Member, ServerStatus, State

__all__ = ["Cutter", "ServerEvents", "python_sessions"]

log = logging.getLogger("oinetd")

PAUSE_S: Final = 1.0
"""The minimum time between two lines about one server; the last state is always told."""

DOWN_SPREAD_S: Final = 1.0
"""The sessions of a server that went down are reset over this time."""

STEP_S: Final = 0.02
"""The minimum time between two steps of a spread; each step ends as many sessions as are due."""

NAMES_MAX: Final = 8
"""Servers that a line names."""

Cutter = Callable[[Member], Iterable[Callable[[Ending], object]]]
"""The sessions of a server in one lane, each as the function that ends it."""


def python_sessions(member: Member) -> Iterable[Callable[[Ending], object]]:
    """The sessions of a server in the Python lane."""
    return tuple(member.sessions.values())


class _Said:
    """What was logged of a server: its state, and the timer until the next line is allowed."""

    __slots__ = ("state", "timer")

    def __init__(self, state: State, timer: asyncio.TimerHandle) -> None:
        self.state = state
        self.timer = timer


class ServerEvents:
    """The listener of all groups of a forwarder; `on_state` is called with each change."""

    def __init__(self, cutters: Iterable[Cutter], on_state: Callable[[ServerStatus], object]) -> None:
        self._cutters = tuple(cutters)
        self._on_state = on_state
        self._said: dict[Member, _Said] = {}
        self._spreads: dict[Member, asyncio.TimerHandle] = {}
        self._closed = False
        self._capacity = Capacity()
        self._outages = Outages()

    def found_full(self, group: Group) -> None:
        """Every usable server of a group is full."""
        if self._closed:
            return
        then = "clients get no session" if group.upstream.protocol is Protocol.UDP else WAITING

        def how() -> str:
            usable = [member.load for member in group.members if member.is_usable]  # others' sessions take no room
            live, most = sum(load.live for load in usable), sum(load.max_connections for load in usable)
            return f"all servers, {live} of {most} sessions"

        self._capacity.found_full(group.name, group, f"group {group.name}", how, then)

    def changed_usability(self, group: Group) -> None:
        """No server of a group is usable any more, or one is again."""
        if not self._closed:
            self._outages.changed(group)

    def fullness(self, group: Group) -> tuple[bool, int]:
        """Whether clients of a group have to wait, and how often that began."""
        return self._capacity.is_full(group.name), self._capacity.times[group.name]

    def count_on(self, group: Group, times_full: int) -> None:
        """Clients of a group had to wait so often in another process."""
        self._capacity.times[group.name] += times_full

    def unchecked(self, group: str, members: Sequence[Member]) -> None:
        """Servers whose states are only assumed, which is no warning. Said later: another process may know them."""
        asyncio.get_running_loop().call_soon(self._say_unchecked, group, members)

    def _say_unchecked(self, group: str, members: Sequence[Member]) -> None:
        members = [member for member in members if member.assumed]
        if members and not self._closed:
            names = ", ".join(member.name for member in members[:NAMES_MAX])
            more = f" and {len(members) - NAMES_MAX} more" if len(members) > NAMES_MAX else ""
            log.info("group %s: not checked yet: %s%s", group, names, more)

    def changed(self, member: Member, before: State | None) -> None:
        """The state of a server is another one; None before is a state that was only assumed."""
        if self._closed:
            return
        if member not in self._said:
            self._say(member, before)
        spread = self._spreads.pop(member, None)
        if spread is not None:
            spread.cancel()
        drain_s = member.options.drain_spread_s
        if member.cuts_sessions:
            self._spread(member, Ending.SERVER_DOWN, DOWN_SPREAD_S)
        elif member.state is State.MAINT:
            self._spread(member, Ending.DRAINED, drain_s or DOWN_SPREAD_S)
        elif member.state is State.DRAIN and drain_s:
            self._spread(member, Ending.DRAINED, drain_s)
        self._on_state(member.status())

    def gone(self, member: Member) -> None:
        """A server has left the configuration."""
        if self._closed:
            return
        log.info("group %s: server %s has left, %d sessions", member.group, member.name, member.load.live)
        if member.options.drain_spread_s:
            self._spread(member, Ending.DRAINED, member.options.drain_spread_s)

    def close(self) -> None:
        """Say and end nothing more."""
        self._closed = True
        self._capacity.close()
        self._outages.close()
        for timer in (*(said.timer for said in self._said.values()), *self._spreads.values()):
            timer.cancel()
        self._said.clear()
        self._spreads.clear()

    # Lines

    def _say(self, member: Member, before: State | None) -> None:
        said = member.state
        if said is not before:
            alarming = said in (State.DOWN, State.EJECTED) and not member.assumed
            level = logging.WARNING if alarming else logging.INFO
            why = f" ({member.why})" if member.why else ""
            log.log(level, "group %s: server %s is %s%s", member.group, member.name, said.value, why)
        timer = asyncio.get_running_loop().call_later(PAUSE_S, self._may_say, member)
        self._said[member] = _Said(said, timer)

    def _may_say(self, member: Member) -> None:
        said = self._said.pop(member)
        if member.state is not said.state:
            self._say(member, said.state)

    # Sessions

    def _spread(self, member: Member, ending: Ending, spread_s: float) -> None:
        """End the sessions that a server has now, evenly over a time."""
        cuts = [cut for cutter in self._cutters for cut in cutter(member)]
        if cuts:
            loop = asyncio.get_running_loop()
            self._step(member, ending, cuts, 0, loop.time(), spread_s)

    def _step(
        self,
        member: Member,
        ending: Ending,
        cuts: list[Callable[[Ending], object]],
        done: int,
        begin: float,
        spread_s: float,
    ) -> None:
        self._spreads.pop(member, None)
        loop = asyncio.get_running_loop()
        due = min(len(cuts), int((loop.time() - begin) / spread_s * len(cuts)) + 1)
        for cut in cuts[done:due]:
            cut(ending)
        if due < len(cuts):
            when = max(begin + due * spread_s / len(cuts), loop.time() + STEP_S)
            self._spreads[member] = loop.call_at(when, self._step, member, ending, cuts, due, begin, spread_s)
