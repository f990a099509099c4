"""A group of servers in force: what happened to whom, and which state that leads to."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from oinetd.servers import Balance, Upstream
from oinetd.upstream.address_order import is_of_the_server, now_ms
from oinetd.upstream.health import PassiveState, Standing
from oinetd.upstream.member import NOT_CHECKED, Member, ServerStatus, State
from oinetd.upstream.selection import Selection, Tables

__all__ = ["Group", "Listener", "UpstreamStatus", "reason"]

_REASONS: Final = {
    errno.ECONNREFUSED: "refused",
    errno.ETIMEDOUT: "timed out",
    errno.EHOSTUNREACH: "no route to host",
    errno.ENETUNREACH: "network unreachable",
}


def reason(code: int) -> str:
    """The errno of a connect as a short text."""
    return _REASONS.get(code) or os.strerror(code).lower()


@dataclass(frozen=True, slots=True)
class UpstreamStatus:
    """A snapshot of a group: its name, how it balances, and its servers in the order written.

    `full` is whether clients wait because every usable server is full, `times_full` how often that began. `down` is
    whether no server is usable, `times_down` how often that began.
    """

    name: str
    balance: Balance
    servers: tuple[ServerStatus, ...]
    full: bool = False
    times_full: int = 0
    down: bool = False
    times_down: int = 0


class Listener(Protocol):
    """What is told of the servers of all groups."""

    def changed(self, member: Member, before: State | None) -> None:
        """The state of a server is another one; `before` is None if that was only assumed, before the first check."""
        ...

    def found_full(self, group: Group) -> None:
        """A client found every usable server of a group full."""
        ...

    def changed_usability(self, group: Group) -> None:
        """No server of a group is usable any more, or one is again."""
        ...

    def fullness(self, group: Group) -> tuple[bool, int]:
        """Whether clients of a group have to wait, and how often that began."""
        ...

    def count_on(self, group: Group, times_full: int) -> None:
        """Clients of a group had to wait so often in another process."""
        ...

    def unchecked(self, group: str, members: Sequence[Member]) -> None:
        """Servers of a group that have not been checked yet, and whose states are only assumed."""
        ...

    def gone(self, member: Member) -> None:
        """A server has left the configuration."""
        ...


class Group(Selection):
    """The servers of an upstream. `name` is that of the group or of its rule; `listener` is told of changes."""

    def __init__(self, name: str, upstream: Upstream, listener: Listener) -> None:
        super().__init__(upstream.options)
        self.name = name
        self.upstream = upstream
        self.on_members: Callable[[], object] = lambda: None
        self._listener = listener
        self.down = False
        """Whether no server is usable."""
        self.times_down = 0
        self._in_force = False
        self._up = [0, 0]  # primaries and backups that are known to be up
        self._timers: dict[Member, asyncio.TimerHandle] = {}

    def __str__(self) -> str:
        return f"@{self.name}" if self.upstream.name else self.name

    def status(self) -> UpstreamStatus:
        """A snapshot."""
        servers = tuple(member.status() for member in self.members)
        full, times_full = self._listener.fullness(self)
        return UpstreamStatus(self.name, self.options.balance, servers, full, times_full, self.down, self.times_down)

    # Its servers

    def configure(self, upstream: Upstream, members: Sequence[Member], tables: Tables) -> None:
        """These are its options and servers from now on; the servers are configured already."""
        known = {member for member in members if member.seen}
        first, self._in_force = not self._in_force, True
        self._take(upstream, members, tables)
        self._look_for_usable(tell=not first or not members)
        if unchecked := [member for member in self.members if member.assumed and member not in known]:
            self._listener.unchecked(self.name, unchecked)

    def dissolve(self) -> None:
        """It is in the configuration no more: its servers leave, which is no outage."""
        self._take(self.upstream, [], (None, None))
        self.close()

    def _take(self, upstream: Upstream, members: Sequence[Member], tables: Tables) -> None:
        self.upstream = upstream
        for member in set(self.members) - set(members):
            self._forget(member)
            member.counted = False
        self.set_members(upstream.options, list(members), tables)
        self._up = [0, 0]
        for member in self.members:
            member.counted = member.is_known_up
            self._up[member.backup] += member.counted
        for member in self.members:
            self.settle(member)
            if member.passive.standing is Standing.EJECTED and member not in self._timers:
                self._arm(member)
        self.on_members()

    def close(self) -> None:
        """It is not in force any more."""
        for member in tuple(self._timers):
            self._forget(member)
        super().close()

    def _forget(self, member: Member) -> None:
        timer = self._timers.pop(member, None)
        if timer is not None:
            timer.cancel()

    def found_full(self) -> None:
        """A client found every usable server full."""
        self.full += 1
        self._listener.found_full(self)

    # What happens to servers

    def failed(self, member: Member, code: int, by: object = None) -> None:
        """A connect failed, or datagrams were refused; `by` is the UDP session that saw it: two of them have to.

        A failure of this machine is ignored.
        """
        if not is_of_the_server(code):
            return
        row = member.load.note_failed(now_ms())
        self.judge_failures(member, code, row, by)

    def judge_failures(self, member: Member, code: int, row: int, by: object = None) -> None:
        """`row` connects in a row have failed, in either lane."""
        limit, hold_s = self.options.passive
        if not limit or member not in self.places:
            return
        before = member.passive
        seen_by_another = by is None or (member.failed_by is not None and member.failed_by is not by)
        member.failed_by = by
        now = time.monotonic()
        may_eject = seen_by_another and any(other.is_usable for other in self.members if other is not member)
        passive = before._replace(failures=row - 1).failed(now, limit, hold_s, may_eject=may_eject)
        member.passive = passive
        if passive.standing is Standing.EJECTED and before.standing is not Standing.EJECTED:
            member.passive_why = f"connect: {reason(code)}"
            self._arm(member)
            self.settle(member)

    def worked(self, member: Member) -> None:
        """A connect succeeded, or an answer came."""
        if member.load.failures or member.passive.standing is not Standing.TRUSTED:
            member.load.note_worked()
            self._absolve(member)
        elif member.load.overdue:
            member.load.note_worked()

    def _absolve(self, member: Member) -> None:
        member.failed_by = None
        member.passive = PassiveState()
        self._forget(member)
        self.settle(member)

    def checked(self, member: Member, why: str) -> None:
        """A check succeeded if `why` is empty, else it failed for this reason."""
        if member not in self.places or member.operator is State.MAINT:
            return
        if why:
            member.checks_failed += 1
            member.check = member.check.failed()
            if not member.check.is_up:
                member.check_why = why
                member.load.failed_ms = now_ms()
        else:
            member.checks_passed += 1
            member.check = member.check.passed()
            member.check_why = ""
            if member.passive.standing is not Standing.TRUSTED or member.load.failures:
                member.load.note_worked()
                self._absolve(member)
        self.settle(member)

    def operate(self, member: Member, state: State | None, weight: int | None) -> None:
        """An operator's word: `State.UP` takes an earlier one back; None leaves it as it is."""
        if state is not None:
            member.operator = None if state is State.UP else state
            if state is State.UP:
                member.passive = PassiveState()
                member.load.note_worked()
                self._forget(member)
        if weight is not None:
            member.operator_weight = weight
            member.load.weight = weight
        self.settle(member)

    def resume(self, member: Member) -> None:
        """Go on with the state that a server had in another process, without telling anybody."""
        member.seen = False
        if member.passive.standing is Standing.EJECTED:
            self._arm(member)
        self.settle(member)
        self._look_for_usable(tell=False)

    def count_on(self, times_full: int, times_down: int) -> None:
        """Count on from the totals of another process."""
        self._listener.count_on(self, times_full)
        self.times_down += times_down

    def _arm(self, member: Member) -> None:
        self._forget(member)
        loop = asyncio.get_running_loop()
        delay_s = max(0.0, member.passive.until - time.monotonic())
        self._timers[member] = loop.call_later(delay_s, self._on_trial, member)

    def _on_trial(self, member: Member) -> None:
        """The time of an ejection is over: the next connect decides."""
        self._timers.pop(member, None)
        member.passive = member.passive.time_passed(member.passive.until)
        # The reactors report the next failure, which is then the last one allowed.
        member.load.failures = max(0, self.options.passive.failures - 1)
        self.settle(member)

    def settle(self, member: Member) -> None:
        """Give a server the state that it has to have; then also those that nobody has checked yet, if need be."""
        tier = int(member.backup)
        state, why = member.judge(self._up[tier] - member.counted > 0)
        if state is not member.state or (why is NOT_CHECKED) is not member.assumed or not member.seen:
            self._enter(member, state, why)
        else:
            member.why = why
        if member.is_known_up is member.counted:
            return
        before = self._up[tier]
        member.counted = not member.counted
        self._up[tier] += 1 if member.counted else -1
        if not (before and self._up[tier]):
            for other in self.members:
                if other is not member and other.backup == member.backup and other.is_unknown:
                    self.settle(other)

    def _enter(self, member: Member, state: State, why: str) -> None:
        before, assumed, known = member.state, member.assumed, member.seen
        member.state, member.why, member.seen, member.assumed = state, why, True, why is NOT_CHECKED
        if state is not before or not known:
            member.since = time.time()
        if state is State.UP and (before is not State.UP or not known):
            self._rejoin(member)
            if known and not assumed and self.options.slow_start_s:
                member.load.slow_since_ms = now_ms()
        member.load.state = state.number
        if known and not (assumed and member.assumed):
            # What was only assumed does not count: a server that is found to be up has not changed.
            member.changes += state is not (State.UP if assumed else before)
            self._listener.changed(member, None if assumed else before)
        if state is State.UP:
            self.make_room()
        if known and (state is State.UP) is self.down:  # for a new one its caller looks
            self._look_for_usable(tell=True)

    def _look_for_usable(self, *, tell: bool) -> None:
        down = not self.has_usable
        if down is not self.down:
            self.down = down
            self.times_down += down and tell
            if tell:
                self._listener.changed_usability(self)

    def _rejoin(self, member: Member) -> None:
        """A server returns to the round: it does not catch up on the turns that it missed."""
        if self.options.balance is not Balance.ROUNDROBIN:
            return
        least = [other.load.passed for other in self.members if other is not member and other.is_usable]
        if least:
            member.load.passed = max(member.load.passed, min(least))
