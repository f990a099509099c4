"""`oinetd top`: asks the running oinetd each second, and draws the answer in the terminal."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from oinetd.admin.client import Client, NoInstance
from oinetd.admin.view import SERVERS, Actions, Snapshot, View
from oinetd.observe.text import number_of

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["top"]

PAUSE_S: Final = 1.0
EXTRA: Final = "oinetd top needs rich and psutil: pip install 'oinetd[top]'"
_KEYS: Final = {
    "\x1b[A": "up",
    "\x1b[B": "down",
    "\x1bOA": "up",
    "\x1bOB": "down",
    "\x1b": "escape",
    "\r": "enter",
    "\n": "enter",
    "\t": "tab",
    "\x7f": "backspace",
}
_CHANGING: Final = ("s", "r", "k", "d", "enter", "tab")
"""After these the answers are other ones."""


def top(client: Client, every_s: float = PAUSE_S) -> int:
    """Draw until `q`; returns the exit code."""
    try:
        import psutil
        from rich.console import Console

        from oinetd.admin.drawing import draw
    except ImportError:
        print(EXTRA, file=sys.stderr)
        return 69  # EX_UNAVAILABLE
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        print("oinetd top: needs a terminal; for scripts use oinetd status --json", file=sys.stderr)
        return 64
    view = View(_actions(client))
    console = Console()
    with console.screen(hide_cursor=True) as screen, _raw():
        view.show(_look(client, view, psutil))
        due = time.monotonic() + every_s
        while True:
            screen.update(draw(view, console.width, console.height))
            key = _key(max(0.0, due - time.monotonic()))
            if key and not view.press(key):
                return 0
            if not key or (key in _CHANGING and not view.typing):
                view.show(_look(client, view, psutil))
                due = time.monotonic() + every_s


def _look(client: Client, view: View, psutil: ModuleType) -> Snapshot:
    """Ask for what the view shows."""
    status, rules = client.get("/v1/status").value, client.get("/v1/rules").value
    groups = client.get("/v1/servers").value["groups"]
    found: dict[str, Any] = {view.pane: [], "total": 0}
    if view.pane != SERVERS:
        answer = client.get(f"/v1/{view.pane}", view.query)
        if answer.status == 200:
            found = answer.value
        else:
            view.message = str(answer.value.get("detail", ""))
    cpu, memory = psutil.cpu_percent() / 100, psutil.virtual_memory().percent / 100
    return Snapshot(status, rules["rules"], found[view.pane], found["total"], cpu, memory, groups)


def _actions(client: Client) -> Actions:
    def post(path: str, done: str = "", query: Mapping[str, str] | None = None) -> str:
        try:
            answer = client.post(path, query)
        except NoInstance as error:
            return str(error)
        if answer.status != 200:
            return str(answer.value.get("detail", ""))
        return done or f"{number_of(answer.value['killed'], 'session')} ended"

    return Actions(
        kill=lambda session: post(f"/v1/sessions/{session}/kill", f"session {session} ended"),
        kill_client=lambda address: post("/v1/sessions/kill", query={"client": address}),
        set_server=lambda server, state: post(f"/v1/servers/{server}/{state}", f"{server}: {state}"),
    )


@contextlib.contextmanager
def _raw() -> Iterator[None]:
    """Keys come one by one, and are not shown."""
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _key(wait_s: float) -> str:
    """The next key within this time; empty if there is none."""
    fd = sys.stdin.fileno()
    if not select.select([fd], [], [], wait_s)[0]:
        return ""
    read = os.read(fd, 8).decode(errors="replace")
    return _KEYS.get(read, read[:1])
