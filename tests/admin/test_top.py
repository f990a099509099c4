"""`oinetd top`: what it draws fits the terminal, names are inert, keys do what the last line says."""

from __future__ import annotations

import io
from typing import Any

import pytest

pytest.importorskip("rich")

from rich.console import Console

from oinetd.admin.drawing import draw
from oinetd.admin.view import PANES, Actions, Snapshot, View


def rule(name: str, **more: Any) -> dict[str, Any]:
    rate = {"seconds": 1.0, "accepted": 12.5, "bytes_up": 1e6, "bytes_down": 2e6}
    counts = {"live": 7, "refused": 0, "failed": 3, "full": False, "in_force": True, "lane": "native"}
    return {"name": name, "connect": "192.0.2.1 80", "rate": rate, **counts, **more}


def session(number: int, client: str = "198.51.100.7") -> dict[str, Any]:
    return {
        "id": number,
        "client": client,
        "client_port": 40000 + number,
        "rule": "web",
        "upstream": "2001:db8::17",
        "upstream_port": 8080,
        "duration_s": 3700.0,
        "idle_s": 0.25,
        "bytes_up": 123456789,
        "bytes_down": 5,
    }


def server(name: str, state: str = "up", **more: Any) -> dict[str, Any]:
    counts = {"weight": 1, "live": 3, "selected": 12, "failed": 0, "why": ""}
    return {"name": name, "state": state, "since": 1.0, **counts, **more}


def client(address: str) -> dict[str, Any]:
    return {
        "client": address,
        "sessions": 3,
        "oldest_s": 3700.0,
        "idle_s": 0.1,
        "bytes_up": 123456789,
        "bytes_down": 5,
    }


def snapshot(rules: list[dict[str, Any]], rows: list[dict[str, Any]], servers: list[dict[str, Any]] = []) -> Snapshot:  # noqa: B006
    status = {"name": "oinetd", "state": "ready", "full": False, "uptime_s": 90000.0, "live": len(rows)}
    status |= {"reactors": [{"load": 0.25}], "reloads": {"last_error": ""}}
    groups = [{"name": "shop", "servers": servers}] if servers else []
    return Snapshot(status, rules, rows, len(rows), 0.5, 0.25, groups)


def drawn(view: View, width: int = 80, height: int = 24) -> list[str]:
    console = Console(width=width, height=height, file=io.StringIO(), record=True)
    console.print(draw(view, width, height))
    return console.export_text().removesuffix("\n").split("\n")


@pytest.mark.parametrize(("width", "height"), [(80, 24), (132, 50), (60, 12), (40, 10)])
@pytest.mark.parametrize("pane", PANES)
@pytest.mark.parametrize(("rules", "sessions"), [(0, 0), (1, 3), (30, 500)])
def test_it_fits_the_terminal(width: int, height: int, rules: int, sessions: int, pane: str) -> None:
    view = View(pane=pane)
    rows = [session(n) if pane == "sessions" else client(f"198.51.100.7:40000{n}") for n in range(sessions)]
    servers = [server(f"198.51.100.7:40000{n}", why="connect timed out" * (n % 2)) for n in range(sessions)]
    view.show(snapshot([rule(f"rule-{number}") for number in range(rules)], rows, servers))
    lines = drawn(view, width, height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    if width >= 80:
        assert "quit" in lines[-1]
        assert "up 1d01h" in lines[0]
    if sessions:
        assert any("198.51.100.7:40000" in line or "…" in line for line in lines)


def test_names_have_no_effect_on_the_terminal() -> None:
    view = View()
    view.show(snapshot([rule("a\x1b[31mb\u202ec\n[red]x[/red]")], [session(1, "<script>\x07")]))
    text = "\n".join(drawn(view, 200))
    assert "a\\x1b[31mb\\u202ec\\n[red]x[/red]" in text
    assert not any(char in text for char in "\x1b\x07\u202e")


def test_keys_sort_filter_choose_kill_and_quit() -> None:
    killed: list[int] = []
    view = View(Actions(kill=lambda number: killed.append(number) or f"session {number} ended"))  # type: ignore[func-returns-value]
    rules = [rule("web"), rule("mail"), rule("old", in_force=False)]
    view.show(snapshot(rules, [session(1), session(2)]))
    assert view.query == {"sort": "bytes", "limit": "200"}
    for key in "srr":
        assert view.press(key)
    assert view.query == {"sort": "rate", "limit": "200", "rule": "mail"}
    view.press("r")
    assert "rule" not in view.query
    for key in ("/", *"10.q", "backspace", "*"):
        assert view.press(key)
    assert "client" not in view.query  # it is still being typed
    view.press("enter")
    assert view.query["client"] == "10.*"
    view.press("/")
    view.press("escape")
    assert "client" not in view.query
    for key in ("down", "down", "down"):
        view.press(key)
    view.press("k")
    assert killed == [2]
    assert "session 2 ended" in drawn(view)[-1]
    assert not view.press("q")


def test_the_clients_of_a_view_are_killed_or_looked_at() -> None:
    killed: list[str] = []
    view = View(Actions(kill_client=lambda address: killed.append(address) or "3 sessions ended"))  # type: ignore[func-returns-value]
    view.show(snapshot([rule("web")], [session(1)]))
    assert view.press("tab")
    assert (view.pane, view.rows, view.query["sort"]) == ("clients", [], "sessions")
    view.press("k")  # nothing is there yet
    view.show(snapshot([rule("web")], [client("192.0.2.1"), client("192.0.2.2")]))
    view.press("down")
    view.press("k")
    assert killed == ["192.0.2.2"]
    view.press("enter")
    assert (view.pane, view.query["client"]) == ("sessions", "192.0.2.2")
    view.press("tab")
    view.press("tab")
    assert view.pane == "sessions", "without groups there are no servers to show"


def test_a_server_is_drained_and_made_ready_again() -> None:
    asked: list[tuple[str, str]] = []
    view = View(Actions(set_server=lambda name, state: asked.append((name, state)) or f"{name}: {state}"))  # type: ignore[func-returns-value]
    servers = [server("a:80"), server("b:80", "drain", live=9)]
    view.show(snapshot([rule("web")], [], servers))
    view.press("tab")
    view.press("tab")
    assert view.pane == "servers"
    view.press("d")
    view.press("down")
    view.press("d")
    assert "shop/b:80: ready" in drawn(view)[-1]
    assert asked == [("shop/a:80", "drain"), ("shop/b:80", "ready")]
    view.press("s")
    assert [each["name"] for each in view.rows] == ["b:80", "a:80"]
    lines = drawn(view)
    assert any("servers 1/2" in line for line in lines)
    view.press("up")
    assert "drain or ready" in drawn(view)[-1]
