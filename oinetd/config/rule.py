"""Parses a forwarding rule: its words and options → bind side, connect side, `RuleOptions`; or its problems."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from oinetd.config.address import Ports, host_and_port, parse_host, parse_ports
from oinetd.config.mistake import NEAR_ENOUGH, Mistake, did_you_mean, nearest, shown
from oinetd.config.options import read_options
from oinetd.config.syntax import Line, Statement, Word
from oinetd.config.unix_socket import is_original, is_unix, unfit_options, with_ports
from oinetd.config.upstream import ServerLine, read_hosts
from oinetd.config.vocabulary import DIRECTIVES, GROUP_OPTIONS, OPTIONS, SERVER_OPTIONS, Entry
from oinetd.errors import Problem
from oinetd.model import NO_OPTIONS, Endpoint, Protocol, RuleOptions
from oinetd.servers import GroupOptions, Server

__all__ = ["RULE_USAGE", "RuleLine", "read_rule"]

RULE_USAGE = "bindaddress bindport connectaddress connectport [options]"
ROLES = ("bind address", "bind port", "connect address", "connect port")
GROUP_USAGE = "bindaddress bindport @NAME [options]"
GROUP_AT = 2
"""The place of the group among the words of a rule."""


_PLACES: dict[str, tuple[Entry, str, str]] = {
    **{name: (entry, "a server", "write upstream NAME address port [{}]") for name, entry in SERVER_OPTIONS.items()},
    **{name: (entry, "a group", "write upstream NAME [{}]") for name, entry in GROUP_OPTIONS.items()},
    **{name: (entry, "a rule", "write [{}] at the end of a rule") for name, entry in OPTIONS.items()},
}
"""All options: whose they are, and where they are written."""

_Read = TypeVar("_Read")


@dataclass(frozen=True, slots=True)
class RuleLine:
    """A parsed rule. `bind_word` and `connect_word` are the positions for a problem of that side.

    `group` is the name behind the `@` of its destination, empty if it has none; `servers` and `group_options` are those
    of a destination that is a group of its own. The protocol of a group with a name is that of `bind` for now.
    """

    line: Line
    bind_word: Word
    connect_word: Word
    bind: Endpoint
    connect: Endpoint
    options: RuleOptions
    group: str = ""
    servers: tuple[Server, ...] = ()
    group_options: GroupOptions = field(default_factory=GroupOptions)

    @property
    def destinations(self) -> tuple[Endpoint, ...]:
        """The hosts and ports of the destination, if it does not name a group."""
        return tuple(server.endpoint for server in self.servers) or (() if self.group else (self.connect,))


def read_rule(statement: Statement, problems: list[Problem]) -> RuleLine | None:
    """The rule in a statement; if it has problems, they are added to `problems` and the result is None."""
    before = len(problems)
    line, words = statement.line, statement.words
    other = _other_than_a_rule(line, words)
    if other is not None:
        problems.append(other)
        return None
    words = with_ports(words)
    at_group = next((at for at, word in enumerate(words) if word.text.startswith("@")), len(ROLES))
    named = at_group == GROUP_AT
    roles = ROLES[:GROUP_AT] if at_group < len(ROLES) else ROLES
    if at_group < len(ROLES):
        problems.extend(_group_problems(line, words, at_group))
    elif len(words) < len(roles):
        problems.extend(_missing(line, words))
    elif len(words) > len(ROLES):
        problems.append(_too_many(line, words[len(ROLES)]))

    def read(parse: Callable[[str], _Read], position: int) -> _Read | None:
        try:
            return parse(words[position].text)
        except Mistake as mistake:
            problems.append(line.mistaken(words[position], mistake))
            return None

    bind_ports = connect_ports = None
    servers: list[ServerLine] = []
    if len(words) >= len(roles) and at_group >= GROUP_AT:
        read(parse_host, 0)
        bind_ports = read(parse_ports, 1)
        if not named:
            connect_ports = read(parse_ports, 3)
            if "," in words[2].text and not is_unix(words[2]):
                servers = read_hosts(line, words[2], connect_ports or Ports(1, 1, Protocol.TCP), problems)
            else:
                read(parse_host, 2)
        if bind_ports and connect_ports:
            problems.extend(_unfit_ports(line, words, bind_ports, connect_ports))
            problems.extend(unfit_options(line, statement.options, words))
    problems.extend(statement.problems)
    tables: dict[str, dict[str, Entry]] = {"option": OPTIONS} if named else {"option": OPTIONS, "group": GROUP_OPTIONS}
    said: dict[str, dict[str, Any]] = read_options(line, statement.options, tables, problems, "a rule")
    options = RuleOptions(**said["option"]) if said["option"] else NO_OPTIONS
    problems.extend(_server_twice(servers))
    problems[before:] = sorted(problems[before:], key=lambda problem: problem.column)
    if len(problems) > before or not bind_ports or not (connect_ports or named):
        return None
    bind = _endpoint(words[0], bind_ports)
    if named:
        group = Endpoint(words[2].text, 0, bind.protocol)
        return RuleLine(line, words[0], words[2], bind, group, options, words[2].text[1:])
    assert connect_ports is not None
    group_said = said["group"]
    if group_said and not servers:
        servers = read_hosts(line, words[2], connect_ports, problems)
    return RuleLine(
        line,
        words[0],
        Word(words[2].text, words[2].column, words[3].end - words[2].column),
        bind,
        _endpoint(words[2], connect_ports),
        options,
        servers=tuple(each.server for each in servers),
        group_options=GroupOptions(**group_said),
    )


def _group_problems(line: Line, words: tuple[Word, ...], at: int) -> Iterator[Problem]:
    """The problems of a rule whose word number `at` is a group."""
    usage, group = f"a rule is: {GROUP_USAGE}", words[at]
    if at < GROUP_AT:
        yield line.problem(f"the {ROLES[at]} is missing before the group", group.column, group.width, usage)
    elif len(words) > at + 1:
        extra, hint = words[at + 1], "the servers of a group have ports of their own"
        yield line.problem(f"unexpected {shown(extra.text)} after the group", extra.column, extra.width, hint)
    if group.text == "@":
        yield line.problem("the name of the group is missing", group.end, 1, usage)


def _server_twice(servers: list[ServerLine]) -> Iterator[Problem]:
    names: set[str] = set()
    for each in servers:
        if each.server.name.lower() in names:
            yield each.line.problem(f"the server {each.server} is named twice", each.word.column, each.word.width)
        names.add(each.server.name.lower())


def _endpoint(host: Word, ports: Ports) -> Endpoint:
    return Endpoint(host.text, ports.first, ports.protocol, ports.last)


def _unfit_ports(line: Line, words: tuple[Word, ...], bind: Ports, connect: Ports) -> Iterator[Problem]:
    """The problems of two ports that are each valid alone."""
    if is_original(words):
        return
    if not connect.first and not is_unix(words[2]):
        yield line.problem(
            "port 0 cannot be a destination",
            words[3].column,
            words[3].width,
            "0 is only for the bind side: it means any free port",
        )
    if len(bind) != len(connect):
        yield line.problem(
            f"{_ports(len(bind))} to listen on, {_ports(len(connect))} to connect to",
            words[3].column,
            words[3].width,
            "the two ranges of a rule must have the same length",
        )


def _ports(count: int) -> str:
    return "1 port" if count == 1 else f"{count} ports"


# Lines that do not have the four words of a rule


def _is_port(word: Word) -> bool:
    try:
        parse_ports(word.text)
    except Mistake:
        return word.text[:1] in set("0123456789") and "." not in word.text and ":" not in word.text
    return True


def _is_numeric(word: Word) -> bool:
    return bool(word.text) and (word.text[0] in "0123456789[:*" or ":" in word.text)


def _other_than_a_rule(line: Line, words: tuple[Word, ...]) -> Problem | None:
    """The problem of a line that was not meant to be a rule; None if it may be one."""
    for word in words:
        if not word.text.isprintable():
            space = next((index for index, char in enumerate(word.text) if char.isspace()), -1)
            if space >= 0:
                return line.problem(
                    f"the character U+{ord(word.text[space]):04X} is not a blank or a tab",
                    word.column + space,
                    hint="only blanks and tabs separate words",
                )
    first = words[0]
    name, equals, value = first.text.partition("=")
    if equals and name in DIRECTIVES:
        return line.problem(
            "a directive and its value are two words",
            first.column,
            first.width,
            f"write {name} {value or '…'}",
        )
    option = _option_alone(line, words)
    if option is not None:
        return option
    if _is_numeric(first) or "." in first.text:
        return None
    ports_follow = len(words) > 1 and _is_port(words[1])
    if len(words) > 2 and ports_follow:
        return None
    if nearest(first.text, DIRECTIVES, NEAR_ENOUGH):
        return line.problem(
            f"unknown directive {shown(first.text)}",
            first.column,
            first.width,
            did_you_mean(first.text, DIRECTIVES, "directives"),
        )
    if len(words) < len(ROLES) and not any(_is_port(word) for word in words[1:]):
        return line.problem(
            f"{shown(first.text)} is neither a directive nor the beginning of a rule",
            first.column,
            first.width,
            f"a rule is: {RULE_USAGE}",
        )
    return None


def _option_alone(line: Line, words: tuple[Word, ...]) -> Problem | None:
    """The problem of a line that is an option and no rule; None if it may be a rule."""
    first = words[0]
    name, equals, value = first.text.partition("=")
    if name.startswith("["):
        known = re.split(r"[,\]]", name[1:])[0] in _PLACES
        message = "options stand at the end of the line of their rule"
        return line.problem(message, first.column, first.width, f"a rule is: {RULE_USAGE}") if known else None
    if name not in _PLACES or len(words) >= len(ROLES):
        return None
    entry, owner, place = _PLACES[name]
    value = value if equals else " ".join(word.text for word in words[1:])
    said = f"{name}={value}" if value and _is_value(entry, value) else entry.option_usage
    message = f"'{name}' is an option of {owner}, not a directive"
    return line.problem(message, first.column, len(name), place.format(said))


def _is_value(entry: Entry, text: str) -> bool:
    assert entry.value is not None  # every option has a value
    try:
        entry.value.parse(text)
    except Mistake:
        return False
    return True


def _missing(line: Line, words: tuple[Word, ...]) -> Iterator[Problem]:
    """The problems of a line with too few words for a rule."""
    joined = [(word, mistake) for word in words if (mistake := host_and_port(word.text)) is not None]
    if joined:
        for word, mistake in joined:
            yield line.mistaken(word, mistake)
        return
    usage = f"a rule is: {RULE_USAGE}"
    if len(words) == 3 and not _is_port(words[1]):
        if words[0].text != "0" and _is_port(words[0]):
            yield line.problem("the bind address is missing", words[0].column, words[0].width, usage)
            return
        if _is_port(words[2]):
            yield line.problem("the bind port is missing", words[1].column, words[1].width, usage)
            return
    for position, word in enumerate(words):
        try:
            (parse_ports if position % 2 else parse_host)(word.text)
        except Mistake as mistake:
            yield line.mistaken(word, mistake)
    roles = ROLES[len(words) :]
    listed = ", ".join(roles[:-1]) + (" and " if roles[:-1] else "") + roles[-1]
    yield line.problem(f"the {listed} {'are' if len(roles) > 1 else 'is'} missing", words[-1].end, 1, usage)


def _too_many(line: Line, word: Word) -> Problem:
    name, equals, _ = word.text.partition("=")
    hint = f"options go in brackets: [{word.text}]" if equals and name in OPTIONS else f"a rule is: {RULE_USAGE}"
    return line.problem(f"unexpected {shown(word.text)} after the four words of a rule", word.column, word.width, hint)
