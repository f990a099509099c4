"""What is known of servers, on its way from one process to the one that replaces it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from oinetd.upstream.group import Group
from oinetd.upstream.health import UNCHECKED, CheckState, PassiveState, Standing
from oinetd.upstream.member import WHY_CHARS_MAX, Member

__all__ = ["count_on", "restore_health", "server_document"]

TOOK_MS_MAX: Final = 3_600_000
"""A connect does not take longer than an hour, whatever another process says."""


def server_document(member: Member) -> dict[str, Any]:
    """State and counters of a server, for JSON. Times of the monotonic clock are good in both processes."""
    passive, load = member.passive, member.load
    return {
        "group": member.group,
        "name": member.name,
        "state": member.state.value,
        "since": member.since,
        "check": list(member.check),
        "check_why": member.check_why,
        "passive": [passive.standing.name, passive.failures, passive.hold_s, passive.until],
        "passive_why": member.passive_why,
        "failures": [load.failures, load.failed_ms],
        "slow_since_ms": load.slow_since_ms,
        "took_ms": load.took_ms,
        "counts": [member.checks_passed, member.checks_failed, member.changes, load.selected, load.failed],
    }


def restore_health(group: Group, member: Member, said: Mapping[str, Any]) -> None:
    """Let a server have the state that it had in another process, without a word.

    Raises `ValueError`, `TypeError` or `KeyError` if it is none; then nothing was changed.
    """
    rise, fall, health = (int(number) for number in said["check"])
    check = CheckState(rise, fall, health)
    if not (1 <= rise <= 1000 and 1 <= fall <= 1000 and UNCHECKED <= health <= check.top):
        raise ValueError("not the state of a check")
    standing, failures, hold_s, until = said["passive"]
    passive = PassiveState(Standing[standing], int(failures), float(hold_s), float(until))
    row, failed_ms = (int(number) for number in said["failures"])
    slow_since_ms, since = int(said["slow_since_ms"]), float(said["since"])
    took_ms = said.get("took_ms")
    took_ms = None if took_ms is None else max(0, min(int(took_ms), TOOK_MS_MAX))
    member.check = check.with_thresholds(member.check.rise, member.check.fall)
    member.check_why = str(said["check_why"])[:WHY_CHARS_MAX]
    member.passive_why = str(said["passive_why"])[:WHY_CHARS_MAX]
    if member.options.passive.failures:
        member.passive = passive
        member.load.failures = max(0, row)
        member.load.failed_ms = max(0, failed_ms)
    member.load.slow_since_ms = max(0, slow_since_ms)
    if took_ms is not None:
        member.load.took(took_ms)
    group.resume(member)
    if member.state.value == said["state"]:
        member.since = since


def count_on(member: Member, said: Mapping[str, Any]) -> None:
    """Add what another process has counted. Raises as `restore_health` does."""
    passed, failed_checks, changes, selected, failed = (max(0, int(number)) for number in said["counts"])
    member.checks_passed += passed
    member.checks_failed += failed_checks
    member.changes += changes
    member.load.count_on(selected, failed)
