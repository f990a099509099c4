"""The checks of all servers: concurrent and jittered. A server is checked once, however many rules use its group."""

from __future__ import annotations

import asyncio
import random
from typing import Final

from oinetd.upstream.group import Group
from oinetd.upstream.member import Member, State
from oinetd.upstream.probe import probe

__all__ = ["Checks", "pause_s"]

AT_ONCE_MAX: Final = 256
"""Checks under way, and so their descriptors; others wait for their turn."""

JITTER: Final = 0.1


def pause_s(member: Member) -> float:
    """The time until the next check of a server, without jitter."""
    options = member.options
    if member.check.in_transition:
        return options.check_fast_s
    return options.check_interval_s if member.check.is_up else options.check_down_s


class Checks:
    """Checks servers as long as `follow` names them."""

    def __init__(self) -> None:
        self._groups: dict[Member, Group] = {}
        self._timers: dict[Member, asyncio.TimerHandle] = {}
        self._tasks: dict[Member, asyncio.Task[None]] = {}
        self._turns = asyncio.Semaphore(AT_ONCE_MAX)

    def follow(self, groups: dict[Member, Group]) -> None:
        """Check these servers from now on; those that are checked already go on as they were."""
        gone, self._groups = set(self._groups) - set(groups), groups
        for member in gone:
            self._stop(member)
        loop = asyncio.get_running_loop()
        for member in groups:
            if member not in self._timers and member not in self._tasks:
                first_s = random.random() * member.options.check_interval_s
                self._timers[member] = loop.call_later(first_s, self._begin, member)

    def close(self) -> None:
        """Check nothing more."""
        self.follow({})

    def _stop(self, member: Member) -> None:
        if (timer := self._timers.pop(member, None)) is not None:
            timer.cancel()
        if (task := self._tasks.pop(member, None)) is not None:
            task.cancel()

    def _begin(self, member: Member) -> None:
        del self._timers[member]
        self._tasks[member] = asyncio.get_running_loop().create_task(self._check(member))

    async def _check(self, member: Member) -> None:
        try:
            if member.operator is not State.MAINT:
                async with self._turns:
                    why = await probe(member)
                group = self._groups.get(member)
                if group is not None:
                    group.checked(member, why)
        finally:
            if self._tasks.get(member) is asyncio.current_task():
                del self._tasks[member]
                wait_s = pause_s(member) * random.uniform(1 - JITTER, 1 + JITTER)
                self._timers[member] = asyncio.get_running_loop().call_later(wait_s, self._begin, member)
