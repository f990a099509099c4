"""Warnings: settings that are valid and probably mistakes.

A warning never prevents a start, because rinetd starts with the same file. A check is a function from the `Source` to
the problems that it finds, each with the index of its statement. `CHECKS` has all of them.
"""

from __future__ import annotations

import ipaddress
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from oinetd.config.loops import find_loops
from oinetd.config.rule import RuleLine
from oinetd.config.suspect import suspect_pattern
from oinetd.config.syntax import Line, Statement, Word
from oinetd.config.upstream import UpstreamLine
from oinetd.errors import Problem
from oinetd.model import AcceptProxy, AccessRule, Config, Protocol, SendProxy, Verb

__all__ = ["CHECKS", "AccessLine", "Source", "find_warnings", "zero_bounds"]

_BOUNDS = ("max-connections", "max-connections-per-source")

WARNINGS_MAX = 200
"""For one check of one configuration: each reload logs all warnings."""


@dataclass(frozen=True, slots=True)
class AccessLine:
    """One `allow` or `deny` as written; `index` is the index of its statement."""

    index: int
    line: Line
    word: Word
    rule: AccessRule


@dataclass(frozen=True, slots=True)
class Source:
    """A configuration with the source of its parts; `rules` are those of `config`, each with its statement's index.

    `unused` are the groups that no rule names, `zeros` the bounds of connections that are written as 0.
    """

    file: str
    config: Config
    rules: tuple[tuple[int, RuleLine], ...]
    access: tuple[AccessLine, ...]
    unused: tuple[tuple[int, UpstreamLine], ...] = ()
    zeros: tuple[tuple[int, Line, Word], ...] = ()


Check = Callable[[Source], Iterator[tuple[int, Problem]]]


def find_warnings(source: Source) -> tuple[Problem, ...]:
    """All warnings, in the order of the text."""
    found: list[tuple[int, Problem]] = []
    cut = False
    for check in CHECKS:
        some = list(islice(check(source), WARNINGS_MAX + 1))
        cut = cut or len(some) > WARNINGS_MAX
        found += some[:WARNINGS_MAX]
    found.sort(key=lambda item: item[0])
    more = [Problem("more warnings are not shown", source.file)] if cut else []
    return (*(problem for _, problem in found), *more)


def _loops(source: Source) -> Iterator[tuple[int, Problem]]:
    """Rules whose connections would come back to their own listener."""
    lines = [line for _, line in source.rules]
    for loop in find_loops(source.config.rules):
        index, rule = source.rules[loop.rules[0]]
        yield (
            index,
            rule.line.problem(
                loop.message([lines[number].line for number in loop.rules]),
                rule.connect_word.column,
                rule.connect_word.width,
                "no client of this rule can be served; use another address or port",
            ),
        )


def _no_rules(source: Source) -> Iterator[tuple[int, Problem]]:
    """A configuration without a forwarding rule, such as the one of a package."""
    if not source.rules:
        hint = "write a rule: bindaddress bindport connectaddress connectport"
        yield 0, Problem("no forwarding rule: nothing is forwarded", source.file, hint=hint)


def _unused_groups(source: Source) -> Iterator[tuple[int, Problem]]:
    """Groups of servers that no rule uses."""
    for index, group in source.unused:
        name = group.name
        message = f"no rule uses the group '{name.text}': its servers are neither used nor checked"
        yield index, group.line.problem(message, name.column, name.width, f"write a rule with @{name.text}")


def zero_bounds(statement: Statement) -> Iterator[Word]:
    """The words of a statement that give a bound of connections as 0."""
    pairs: list[tuple[Word, Word | None]] = [(option.name, option.value) for option in statement.options]
    if len(statement.words) > 1:
        pairs.append((statement.words[0], statement.words[1]))
    for name, value in pairs:
        if value is not None and value.text == "0" and name.text in _BOUNDS:
            yield value


def _zero_bounds(source: Source) -> Iterator[tuple[int, Problem]]:
    """Bounds that let everybody in, and look as if they let nobody in."""
    for index, line, word in source.zeros:
        hint = "for no limit write off; to refuse every client write deny *; for no new sessions of a server weight=0"
        yield index, line.problem("a maximum of 0 connections means no limit", word.column, word.width, hint)


def _patterns(source: Source) -> Iterator[tuple[int, Problem]]:
    """Patterns that match no client, or fewer clients than expected."""
    firsts = [index for index, _ in source.rules]
    ipv4 = [":" not in line.bind.host for _, line in source.rules]
    for access in source.access:
        owner = bisect_left(firsts, access.index) - 1
        found = suspect_pattern(access.rule.pattern, ipv4_listens=any(ipv4) if owner < 0 else ipv4[owner])
        if found is not None:
            message = f"{access.rule.verb.value} {access.word.text} {found.message}"
            yield access.index, access.line.problem(message, access.word.column, access.word.width, found.hint)


def _forged_headers(source: Source) -> Iterator[tuple[int, Problem]]:
    """Rules with which a client that is not trusted can write a header that its server would believe."""
    for index, rule in source.rules:
        in_force = source.config.settings.with_overrides(rule.options)
        if in_force.accept_proxy is AcceptProxy.OPTIONAL and in_force.send_proxy is SendProxy.OFF:
            message = "accept-proxy=optional without send-proxy: a header that a plain client writes reaches the server"
            hint = "add send-proxy=v2, or be sure that the server expects no header"
            yield index, rule.line.problem(message, rule.bind_word.column, rule.bind_word.width, hint)


def _forged_peers(source: Source) -> Iterator[tuple[int, Problem]]:
    """UDP rules that believe headers of peers whose addresses anybody on a network can forge."""
    everywhere = [(access.index, access.rule) for access in source.access if access.rule.verb is Verb.TRUST]
    firsts = [index for index, _ in source.rules]
    for number, (index, rule) in enumerate(source.rules):
        in_force = source.config.settings.with_overrides(rule.options)
        if rule.bind.protocol is not Protocol.UDP or in_force.accept_proxy is AcceptProxy.OFF or rule.options.interface:
            continue
        trusts = [trust for at, trust in everywhere if bisect_left(firsts, at) - 1 in (-1, number)]
        if not all(_is_loopback(trust.pattern) for trust in trusts):
            message = "accept-proxy over UDP: anybody who can send from an address of trust can say who the client is"
            hint = "add interface= with the interface that leads to the proxies, or let them send from 127.0.0.1"
            yield index, rule.line.problem(message, rule.bind_word.column, rule.bind_word.width, hint)


def _is_loopback(pattern: str) -> bool:
    try:
        return ipaddress.ip_network(pattern, strict=False).is_loopback
    except ValueError:
        return pattern.startswith("127.") and "/" not in pattern


CHECKS: tuple[Check, ...] = (
    _loops, _no_rules, _patterns, _unused_groups, _forged_headers, _forged_peers, _zero_bounds,
)  # fmt: skip
