"""What is said of a group when none of its servers is usable, and when one is again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from typing import Final
from weakref import WeakKeyDictionary

from oinetd.model import Protocol
from oinetd.servers import AllDown
from oinetd.upstream.group import Group
from oinetd.upstream.member import State

__all__ = ["Outages"]

log = logging.getLogger("oinetd")

PAUSE_S: Final = 1.0
"""The minimum time between two lines about one group; the last state is always told."""
_TRIED: Final = (State.DOWN, State.EJECTED)


class Outages:
    """Says each change once."""

    def __init__(self) -> None:
        self._said: dict[Group, tuple[bool, asyncio.TimerHandle]] = {}
        self._since: WeakKeyDictionary[Group, float] = WeakKeyDictionary()

    def changed(self, group: Group) -> None:
        """A group has no usable server any more, or has one again."""
        if group.down:
            self._since[group] = time.monotonic()
        if group not in self._said:
            self._say(group)

    def close(self) -> None:
        """Say nothing more."""
        for _, timer in self._said.values():
            timer.cancel()
        self._said.clear()

    def _say(self, group: Group) -> None:
        if group.down:
            log.warning("group %s: no server is usable (%s), %s", group.name, _states(group), _then(group))
        else:
            since = self._since.pop(group, None)  # None if it began in another process
            later = f", {time.monotonic() - since:.0f} s later" if since is not None else ""
            usable = sum(member.is_usable for member in group.members)
            log.info("group %s: usable again (%d of %d servers)%s", group.name, usable, len(group.members), later)
        timer = asyncio.get_running_loop().call_later(PAUSE_S, self._may_say, group)
        self._said[group] = group.down, timer

    def _may_say(self, group: Group) -> None:
        down, _ = self._said.pop(group)
        if group.down is not down:
            self._say(group)


def _states(group: Group) -> str:
    """How many servers are in which state."""
    if not group.members:
        return "it has none"
    return ", ".join(f"{count} {state}" for state, count in Counter(each.state.value for each in group.members).items())


def _then(group: Group) -> str:
    """What that means to clients."""
    if group.options.all_down is AllDown.TRY and any(member.state in _TRIED for member in group.members):
        return "new clients are tried on those that are down (all-down=try)"
    return "clients get no session" if group.upstream.protocol is Protocol.UDP else "new clients are reset"
