"""What is going on, in sentences: the answer to SIGUSR2."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from oinetd.account import RuleStats, Stats
from oinetd.destination import DestinationState
from oinetd.record import SessionRecord

__all__ = ["summary"]

SESSIONS_MAX: Final = 100
"""Sessions that are listed, the oldest; more would push everything else out of an operator's sight."""


def summary(
    stats: Stats, sessions: Sequence[SessionRecord], destinations: Sequence[DestinationState] = ()
) -> Iterator[str]:
    """One line for the whole, one for each rule, one for each name, one for each of the first sessions."""
    yield f"{len(stats.rules)} rules, {_counts(stats)}" + (f", room for {stats.room} connections" if stats.room else "")
    for rule, counts in stats.rules.items():
        yield f"{rule}: {_counts(counts)}"
    for destination in destinations:
        yield f"destination {destination}"
    for record in sessions[:SESSIONS_MAX]:
        yield (
            f"session {record.id}: {record.client} port {record.client_port}, {record.route}, "
            f"{record.duration_s:.0f} s, {record.bytes_up} bytes up, {record.bytes_down} down"
        )
    if len(sessions) > SESSIONS_MAX:
        yield f"and {len(sessions) - SESSIONS_MAX} sessions more"


def _counts(counts: Stats | RuleStats) -> str:
    forged = f", {counts.datagrams_forged} datagrams with a forged source dropped" if counts.datagrams_forged else ""
    return (
        f"{counts.live} sessions live, {counts.accepted} accepted, {counts.refused} refused, {counts.failed} failed, "
        f"{counts.bytes_up} bytes up, {counts.bytes_down} down{forged}" + _limits(counts)
    )


def _limits(counts: Stats | RuleStats) -> str:
    """Whether clients have to wait for a place."""
    if counts.full:
        return ", full: clients wait in the accept queue"
    return f", was full {counts.times_full} times" if counts.times_full else ""
