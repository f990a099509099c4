"""`checks`: what checking many servers costs, beside HAProxy's checks and beside bare connects, in one window of time.

Each has servers of its own, so that it is known how many checks it has made. They run at once: what else the machine
does is the same for all of them.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from typing import NamedTuple

import psutil
from rich.console import Console
from rich.table import Table

from bench.checking import address
from bench.errors import BenchError
from bench.plan import Plan
from bench.programs import Program, python_command
from bench.stand import Stand
from bench.tools import available, version

__all__ = ["EVERY_S", "checks"]

EVERY_S = 2.0
SETTLE_S = 5.0
"""What a start and the first checks take, which are spread over two seconds."""
TIMES_MAX, HELD_MAX_MS = 3.0, 5.0
"""The bounds: of bare connects, and of the loop."""

Command = Callable[[Stand, int, int], list[str]]


class _Checker(NamedTuple):
    """Who checks, its servers, and what both have done so far. Servers do not see the checks of HAProxy, which resets
    the connection before its handshake is over: it is taken to make as many as it is told."""

    name: str
    program: Program
    servers: Program
    seen: bool
    taken: int = 0
    cpu_s: float = 0.0

    def now(self) -> _Checker:
        times = psutil.Process(self.program.pid).cpu_times()
        return self._replace(taken=int(self.servers.ask()), cpu_s=times.user + times.system)


def _haproxy(stand: Stand, port: int, count: int) -> list[str]:
    path = stand.directory / "checks.cfg"
    lines = "".join(f"    server s{number} {address(number)}:{port}\n" for number in range(count))
    path.write_text(
        "global\n    nbthread 1\ndefaults\n    mode tcp\n    timeout connect 1s\n    timeout client 1m\n"
        f"    timeout server 1m\n    default-server check inter {EVERY_S:g}s\n"
        f"listen group\n    bind 127.0.0.1:{stand.free_port()}\n{lines}"
    )
    return [available("haproxy") or "haproxy", "-db", "-f", str(path)]


def _own(role: str) -> Command:
    return lambda stand, port, count: python_command("bench.checking", role, str(port), str(count), str(EVERY_S))


def checks(count: int, seconds: float, console: Console) -> int:
    """Measure; 0 if oinetd keeps within the bounds."""
    commands: dict[str, Command] = {"bare connects": _own("bare"), "oinetd": _own("oinetd")}
    if available("haproxy"):
        commands[f"haproxy {version('haproxy')}"] = _haproxy
    with contextlib.ExitStack() as stack:
        stand = stack.enter_context(Stand("loopback"))
        plan = stack.enter_context(Plan(console, SETTLE_S + 2 * seconds))
        begun = []
        for name, command in commands.items():
            port = stand.free_port()
            serving = python_command("bench.checking", "servers", str(port))
            servers = stack.enter_context(stand.server(serving, port, pipe=True))
            program = stack.enter_context(stand.client(command(stand, port, count)))
            begun.append(_Checker(name, program, servers, command is not _haproxy))
        plan.now("first checks")
        oinetd = next(each.program for each in begun if each.name == "oinetd")
        oinetd.read_line()
        time.sleep(EVERY_S)
        plan.did(SETTLE_S)
        plan.now("processor time")
        before = [each.now() for each in begun]
        time.sleep(seconds)
        after = [each.now() for each in begun]
        for then, now in zip(before, after, strict=True):
            if now.taken == then.taken and now.seen:
                said = now.program.log.read_text(errors="replace").strip()[-200:]
                raise BenchError(f"{now.name} has checked nothing: {said}")
        plan.did(seconds)
        plan.now("how long the loop is held")
        oinetd.ask()
        time.sleep(seconds)
        held = json.loads(oinetd.ask())
        plan.did(seconds)
    if held["up"] != count:
        raise BenchError(f"only {held['up']} of {count} servers are up")
    return _show(count, seconds, before, after, held, console)


def _show(
    count: int, seconds: float, before: list[_Checker], after: list[_Checker], held: dict[str, float], console: Console
) -> int:
    table = Table(title=f"{count} servers, each checked every {EVERY_S:g} s, for {seconds:g} s", title_justify="left")
    for title in ("", "checks/s", "CPU µs each", "of a core", "times bare"):
        table.add_column(title, justify="right" if title else "left")
    costs: dict[str, float] = {}
    for then, now in zip(before, after, strict=True):
        made = float(now.taken - then.taken) if now.seen else count * seconds / EVERY_S
        cpu_s = now.cpu_s - then.cpu_s
        costs[now.name] = cpu_s / made
        times = costs[now.name] / costs["bare connects"] if costs["bare connects"] else float("nan")
        table.add_row(
            now.name, f"{made / seconds:.0f}", f"{costs[now.name] * 1e6:.0f}", f"{cpu_s / seconds:.1%}", f"{times:.2f}"
        )
    console.print(table)
    console.print(
        f"the loop of oinetd was held for at most {held['core_ms']:.2f} ms on a core, {held['wall_ms']:.2f} ms by the "
        "clock, with what else the machine did",
        highlight=False,
    )
    dear = costs["oinetd"] > TIMES_MAX * costs["bare connects"]
    if dear or held["core_ms"] > HELD_MAX_MS:
        console.print(f"that is above {TIMES_MAX:g} times a bare connect, or above {HELD_MAX_MS:g} ms")
        return 1
    return 0
