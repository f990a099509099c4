"""The status as text: what SIGUSR2 logs."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import Final

from oinetd.core.record import SessionRecord
from oinetd.core.registry import RuleStats, Stats
from oinetd.upstream.destination import DestinationState

__all__ = ["summary"]

SESSIONS_MAX: Final = 100
"""Sessions that are listed, the most active first; a longer list would hide the other lines."""


def summary(
    stats: Stats, sessions: Sequence[SessionRecord], destinations: Sequence[DestinationState] = ()
) -> Iterator[str]:
    """One line in total, one for each rule, one for each name, one for each of the most active sessions."""
    yield f"{_some(len(stats.rules), 'rule')}, {_counts(stats)}" + (
        f", room for {stats.room} connections" if stats.room else ""
    )
    for rule, counts in stats.rules.items():
        yield f"{rule}: {_counts(counts)}{_endings(counts)}"
    for destination in destinations:
        yield f"destination {destination}"
    for record in heapq.nsmallest(SESSIONS_MAX, sessions, key=_idleness):
        yield (
            f"session {record.id}: {record.client} port {record.client_port}, {record.route}, "
            f"{record.duration_s:.0f} s old, idle for {record.idle_s:.0f} s, "
            f"{record.bytes_up} bytes up, {record.bytes_down} down"
        )
    if len(sessions) > SESSIONS_MAX:
        yield f"and {_some(len(sessions) - SESSIONS_MAX, 'more session')}, idle for longer"


def _idleness(record: SessionRecord) -> tuple[float, int]:
    """The most recently active session first; within one second, the one with more bytes."""
    return int(record.idle_s), -(record.bytes_up + record.bytes_down)


def _some(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _endings(counts: RuleStats) -> str:
    """How the sessions of a rule ended, the most frequent way first."""
    if not counts.endings:
        return ""
    return "; endings: " + ", ".join(f"{ending.value} {count}" for ending, count in counts.endings.most_common())


def _counts(counts: Stats | RuleStats) -> str:
    forged = f", {counts.datagrams_forged} datagrams with a forged source dropped" if counts.datagrams_forged else ""
    return (
        f"{_some(counts.live, 'session')} live, {counts.accepted} accepted, {counts.refused} refused, "
        f"{counts.failed} failed, {counts.bytes_up} bytes up, {counts.bytes_down} down{forged}" + _limits(counts)
    )


def _limits(counts: Stats | RuleStats) -> str:
    """Whether the limit is or was reached."""
    waited = getattr(counts, "rate_waits", 0)
    rate = f", {_some(waited, 'connection')} waited for the rate" if waited else ""
    if counts.full:
        return ", full: clients wait in the accept queue" + rate
    return (f", was full {_some(counts.times_full, 'time')}" if counts.times_full else "") + rate
