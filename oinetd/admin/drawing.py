"""What `oinetd top` shows of a `View`, as something that rich can draw."""

from __future__ import annotations

import time
from collections import deque
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from oinetd.admin.print import place
from oinetd.admin.view import CLIENTS, PANES, SERVERS, SESSIONS, Snapshot, View
from oinetd.observe.text import age, inert, rate, size

__all__ = ["draw"]

BARS: Final = "▁▂▃▄▅▆▇█"
RULES_SHARE: Final = 3
"""Rules have at most a third of the lines."""

STATE_COLORS: Final = {"up": "green", "down": "red", "ejected": "red"}
CHOSEN: Final = "bold white on blue"


def draw(view: View, width: int, height: int) -> RenderableType:
    """All of it, for a terminal of this size."""
    now = view.last
    if now is None:
        return Text("waiting for the first answer …")
    rules = [each for each in now.rules if each["in_force"]]
    rule_lines = min(len(rules), max(1, height // RULES_SHARE - 2))
    lines_left = max(2, height - 2 - (rule_lines + 1) - 2 - 2)
    pane = {SESSIONS: _sessions, CLIENTS: _clients, SERVERS: _servers}[view.pane]
    return Group(
        *_head(view, now, width),
        _rules(rules[:rule_lines], view.rule, width),
        _tabs(view, now, len(rules) - rule_lines),
        pane(view, lines_left - 1),
        Text(),
        _foot(view),
    )


def _line() -> Text:
    return Text(no_wrap=True, overflow="ellipsis")


def _head(view: View, now: Snapshot, width: int) -> list[Text]:
    status = now.status
    color = "red" if status["full"] else "green" if status["state"] == "ready" else "yellow"
    first = _line()
    first.append(inert(status["name"]), "bold").append(" ")
    first.append("full" if status["full"] else status["state"], color)
    first.append(f"  up {age(status['uptime_s'])}  ")
    first.append(rate(status["live"]), "bold").append(" live  ")
    first.append(rate(view.new_past[-1]), "bold").append(" new/s  ")
    first.append(f"{size(view.bytes_past[-1])}/s", "bold")
    if status["reloads"]["last_error"]:
        first.append("  the last reload failed", "red")
    load = sum(each["load"] or 0 for each in status["reactors"])
    machine = f"oinetd {load:.0%} cpu  machine {now.cpu:.0%} cpu {now.memory:.0%} mem"
    second = _line()
    second.append(sparkline(view.bytes_past, max(10, width - len(machine) - 2)), "cyan")
    second.append("  " + machine, "dim")
    return [first, second]


def _table(*columns: tuple[str, bool]) -> Table:
    """A table with these columns; a column that is True is aligned to the right, the others share the room."""
    table = Table(box=None, expand=True, padding=(0, 1, 0, 0), header_style="reverse", pad_edge=False)
    for name, right in columns:
        table.add_column(
            name, justify="right" if right else "left", no_wrap=True, overflow="ellipsis", ratio=None if right else 1
        )
    return table


def _rules(rules: list[dict[str, Any]], chosen: str, width: int) -> Table:
    wide = width >= 100
    columns = [("RULE", False), ("TO", False), *([("LANE", True)] if wide else []), ("LIVE", True), ("NEW/S", True)]
    columns += [("BYTES/S", True), ("REFUSED", True), ("FAILED", True)]
    table = _table(*columns)
    for each in rules:
        now = each["rate"] or {"accepted": 0, "bytes_up": 0, "bytes_down": 0}
        table.add_row(
            Text(inert(each["name"]), "bold" if each["name"] == chosen else ""),
            inert(each["connect"]),
            *([each["lane"]] if wide else []),
            Text(f"{rate(each['live'])} full" if each["full"] else rate(each["live"]), "red" * each["full"]),
            rate(now["accepted"]),
            size(now["bytes_up"] + now["bytes_down"]),
            Text(rate(each["refused"]), "yellow" if each["refused"] else ""),
            Text(rate(each["failed"]), "red" if each["failed"] else ""),
        )
    return table


def _tabs(view: View, now: Snapshot, hidden: int) -> Text:
    text = _line()
    if hidden > 0:
        text.append(f"and {hidden} more rule{'s' * (hidden != 1)}", "dim")
    text.append("\n")
    servers = [each for group in now.groups for each in group["servers"]]
    usable = sum(each["state"] == "up" for each in servers)
    for pane in PANES if servers else PANES[:-1]:
        name = f"{pane} {usable}/{len(servers)}" if pane == SERVERS else pane
        if pane == view.pane != SERVERS:
            name = f"{rate(now.total)} {pane if now.total != 1 else pane.removesuffix('s')}"
        style = "red" if pane == SERVERS and usable < len(servers) else "dim"
        text.append(name, "bold underline cyan" if pane == view.pane else style).append("   ")
    text.append(f"by {view.sort}", "dim")
    if view.rule and view.pane != SERVERS:
        text.append(f", rule {inert(view.rule)}", "cyan")
    if view.typing or view.client:
        text.append(f", client {inert(view.client)}{'▏' if view.typing else ''}", "cyan")
    return text


def _listed(view: View, lines: int, table: Table, row: Any) -> Table:
    """Fill `table` with the rows around the chosen one; `row` gives the cells of one."""
    rows = view.rows
    first = max(0, min(view.selected - lines + 1, len(rows) - lines))
    for at, each in enumerate(rows[first : first + lines], first):
        table.add_row(*row(each), style=CHOSEN if at == view.selected else "")
    for _ in range(lines - len(rows[first : first + lines])):
        table.add_row()
    return table


def _sessions(view: View, lines: int) -> Table:
    table = _table(
        ("CLIENT", False), ("RULE", False), ("SERVER", False), ("AGE", True), ("IDLE", True), ("UP", True),
        ("DOWN", True),
    )  # fmt: skip
    return _listed(
        view,
        lines,
        table,
        lambda each: (
            inert(place(each["client"], each["client_port"])),
            inert(each["rule"]),
            inert(place(each["upstream"], each["upstream_port"])) if each["upstream"] else "connecting",
            age(each["duration_s"]),
            age(each["idle_s"]),
            size(each["bytes_up"]),
            size(each["bytes_down"]),
        ),
    )


def _clients(view: View, lines: int) -> Table:
    table = _table(
        ("CLIENT", False), ("SESSIONS", True), ("OLDEST", True), ("IDLE", True), ("UP", True), ("DOWN", True)
    )
    return _listed(
        view,
        lines,
        table,
        lambda each: (
            inert(each["client"]),
            str(each["sessions"]),
            age(each["oldest_s"]),
            age(each["idle_s"]),
            size(each["bytes_up"]),
            size(each["bytes_down"]),
        ),
    )


def _servers(view: View, lines: int) -> Table:
    table = _table(
        ("SERVER", False), ("WHY", False), ("STATE", True), ("SINCE", True), ("LIVE", True), ("WEIGHT", True),
        ("CHOSEN", True), ("FAILED", True),
    )  # fmt: skip
    now = time.time()
    return _listed(
        view,
        lines,
        table,
        lambda each: (
            inert(f"{each['group']}/{each['name']}"),
            inert(each["why"]),
            Text(each["state"], STATE_COLORS.get(each["state"], "yellow")),
            age(max(0.0, now - each["since"])) if each["since"] else "",
            str(each["live"]),
            str(each["weight"]),
            rate(each["selected"]),
            Text(rate(each["failed"]), "red" if each["failed"] else ""),
        ),
    )


def _foot(view: View) -> Text:
    text = _line()
    if view.message:
        return text.append(inert(view.message), "bold yellow")
    if view.typing:
        return text.append("type an address, a network or a pattern; Enter filters, Esc forgets", "dim")
    keys = [("q", "quit"), ("Tab", "view"), ("s", "sort"), ("r", "rule"), ("/", "client"), ("↑↓", "choose")]
    if view.pane == SERVERS:
        keys[3:5] = []
        keys.append(("d", "drain or ready"))
    else:
        keys.append(("k", "kill"))
    for key, what in keys:
        text.append(f" {key} ", "reverse").append(f" {what}  ", "dim")
    return text


def sparkline(values: deque[float], width: int) -> str:
    """The last values as bars, the newest on the right."""
    last = list(values)[-width:]
    top = max(last, default=0.0)
    bars = "".join(BARS[min(7, int(value / top * 7.999))] if top else BARS[0] for value in last)
    return bars.rjust(width)
