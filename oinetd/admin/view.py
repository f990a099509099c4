"""What `oinetd top` shows, as something that rich can draw: it depends on the answers and on the keys alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from oinetd.observe.text import age, inert, rate, size

__all__ = ["HISTORY", "Snapshot", "View"]

HISTORY: Final = 60
BARS: Final = "▁▂▃▄▅▆▇█"
SORTS: Final = ("bytes", "rate", "age", "idle")
RULES_SHARE: Final = 3
"""Rules have at most a third of the lines."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The documents of one look, and the machine: busy share of its cores and of its memory."""

    status: dict[str, Any]
    rules: list[dict[str, Any]]
    sessions: list[dict[str, Any]]
    total: int
    cpu: float = 0.0
    memory: float = 0.0
    servers: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class View:
    """What is chosen, and the rates so far."""

    sort: str = "bytes"
    rule: str = ""
    client: str = ""
    typing: bool = False
    selected: int = 0
    message: str = ""
    kill: Callable[[int], str] = lambda session: ""
    bytes_past: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))
    new_past: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))
    last: Snapshot | None = None

    @property
    def query(self) -> dict[str, str]:
        """The parameters for the sessions."""
        query = {"sort": self.sort, "limit": "200"}
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
        self.selected = max(0, min(self.selected, len(snapshot.sessions) - 1))

    def press(self, key: str) -> bool:
        """A key: its character, or `up`, `down`, `enter`, `escape`, `backspace`. False ends it."""
        self.message = ""
        if self.typing:
            self._type(key)
        elif key in ("q", "escape", "\x03"):
            return False
        elif key == "s":
            self.sort = SORTS[(SORTS.index(self.sort) + 1) % len(SORTS)]
        elif key == "r" and self.last is not None:
            names = ["", *(each["name"] for each in self.last.rules if each["in_force"])]
            self.rule = names[(names.index(self.rule) + 1) % len(names)] if self.rule in names else ""
        elif key == "/":
            self.typing, self.client = True, ""
        elif key in ("up", "down"):
            count = len(self.last.sessions) if self.last is not None else 0
            self.selected = max(0, min(self.selected + (1 if key == "down" else -1), count - 1))
        elif key == "k" and self.last is not None and self.last.sessions:
            self.message = self.kill(self.last.sessions[self.selected]["id"])
        return True

    def _type(self, key: str) -> None:
        if key == "enter":
            self.typing = False
        elif key == "escape":
            self.typing, self.client = False, ""
        elif key == "backspace":
            self.client = self.client[:-1]
        elif len(key) == 1 and key.isprintable():
            self.client += key

    # Drawing

    def draw(self, width: int, height: int) -> RenderableType:
        """All of it, for a terminal of this size."""
        if self.last is None:
            return Text("waiting for the first answer …")
        rules = [each for each in self.last.rules if each["in_force"]]
        rule_lines = min(len(rules), max(1, height // RULES_SHARE - 2))
        lines_left = max(1, height - 2 - (rule_lines + 1) - 2 - 2)
        return Group(
            *self._head(self.last, width),
            self._rules(rules[:rule_lines], width),
            self._sessions_head(self.last, len(rules) - rule_lines),
            self._sessions(self.last, lines_left, width),
            Text(),
            self._foot(width),
        )

    def _head(self, now: Snapshot, width: int) -> list[Text]:
        status = now.status
        color = "red" if status["full"] else "green" if status["state"] == "ready" else "yellow"
        first = Text(no_wrap=True, overflow="ellipsis")
        first.append(inert(status["name"]), "bold").append(" ")
        first.append("full" if status["full"] else status["state"], color)
        first.append(f"  up {age(status['uptime_s'])}  ")
        first.append(rate(status["live"]), "bold").append(" live  ")
        first.append(rate(self.new_past[-1]), "bold").append(" new/s  ")
        first.append(f"{size(self.bytes_past[-1])}/s", "bold")
        load = sum(each["load"] or 0 for each in status["reactors"])
        machine = f"oinetd {load:.0%} cpu  machine {now.cpu:.0%} cpu {now.memory:.0%} mem"
        second = Text(no_wrap=True, overflow="ellipsis")
        second.append(sparkline(self.bytes_past, max(10, width - len(machine) - 2)), "cyan")
        second.append("  " + machine, "dim")
        return [first, second]

    @staticmethod
    def _table(*columns: tuple[str, bool]) -> Table:
        table = Table(box=None, expand=True, padding=(0, 1, 0, 0), header_style="reverse", pad_edge=False)
        for name, right in columns:
            table.add_column(
                name,
                justify="right" if right else "left",
                no_wrap=True,
                overflow="ellipsis",
                ratio=None if right else 1,
            )
        return table

    def _rules(self, rules: list[dict[str, Any]], width: int) -> Table:
        wide = width >= 100
        columns = [("RULE", False), ("TO", False), *([("LANE", True)] if wide else []), ("LIVE", True), ("NEW/S", True)]
        columns += [("BYTES/S", True), ("REFUSED", True), ("FAILED", True)]
        table = self._table(*columns)
        for each in rules:
            now = each["rate"] or {"accepted": 0, "bytes_up": 0, "bytes_down": 0}
            table.add_row(
                Text(inert(each["name"]), "bold" if each["name"] == self.rule else ""),
                inert(each["connect"]),
                *([each["lane"]] if wide else []),
                Text(f"{rate(each['live'])} full" if each["full"] else rate(each["live"]), "red" * each["full"]),
                rate(now["accepted"]),
                size(now["bytes_up"] + now["bytes_down"]),
                Text(rate(each["refused"]), "yellow" if each["refused"] else ""),
                Text(rate(each["failed"]), "red" if each["failed"] else ""),
            )
        return table

    def _sessions_head(self, now: Snapshot, hidden: int) -> Text:
        text = Text(no_wrap=True, overflow="ellipsis")
        if hidden > 0:
            text.append(f"and {hidden} more rule{'s' * (hidden != 1)}", "dim")
        text.append("\n")
        text.append(f"{now.total} session{'s' * (now.total != 1)}", "bold").append(f" by {self.sort}")
        if self.rule:
            text.append(f", rule {inert(self.rule)}", "cyan")
        if self.typing or self.client:
            text.append(f", client {inert(self.client)}{'▏' if self.typing else ''}", "cyan")
        return text

    def _sessions(self, now: Snapshot, lines: int, width: int) -> Table:
        table = self._table(
            ("CLIENT", False),
            ("RULE", False),
            ("SERVER", False),
            ("AGE", True),
            ("IDLE", True),
            ("UP", True),
            ("DOWN", True),
        )
        shown = max(1, lines - 1)
        first = max(0, min(self.selected - shown + 1, len(now.sessions) - shown))
        for at, each in enumerate(now.sessions[first : first + shown], first):
            table.add_row(
                inert(place(each["client"], each["client_port"])),
                inert(each["rule"]),
                inert(place(each["upstream"], each["upstream_port"])) if each["upstream"] else "connecting",
                age(each["duration_s"]),
                age(each["idle_s"]),
                size(each["bytes_up"]),
                size(each["bytes_down"]),
                style="bold white on blue" if at == self.selected else "",
            )
        for _ in range(shown - len(now.sessions[first : first + shown])):
            table.add_row()
        return table

    def _foot(self, width: int) -> Text:
        if self.message:
            return Text(inert(self.message), "bold yellow", no_wrap=True, overflow="ellipsis")
        if self.typing:
            return Text("type an address, a network or a pattern; Enter filters, Esc forgets", "dim", no_wrap=True)
        keys = (("q", "quit"), ("s", "sort"), ("r", "rule"), ("/", "client"), ("↑↓", "choose"), ("k", "kill"))
        text = Text(no_wrap=True, overflow="ellipsis")
        for key, what in keys:
            text.append(f" {key} ", "reverse").append(f" {what}  ", "dim")
        return text


def sparkline(values: deque[float], width: int) -> str:
    """The last values as bars, the newest on the right."""
    last = list(values)[-width:]
    top = max(last, default=0.0)
    bars = "".join(BARS[min(7, int(value / top * 7.999))] if top else BARS[0] for value in last)
    return bars.rjust(width)


def place(host: str, port: int) -> str:
    """`host:port`."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("unix:") else f"{host}:{port}"
