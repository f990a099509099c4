"""Whom of a group to choose: by `balance` among the primaries, then among the backups.

If no server is usable, those that are down are tried, because a check can be wrong. `_fastpath/shared/group.pxd` does
the same for the native lane.
"""

from __future__ import annotations

import asyncio
import enum
import random
from collections.abc import Callable, Collection
from typing import Final, TypeAlias

from oinetd.servers import AllDown, Balance, GroupOptions
from oinetd.upstream.balance import first, least_loaded, least_passed, stride, two_draws
from oinetd.upstream.maglev import TABLE_SIZE, Entries, entry_of
from oinetd.upstream.member import Member, State

__all__ = ["TRIES_MAX", "Refusal", "Selection", "Tables"]

TRIES_MAX: Final = 5
"""Servers that are tried for one client."""
RETRY_SHARE: Final = 0.2
RETRIES_MIN: Final = 64
"""How many sessions of a group may be at a further try: a fifth of those that live, and at least this number."""
ROOM_LOOK_S: Final = 0.05
"""Time between two looks for room while clients wait: places are given back by the reactors, too."""


class Refusal(enum.Enum):
    """Why there is no server for a session."""

    NONE = enum.auto()
    """Every one that may be used was tried."""
    FULL = enum.auto()
    """Those that were not tried have no room."""
    REFUSED = enum.auto()
    """None is usable, and `all-down` is `refuse`."""


Tables: TypeAlias = "tuple[Entries | None, Entries | None]"
"""Maglev's, of the primaries and of the backups; an entry is the place of a server in the group."""


class Selection:
    """The servers of a group, and the choice among them."""

    def __init__(self, options: GroupOptions) -> None:
        self.options = options
        self.members: list[Member] = []
        self.places: dict[Member, int] = {}
        """The place of each in `members`."""
        self.tables: Tables = (None, None)
        self.retrying = 0
        self.full = 0
        """How often it was found full; reactors tell that now and then."""
        self._cursor = 0
        self._passed_over: list[Member] = []
        self._bounded = False
        self._waiting: dict[Callable[[], object], None] = {}
        self._look: asyncio.TimerHandle | None = None

    def set_members(self, options: GroupOptions, members: list[Member], tables: Tables) -> None:
        """These are the servers from now on."""
        self.options, self.members, self.tables = options, members, tables
        self.places = {member: place for place, member in enumerate(members)}
        self._cursor = 0
        self._bounded = any(member.load.max_connections for member in members)
        self.make_room()

    def close(self) -> None:
        """Look for room no more."""
        if self._look is not None:
            self._look.cancel()
            self._look = None

    def pick(
        self, host: str, tried: Collection[Member] = (), draw: int | None = None, *, answering: bool = False
    ) -> Member | Refusal:
        """The server for a client, without those that were tried. Nothing is counted.

        A server that says nothing at present is only chosen if its tier has no other, and with `answering` never.
        """
        limit = self.options.passive.failures
        for backup in (False, True):
            usable, silent = False, self._passed_over
            silent.clear()
            for member in self.members:
                member.open = member.backup is backup and member.is_usable and member not in tried
                if member.open:
                    usable = True
                    member.open = member.has_room
                    if member.open and member.load.is_silent(limit):
                        member.open = False
                        silent.append(member)
            if usable:
                at = self._of_tier(backup, host, draw)
                if at < 0 and silent and not answering:
                    for member in silent:
                        member.open = True
                    at = self._of_tier(backup, host, draw)
                return self.members[at] if at >= 0 else Refusal.FULL
        if self.has_usable:
            return Refusal.NONE
        if self.options.all_down is AllDown.REFUSE:
            return Refusal.REFUSED
        return self._down(tried) or Refusal.NONE

    def _of_tier(self, backup: bool, host: str, draw: int | None) -> int:
        balance, members = self.options.balance, self.members
        if balance is Balance.FIRST or (backup and not self.options.all_backups):
            return first(members)
        if balance is Balance.ROUNDROBIN:
            return least_passed(members)
        if balance is Balance.LEASTCONN:
            return least_loaded(members, self._cursor)
        if balance is Balance.RANDOM:
            return two_draws(members, random.getrandbits(64) if draw is None else draw, self._cursor)
        return self._of_table(self.tables[backup], host)

    def _of_table(self, table: Entries | None, host: str) -> int:
        """The server of the client's entry, or of the next entry whose server is open."""
        entry = entry_of(host)
        for step in range(TABLE_SIZE if table is not None else 0):
            assert table is not None
            at = table[(entry + step) % TABLE_SIZE]
            if at >= 0 and self.members[at].open:
                return at
        return -1

    def _down(self, tried: Collection[Member]) -> Member | None:
        """Of those that are down, the one whose last failure is oldest."""
        best: Member | None = None
        for member in self.members:
            if member.state not in (State.DOWN, State.EJECTED) or member in tried or not member.has_room:
                continue
            if not member.destination.resolved or not member.load.weight:
                continue
            if best is None or member.load.failed_ms < best.load.failed_ms:
                best = member
        return best

    def select(self, host: str, tried: Collection[Member] = (), draw: int | None = None) -> Member | Refusal:
        """As `pick`, and the session is counted there until `leave`."""
        found = self.pick(host, tried, draw)
        if isinstance(found, Refusal):
            return found
        if self.options.balance is Balance.ROUNDROBIN and (weight := found.weight):
            for member in self._passed_over:  # it misses this turn, and does not catch up when it answers again
                member.load.passed = max(member.load.passed, found.load.passed)
            found.load.passed += stride(weight)
        if not found.load.enter():
            return Refusal.FULL
        if self.options.balance in (Balance.LEASTCONN, Balance.RANDOM):
            self._cursor = (self.places[found] + 1) % len(self.members)
        return found

    def leave(self, member: Member) -> None:
        """A session that selected a server has ended, or tries another one."""
        member.load.leave()
        if self._waiting:
            self.make_room()

    def may_retry(self) -> bool:
        """Whether a session may try another server; if so it is counted until `retried`."""
        if self.retrying >= max(RETRIES_MIN, int(self.live * RETRY_SHARE)):
            return False
        self.retrying += 1
        return True

    def retried(self) -> None:
        """A session that had to try another server has found one, or has ended."""
        self.retrying -= 1

    # Room

    @property
    def has_usable(self) -> bool:
        """Whether a server takes new sessions, room or not."""
        return any(member.is_usable for member in self.members)

    @property
    def is_full(self) -> bool:
        """Whether every usable server is full: a client that is accepted would have to wait."""
        if not self._bounded:
            return False
        for backup in (False, True):
            usable = [member for member in self.members if member.backup is backup and member.is_usable]
            if usable:
                return not any(member.has_room for member in usable)
        return False

    @property
    def live(self) -> int:
        """The sessions of all servers."""
        return sum(member.load.live for member in self.members)

    def calm(self) -> None:
        """Nothing to do: it is told each time that the group is full."""

    def when_room(self, call: Callable[[], object]) -> None:
        """Call once, when a server may have room again."""
        self._waiting[call] = None
        if self._look is None:
            self._look = asyncio.get_running_loop().call_later(ROOM_LOOK_S, self._look_for_room)

    def forget_waiting(self, call: Callable[[], object]) -> None:
        """Take a `when_room` back."""
        self._waiting.pop(call, None)

    def _look_for_room(self) -> None:
        self._look = None
        if not self.is_full:
            self.make_room()
        elif self._waiting:
            self._look = asyncio.get_running_loop().call_later(ROOM_LOOK_S, self._look_for_room)

    def make_room(self) -> None:
        """Call those who wait: a server may have room, or be up again."""
        waiting, self._waiting = self._waiting, {}
        for call in waiting:
            call()
