"""One timed load: what the subject, and client and server, used while it ran."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from bench.account import Account, Watch
from bench.stand import Running, Stand

__all__ = ["Spent", "metered"]


@dataclass
class Spent:
    """Filled in when the load is over; None if it cannot be known.

    A floor has no process: its own processor time is None and not 0, for the kernel works for it elsewhere.
    """

    watch: Watch
    cpu_s: float | None = None
    total_cpu_s: float | None = None

    def cpu_per(self, units: float, scale: float = 1.0) -> float | None:
        return None if self.cpu_s is None or not units else self.cpu_s * scale / units

    def total_cpu_per(self, units: float, scale: float = 1.0) -> float | None:
        return None if self.total_cpu_s is None or not units else self.total_cpu_s * scale / units


@contextlib.contextmanager
def metered(stand: Stand, running: Running, interval_s: float = 0.1) -> Iterator[Spent]:
    """The load runs within the block."""
    loads = stand.load_account
    spent = Spent(Watch(running.account, interval_s))
    begin, begin_loads = running.account.cpu_times().total_s, _load_cpu_s(loads)
    with spent.watch:
        yield spent
    spent.cpu_s = running.account.cpu_times().total_s - begin if running.pids else None
    end_loads = _load_cpu_s(loads)
    if begin_loads is not None and end_loads is not None:
        spent.total_cpu_s = (spent.cpu_s or 0.0) + end_loads - begin_loads


def _load_cpu_s(account: Account) -> float | None:
    return account.cpu_times().total_s if account.group else None
