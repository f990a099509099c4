"""Listeners that rules share by server names: how a session is counted before and after one of them is chosen."""

from __future__ import annotations

from oinetd.core.engine import CountedMeter
from oinetd.core.registry import Live, Registry, RuleEntry

__all__ = ["choose_rule", "entry_of_listener"]


def entry_of_listener(first: RuleEntry) -> RuleEntry:
    """For clients whose rule is not chosen yet: no limit of a rule holds for them.

    Those that end before are counted for `first`, the first of the rules.
    """
    entry = RuleEntry(first.rule)
    entry.stats = first.stats
    return entry


def choose_rule(registry: Registry, live: Live, rule: RuleEntry) -> bool:
    """Let a session go on as one of `rule`, before it moves anything; False if the rule has no place for it: then
    it is counted there until it ends, which is now."""
    placed = rule.gate.enter()
    if not placed:
        registry.on_full(rule.rule, rule.gate)
        rule.gate.force()
    live.rule.gate.leave()
    for entry, change in ((live.rule, -1), (rule, 1)):
        entry.stats.live += change
        entry.stats.accepted += change
    live.rule, live.meter = rule, CountedMeter(rule.moved)  # nothing has moved yet
    return placed
