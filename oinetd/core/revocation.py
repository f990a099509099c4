"""Checks live connections by the access rules that a reload changed; those refused are counted, or reset (`on-deny`).

Listeners check their UDP sessions. By default connections go on: a reload may be meant for new clients only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from oinetd.core.capacity import label_of
from oinetd.core.lane import AccessCheck
from oinetd.core.registry import Registry
from oinetd.model import AccessRule, Config, OnDeny, Protocol, Rule

__all__ = ["Revocation"]

log = logging.getLogger("oinetd")


class Revocation:
    """Knows by which access rules the connections of `registry` were let in."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._checked: dict[object, tuple[tuple[AccessRule, ...], tuple[AccessRule, ...], bool]] = {}

    def check_every(self, config: Config, check: Callable[[AccessCheck], Mapping[Rule, int]]) -> None:
        """Check every connection: another process let some of them in, perhaps by other rules."""
        for identity, rules in self._checked.items():
            self._checked[identity] = (*rules[:2], not rules[2])
        self.apply(config, check)

    def apply(self, config: Config, check: Callable[[AccessCheck], Mapping[Rule, int]]) -> None:
        """Check the connections of rules whose access or `on-deny` has changed, also of rules that are gone."""
        changed = {}
        for rule in self._registry.rules():
            ends = config.settings_of(rule).on_deny is OnDeny.RESET
            rules = (config.access, rule.access, ends)
            before, self._checked[rule.identity] = self._checked.get(rule.identity), rules
            if rule.bind.protocol is Protocol.TCP and before is not None and before != rules:
                changed[rule] = (config.access, ends)
        if not changed:
            return
        for rule, count in check(changed).items():
            if count:
                what = "and were reset" if changed[rule][1] else "and go on (on-deny=reset would end them)"
                log.info("%s: live connections that the access rules now refuse: %d, %s", label_of(rule), count, what)
