"""What is chosen in `oinetd top`, and what keys do: it depends on the answers and on the keys alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = ["CLIENTS", "HISTORY", "PANES", "SERVERS", "SESSIONS", "Actions", "Snapshot", "View"]

HISTORY: Final = 60
SESSIONS: Final = "sessions"
CLIENTS: Final = "clients"
SERVERS: Final = "servers"
PANES: Final = (SESSIONS, CLIENTS, SERVERS)

SORTS: Final[Mapping[str, tuple[str, ...]]] = {
    SESSIONS: ("bytes", "rate", "age", "idle"),
    CLIENTS: ("sessions", "bytes", "age", "idle"),
    SERVERS: ("name", "live", "failed"),
}
ROWS_MAX: Final = 200
"""More are not asked for."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The documents of one look, and the machine: busy share of its cores and of its memory.

    `rows` are those of the pane, `total` is how many there are. `groups` are all servers.
    """

    status: dict[str, Any]
    rules: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    total: int
    cpu: float = 0.0
    memory: float = 0.0
    groups: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Actions:
    """What keys can change; each function returns what to tell."""

    kill: Callable[[int], str] = lambda session: ""
    kill_client: Callable[[str], str] = lambda client: ""
    set_server: Callable[[str, str], str] = lambda server, state: ""


@dataclass
class View:
    """What is chosen, and the rates so far."""

    actions: Actions = field(default_factory=Actions)
    pane: str = SESSIONS
    sorts: dict[str, str] = field(default_factory=lambda: {pane: sorts[0] for pane, sorts in SORTS.items()})
    rule: str = ""
    client: str = ""
    typing: bool = False
    selected: int = 0
    message: str = ""
    bytes_past: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))
    new_past: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))
    last: Snapshot | None = None

    @property
    def sort(self) -> str:
        """The order of the pane."""
        return self.sorts[self.pane]

    @property
    def query(self) -> dict[str, str]:
        """The parameters for sessions or clients."""
        query = {"sort": self.sort, "limit": str(ROWS_MAX)}
        if self.rule:
            query["rule"] = self.rule
        if self.client and not self.typing:
            query["client"] = self.client
        return query

    def show(self, snapshot: Snapshot) -> None:
        """A new look."""
        self.last = snapshot
        rates = [each["rate"] for each in snapshot.rules if each["rate"] and each["in_force"]]
        self.bytes_past.append(sum(each["bytes_up"] + each["bytes_down"] for each in rates))
        self.new_past.append(sum(each["accepted"] for each in rates))
        self.selected = max(0, min(self.selected, len(self.rows) - 1))

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What the pane lists."""
        if self.last is None:
            return []
        if self.pane != SERVERS:
            return self.last.rows
        servers = [{**each, "group": group["name"]} for group in self.last.groups for each in group["servers"]]
        if self.sort == "name":
            return servers
        return sorted(servers, key=lambda each: -each[self.sort])

    def press(self, key: str) -> bool:
        """A key: its character, or `up`, `down`, `enter`, `escape`, `backspace`, `tab`. False ends it."""
        self.message = ""
        if self.typing:
            self._type(key)
        elif key in ("q", "escape", "\x03"):
            return False
        elif key in ("tab", "s", "r", "/"):
            self._choose(key)
        elif key in ("up", "down"):
            self.selected = max(0, min(self.selected + (1 if key == "down" else -1), len(self.rows) - 1))
        elif self.rows:
            self._act(key, self.rows[self.selected])
        return True

    def _choose(self, key: str) -> None:
        if key == "tab":
            has_servers = self.last is not None and bool(self.last.groups)
            panes = PANES if has_servers else PANES[:-1]
            at = panes.index(self.pane) if self.pane in panes else -1
            self._go(panes[(at + 1) % len(panes)])
        elif key == "s":
            sorts = SORTS[self.pane]
            self.sorts[self.pane] = sorts[(sorts.index(self.sort) + 1) % len(sorts)]
        elif key == "/":
            self.typing, self.client = True, ""
            if self.pane == SERVERS:
                self._go(SESSIONS)
        elif self.last is not None:
            names = ["", *(each["name"] for each in self.last.rules if each["in_force"])]
            self.rule = names[(names.index(self.rule) + 1) % len(names)] if self.rule in names else ""

    def _go(self, pane: str) -> None:
        self.pane, self.selected = pane, 0
        if self.last is not None:
            self.last = Snapshot(
                self.last.status, self.last.rules, [], 0, self.last.cpu, self.last.memory, self.last.groups
            )

    def _act(self, key: str, row: dict[str, Any]) -> None:
        if self.pane == SERVERS:
            if key == "d":
                state = "ready" if row["state"] in ("drain", "maint") else "drain"
                self.message = self.actions.set_server(f"{row['group']}/{row['name']}", state)
        elif key == "k":
            act = self.actions
            self.message = act.kill(row["id"]) if self.pane == SESSIONS else act.kill_client(row["client"])
        elif key == "enter" and self.pane == CLIENTS:
            self.client = row["client"]
            self._go(SESSIONS)

    def _type(self, key: str) -> None:
        if key == "enter":
            self.typing = False
        elif key == "escape":
            self.typing, self.client = False, ""
        elif key == "backspace":
            self.client = self.client[:-1]
        elif len(key) == 1 and key.isprintable():
            self.client += key
