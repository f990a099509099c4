"""Who makes room: a session that no answer ever came for, of the rule that has most of them; then one of the rule that
has most sessions. So one rule that is open to everybody takes no place from the others' established sessions.

"Most" is by powers of two: rules whose counts have the same number of binary digits count as equal, and take turns. A
rule with fewer than half of an equal share never loses a session to another. Every step takes the same time, however
many sessions and rules there are. `_fastpath/udp/shares.pxd` does the same for a reactor.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar

__all__ = ["Shares"]


class _Session(Protocol):
    """What is known of a session here; `answered` is whether an answer ever came."""

    answered: bool

    @property
    def rule(self) -> Hashable: ...


S = TypeVar("S", bound=_Session)


class _Rule(Generic[S]):
    """The sessions of one rule: unanswered and answered, in each the one that has been silent for longest first."""

    __slots__ = ("lines",)

    def __init__(self) -> None:
        self.lines: tuple[OrderedDict[S, None], OrderedDict[S, None]] = (OrderedDict(), OrderedDict())


class _Ranking(Generic[S]):
    """Rules by the number of binary digits of a count; those with 0 are in none."""

    __slots__ = ("_filled", "_ranks")

    def __init__(self) -> None:
        self._filled = 0
        self._ranks: list[OrderedDict[_Rule[S], None]] = []

    def move(self, rule: _Rule[S], before: int, count: int) -> None:
        """The count of `rule` was `before`."""
        old, new = before.bit_length(), count.bit_length()
        if old == new:
            return
        if old:
            del self._ranks[old][rule]
            if not self._ranks[old]:
                self._filled &= ~(1 << old)
        if new:
            while len(self._ranks) <= new:
                self._ranks.append(OrderedDict())
            self._ranks[new][rule] = None
            self._filled |= 1 << new

    def top(self, preferred: _Rule[S] | None) -> _Rule[S] | None:
        """A rule of the highest rank, `preferred` if it is one; the others take turns. None if there is none."""
        if not self._filled:
            return None
        rank = self._ranks[self._filled.bit_length() - 1]
        if preferred in rank:
            return preferred
        rule = next(iter(rank))
        rank.move_to_end(rule)
        return rule


class Shares(Generic[S]):
    """All sessions of a table, by rule."""

    def __init__(self) -> None:
        self._rules: dict[Hashable, _Rule[S]] = {}
        self._rankings: tuple[_Ranking[S], _Ranking[S]] = (_Ranking(), _Ranking())

    def enter(self, session: S) -> None:
        """A session begins."""
        rule = self._rules.setdefault(session.rule, _Rule())
        line = rule.lines[session.answered]
        line[session] = None
        self._rankings[session.answered].move(rule, len(line) - 1, len(line))

    def leave(self, session: S) -> None:
        """It has ended."""
        rule = self._rules[session.rule]
        line = rule.lines[session.answered]
        del line[session]
        self._rankings[session.answered].move(rule, len(line) + 1, len(line))
        if not any(rule.lines):
            del self._rules[session.rule]

    def touch(self, session: S) -> None:
        """It was heard of."""
        self._rules[session.rule].lines[session.answered].move_to_end(session)

    def victim(self, newcomer: Hashable | None) -> S | None:
        """Who makes room for a session of the rule `newcomer`; None if there is no session."""
        own = self._rules.get(newcomer)
        for answered, ranking in enumerate(self._rankings):
            rule = ranking.top(own)
            if rule is not None:
                return next(iter(rule.lines[answered]))
        return None

    def victim_of(self, rule: Hashable) -> S:
        """Who makes room among the sessions of `rule`, which has some."""
        unanswered, answered = self._rules[rule].lines
        return next(iter(unanswered or answered))
