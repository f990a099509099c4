"""Access rules that a reload changed are put to the connections that live: those they refuse are counted or ended.

UDP sessions are put to them by their listeners. Connections go on unless `on-deny` says otherwise: who reloads may
want to keep newcomers out and let the others finish.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping

from oinetd.core.access import AccessControl
from oinetd.core.capacity import label_of
from oinetd.core.registry import Registry
from oinetd.model import AccessRule, Config, OnDeny, Protocol, Rule

__all__ = ["Revocation"]

log = logging.getLogger("oinetd")

Judge = Callable[[Mapping[Rule, tuple[tuple[AccessRule, ...], bool]]], dict[Rule, int]]


class Revocation:
    """Knows by which access rules the connections of `registry` were let in."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._judged: dict[object, tuple[tuple[AccessRule, ...], tuple[AccessRule, ...], bool]] = {}

    def apply(self, config: Config, judge_native: Judge) -> None:
        """Put `config` to the connections of rules whose access or `on-deny` it changed, of gone ones as well."""
        changed = {}
        for rule in self._registry.rules():
            ends = config.settings_of(rule).on_deny is OnDeny.RESET
            judged = (config.access, rule.access, ends)
            before, self._judged[rule.identity] = self._judged.get(rule.identity), judged
            if rule.bind.protocol is Protocol.TCP and before is not None and before != judged:
                changed[rule] = (config.access, ends)
        if not changed:
            return
        refused = Counter(judge_native(changed))
        refused.update(self._judge_python(changed))
        for rule, count in refused.items():
            if count:
                what = "and were reset" if changed[rule][1] else "and go on (on-deny=reset would end them)"
                log.info("%s: live connections that the access rules now refuse: %d, %s", label_of(rule), count, what)

    def _judge_python(self, changed: Mapping[Rule, tuple[tuple[AccessRule, ...], bool]]) -> Counter[Rule]:
        rules = {rule.identity: rule for rule in changed}
        controls = {rule: AccessControl(access, rule.access) for rule, (access, _) in changed.items()}
        refused: Counter[Rule] = Counter()
        for live in tuple(self._registry.live.values()):
            rule = rules.get(live.record.route.rule.identity)
            if rule is None or live.revoke is None:
                continue
            if controls[rule].decide(live.record.client) is not None:
                refused[rule] += 1
                if changed[rule][1]:
                    live.revoke()
        return refused
