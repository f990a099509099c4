"""Which limits are reached: logged once when clients begin to wait, and once when there was room for a while.

At a limit each session that ends lets one in, and the next one waits again, many times a second. So a gate counts as
full until no client was refused a place for `CALM_S`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final, Protocol

from oinetd.model import Rule

__all__ = ["WAITING", "Capacity", "label_of"]

log = logging.getLogger("oinetd")

CALM_S: Final = 3.0
LOOK_S: Final = 0.5
"""Time between two looks at the gates that are full; with none there is no look."""


WAITING: Final = "clients wait in the accept queue"


@dataclass(slots=True)
class _Full:
    """A gate that was found full: how it is called, how often somebody found it full, and when that last changed."""

    name: str
    refusals: int
    changed: float


class Bounded(Protocol):
    """What can be full; a `Gate` is one."""

    @property
    def live(self) -> int: ...
    @property
    def full(self) -> int: ...
    @property
    def is_full(self) -> bool: ...
    def calm(self) -> None: ...


class Capacity:
    """Watches the gates that were found full: of rules (by their identity), of groups of servers (by their names), and
    of the process (None)."""

    def __init__(self) -> None:
        self.times: Counter[Hashable] = Counter()
        """How often each became full."""
        self._full: dict[tuple[Hashable, Bounded], _Full] = {}
        self._timer: asyncio.TimerHandle | None = None

    def is_full(self, identity: Hashable) -> bool:
        """Whether clients of a rule, of a group, or of the process have to wait."""
        return any(key[0] == identity for key in self._full)

    def found_full(
        self, identity: Hashable, gate: Bounded, name: str, how: Callable[[], str], then: str = WAITING
    ) -> None:
        """Somebody has to wait at `gate`; `how` says in numbers how full it is, `then` what that means to clients."""
        key = (identity, gate)
        if key in self._full:
            return
        if not self.is_full(identity):
            self.times[identity] += 1
            log.warning("%s: full (%s), %s", name, how(), then)
        loop = asyncio.get_running_loop()
        self._full[key] = _Full(name, gate.full, loop.time())
        if self._timer is None:
            self._timer = loop.call_later(LOOK_S, self._look)

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for key, full in tuple(self._full.items()):
            identity, gate = key
            if gate.full != full.refusals or gate.is_full:
                full.refusals, full.changed = gate.full, now
            elif now - full.changed >= CALM_S:
                del self._full[key]
                gate.calm()
                if not self.is_full(identity):
                    log.info("%s: room again (%d connections live)", full.name, gate.live)
        self._timer = loop.call_later(LOOK_S, self._look) if self._full else None


def label_of(rule: Rule) -> str:
    """How a rule is called in messages: where it listens."""
    bind = rule.bind
    host = f"[{bind.address}]" if ":" in bind.address else bind.address
    ports = str(bind.port) if bind.last_port == bind.port else f"{bind.port}-{bind.last_port}"
    return f"rule {host}:{ports}"
