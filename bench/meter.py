"""One timed load: what the subject, client and server used while it ran, and what the machine did besides."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from bench.account import Account, Watch
from bench.ambient import Moment, ambient_facts
from bench.programs import plain_python_command
from bench.stand import Running, Stand

__all__ = ["Spent", "client_command", "metered", "run_client"]


@dataclass
class Spent:
    """Filled in when the load is over; None if it cannot be known.

    A floor has no process: its own processor time is None and not 0, for the kernel works for it elsewhere.
    """

    watch: Watch
    cpu_s: float | None = None
    total_cpu_s: float | None = None
    machine: dict[str, float | None] = field(default_factory=dict)
    """See `bench.ambient`."""
    seconds: float = 0.0
    """How long the load was looked at."""
    elsewhere: list[str] = field(default_factory=list)
    """Work for the subject that is not in its processor time."""

    def cpu_per(self, units: float, scale: float = 1.0) -> float | None:
        return None if self.cpu_s is None or not units else self.cpu_s * scale / units

    def total_cpu_per(self, units: float, scale: float = 1.0) -> float | None:
        return None if self.total_cpu_s is None or not units else self.total_cpu_s * scale / units


@contextlib.contextmanager
def metered(stand: Stand, running: Running, interval_s: float = 0.1) -> Iterator[Spent]:
    """The load runs within the block."""
    loads = stand.load_account
    spent = Spent(Watch(running.account, interval_s))
    moment = Moment.now()
    begin, begin_loads = running.account.cpu_times().total_s, _load_cpu_s(loads)
    with spent.watch:
        yield spent
    used = running.account.cpu_times().total_s - begin
    spent.cpu_s = used if running.pids else None
    end_loads = _load_cpu_s(loads)
    if begin_loads is not None and end_loads is not None:
        spent.total_cpu_s = used + end_loads - begin_loads
    end = Moment.now()
    spent.seconds = end.at_s - moment.at_s
    spent.machine = ambient_facts(moment, end, spent.total_cpu_s)


def _load_cpu_s(account: Account) -> float | None:
    return account.cpu_times().total_s if account.group else None


def client_command(running: Running, what: str, module: str = "bench.client", **options: Any) -> list[str]:
    """The command of the bench's own client, `module`."""
    flags: list[str] = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            flags.append(flag)
        elif value is not False:
            flags += [flag, str(value)]
    if running.preamble:
        flags += ["--preamble", running.preamble.hex()]
    return plain_python_command(module, what, running.host, str(running.port), *flags)


def run_client(
    stand: Stand,
    running: Running,
    what: str,
    module: str = "bench.client",
    *,
    on_go: Callable[[], object] = lambda: None,
    **options: Any,
) -> tuple[dict[str, Any], Spent]:
    """Run the bench's own client; its report, and the resource use from its `go` to its `over`. `on_go` is called with
    its `go`."""
    with stand.client(client_command(running, what, module, **options)) as program:
        program.read_line()
        # While the connections stand, and before anything is timed.
        elsewhere = running.work_elsewhere()
        program.ask()
        on_go()
        with metered(stand, running) as spent:
            program.read_line()
        figures = json.loads(program.read_rest())
    spent.elsewhere = list(dict.fromkeys([*elsewhere, *spent.watch.elsewhere, *running.work_elsewhere()]))
    return figures, spent
