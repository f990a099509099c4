"""What the admin interface knows of the process that it belongs to."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from oinetd.forwarder import Forwarder

__all__ = ["DRAINING", "READY", "STARTING", "Instance", "Reloads", "Replaced"]

STARTING: Final = "starting"
READY: Final = "ready"
DRAINING: Final = "draining"


class Replaced(OSError):
    """Another process serves in place of this one, and does what was asked of this one last."""


@dataclass(slots=True)
class Reloads:
    """The reloads since the start; the `last_error` is empty if the last one succeeded, times are Unix time."""

    succeeded: int = 0
    failed: int = 0
    last_error: str = ""
    last_at: float = 0.0
    last_duration_s: float = 0.0


@dataclass(slots=True)
class Instance:
    """The process: its forwarder, its state, and what it can be asked to do.

    `upgrade` starts the program that it is given, or the same one if that is empty; True is a dry run.
    `reload` raises `OinetdError` or `OSError` if nothing changed, `Replaced` among them. `owners` are root and the user
    of the process; `users` are those who may change something.
    """

    name: str
    forwarder: Forwarder
    reload: Callable[[], Awaitable[None]]
    conf_file: str = ""
    owners: frozenset[int] = frozenset({0})
    upgrade: Callable[[str, bool], Awaitable[Mapping[str, Any]]] | None = None
    users: frozenset[int] = frozenset({0})
    state: str = STARTING
    started: float = field(default_factory=time.time)
    began: float = field(default_factory=time.monotonic)
    reloads: Reloads = field(default_factory=Reloads)
