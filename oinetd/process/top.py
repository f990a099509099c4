"""`oinetd top`: asks the running oinetd each second, and draws the answer in the terminal."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from oinetd.admin.client import Client, NoInstance

if TYPE_CHECKING:
    from oinetd.admin.view import Snapshot, View

__all__ = ["top"]

PAUSE_S: Final = 1.0
EXTRA: Final = "oinetd top needs rich and psutil: pip install 'oinetd[top]'"
_KEYS: Final = {"\x1b[A": "up", "\x1b[B": "down", "\x1b": "escape", "\r": "enter", "\n": "enter", "\x7f": "backspace"}


def top(client: Client, every_s: float = PAUSE_S) -> int:
    """Draw until `q`; returns the exit code."""
    try:
        import psutil
        from rich.console import Console

        from oinetd.admin.view import View
    except ImportError:
        print(EXTRA, file=sys.stderr)
        return 69  # EX_UNAVAILABLE
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        print("oinetd top: needs a terminal; for scripts use oinetd status --json", file=sys.stderr)
        return 64
    view = View(kill=lambda session: _kill(client, session))
    console = Console()
    look = _looks(client, view, psutil)
    with console.screen(hide_cursor=True) as screen, _raw():
        view.show(next(look))
        due = time.monotonic() + every_s
        while True:
            screen.update(view.draw(console.width, console.height))
            key = _key(max(0.0, due - time.monotonic()))
            if key and not view.press(key):
                return 0
            if not key or (key in ("s", "r", "k", "enter") and not view.typing):
                view.show(next(look))
                due = time.monotonic() + every_s


def _looks(client: Client, view: View, psutil: Any) -> Iterator[Snapshot]:
    from oinetd.admin.view import Snapshot

    while True:
        status, rules = client.get("/v1/status").value, client.get("/v1/rules").value
        sessions = client.get("/v1/sessions", view.query)
        if sessions.status != 200:
            view.message = str(sessions.value.get("detail", ""))
        found: dict[str, Any] = sessions.value if sessions.status == 200 else {"sessions": [], "total": 0}
        cpu, memory = psutil.cpu_percent() / 100, psutil.virtual_memory().percent / 100
        yield Snapshot(status, rules["rules"], found["sessions"], found["total"], cpu, memory)


def _kill(client: Client, session: int) -> str:
    try:
        answer = client.post(f"/v1/sessions/{session}/kill")
    except NoInstance as error:
        return str(error)
    return f"session {session} ended" if answer.status == 200 else str(answer.value.get("detail", ""))


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
