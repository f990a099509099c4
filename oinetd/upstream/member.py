"""A server of a group while oinetd runs: its state and why, its destination, its load. It outlives reloads."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from oinetd.enums import SendProxy
from oinetd.net.sockets import Address
from oinetd.servers import Check, GroupOptions, OnDown, Server
from oinetd.upstream.balance import FULL_WEIGHT, ramped
from oinetd.upstream.destination import Destination
from oinetd.upstream.health import CheckState, PassiveState, Standing
from oinetd.upstream.load import Load

__all__ = ["NOT_CHECKED", "WHY_CHARS_MAX", "Cut", "Member", "ServerStatus", "State"]

NOT_CHECKED: Final = "not checked yet"
"""Why a server has a state that is only assumed."""

WHY_CHARS_MAX: Final = 64
"""What a server says is shown in at most this number of printable ASCII characters."""


class State(enum.Enum):
    """The state of a server, in the order of the numbers that the reactors use."""

    UP = "up"
    DOWN = "down"
    EJECTED = "ejected"
    DRAIN = "drain"
    MAINT = "maint"

    @property
    def number(self) -> int:
        return _NUMBERS[self]

    @property
    def is_gone(self) -> bool:
        """Whether UDP sessions look for another server."""
        return self not in (State.UP, State.DRAIN)


_NUMBERS: Final = {state: number for number, state in enumerate(State)}


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """A snapshot of a server, for `Forwarder.upstreams`, the hook `on_server` and the status.

    A state is assumed until the first check; `why` is then "not checked yet". `since` is Unix time. `weight` is the one
    in force; `live` are its sessions, those that are connecting included. `selected`, `failed`, `checks_passed` and
    `checks_failed` count since the server is known; `changes` are those of its state.
    """

    group: str
    name: str
    state: State
    since: float
    why: str
    weight: int
    backup: bool
    live: int
    selected: int
    failed: int
    checks_passed: int
    checks_failed: int
    changes: int
    addresses: tuple[str, ...]


Cut = Callable[[Any], object]
"""Ends a session of a server, with an `Ending`."""


class Member:
    """One server; `configure` puts what a configuration says of it in force."""

    __slots__ = (
        "answered_at",
        "assumed",
        "changes",
        "check",
        "check_why",
        "checks_failed",
        "checks_passed",
        "config",
        "counted",
        "destination",
        "failed_by",
        "group",
        "load",
        "name",
        "open",
        "operator",
        "operator_weight",
        "options",
        "passive",
        "passive_why",
        "seen",
        "sessions",
        "since",
        "source",
        "state",
        "why",
    )

    def __init__(self, group: str, name: str, load: Load) -> None:
        self.group = group
        self.name = name
        self.load = load
        self.open = False  # set before each choice
        self.counted = False  # by its group, as one that is known to be up
        self.state = State.UP
        self.assumed = False  # the state is that of a server that was not checked yet
        self.since = time.time()
        self.why = ""
        self.seen = False  # whether it had a state before: a slow start is not for the first
        self.check = CheckState(1, 1)
        self.check_why = ""
        self.passive = PassiveState()
        self.passive_why = ""
        self.failed_by: object = None
        self.operator: State | None = None
        self.operator_weight: int | None = None
        self.checks_passed = self.checks_failed = self.changes = 0
        self.sessions: dict[object, Cut] = {}
        self.answered_at = 0.0  # when datagrams last came from it, in the loop's time

    config: Server
    options: GroupOptions
    destination: Destination
    source: Destination | None

    def configure(
        self, config: Server, options: GroupOptions, destination: Destination, source: Destination | None = None
    ) -> None:
        """Put what the configuration says in force; state and counters stay."""
        if self.seen and self.options.check is Check.OFF:
            # It was in use without checks, and stays so until a check says otherwise.
            self.check = CheckState.up(options.check_rise, options.check_fall)
            self.check_why = ""
        self.config, self.options, self.destination, self.source = config, options, destination, source
        destination.health.told_by_group = True
        self.check = self.check.with_thresholds(options.check_rise, options.check_fall)
        if not options.passive.failures:
            self.passive = PassiveState()
        self.load.max_connections = config.max_connections
        self.load.weight = self.weight_in_force

    @property
    def weight_in_force(self) -> int:
        return self.config.weight if self.operator_weight is None else self.operator_weight

    def header(self, of_rule: SendProxy) -> SendProxy:
        """The PROXY header that it gets: its own word stands before the rule's."""
        own = self.config.send_proxy
        return of_rule if own is None else own

    @property
    def backup(self) -> bool:
        return self.config.backup

    def port(self, offset: int) -> int:
        """Its port for the rule's port number `offset`."""
        return self.config.endpoint.port + offset

    def addresses(self, offset: int) -> tuple[Address, ...]:
        """Its present addresses."""
        return self.destination.at(self.port(offset))

    # What the choice looks at

    @property
    def live(self) -> int:
        return self.load.live

    @property
    def passed(self) -> int:
        return self.load.passed

    @property
    def weight(self) -> int:
        """Its weight in thousandths at this moment."""
        since_ms = self.load.slow_since_ms
        if not since_ms:
            return self.load.weight * FULL_WEIGHT
        age_ms = max(0, time.monotonic_ns() // 1_000_000 - since_ms)
        return ramped(self.load.weight, age_ms, int(self.options.slow_start_s * 1000))

    @property
    def is_usable(self) -> bool:
        """Whether it takes new sessions, room or not."""
        return self.state is State.UP and self.load.weight > 0 and self.destination.resolved

    @property
    def has_room(self) -> bool:
        most = self.load.max_connections
        return not most or self.load.live < most

    # Its state

    @property
    def is_checked(self) -> bool:
        """Whether checks decide about it."""
        return self.options.check is not Check.OFF

    @property
    def is_unknown(self) -> bool:
        """Whether checks decide about it, and there has been none."""
        return self.is_checked and not self.check.is_checked

    @property
    def is_known_up(self) -> bool:
        """Whether it is up, and not only because nobody knows better."""
        return self.state is State.UP and not self.is_unknown

    def judge(self, others_up: bool) -> tuple[State, str]:
        """The state that it has to have, and why; `others_up` is whether another one of its tier is up."""
        if self.operator is not None:
            return self.operator, "operator"
        if self.weight_in_force == 0:
            return State.DRAIN, "operator" if self.operator_weight == 0 else "weight 0"
        if self.is_checked:
            if not self.check.is_checked:
                return (State.DOWN if others_up else State.UP), NOT_CHECKED
            if not self.check.is_up:
                return State.DOWN, self.check_why
        if self.passive.standing is Standing.EJECTED:
            return State.EJECTED, self.passive_why
        return State.UP, self.check_why if self.is_checked else ""

    @property
    def cuts_sessions(self) -> bool:
        """Whether the sessions of a server in this state are reset because it is down."""
        return self.state in (State.DOWN, State.EJECTED) and self.options.on_down is OnDown.RESET

    def status(self) -> ServerStatus:
        """A snapshot."""
        load = self.load
        addresses = tuple(address.host for address in self.destination.at(self.port(0)))
        return ServerStatus(
            self.group, self.name, self.state, self.since, self.why, load.weight, self.backup, load.live, load.selected,
            load.failed, self.checks_passed, self.checks_failed, self.changes, addresses,
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"<Member {self.group} {self.name} {self.state.value}>"
