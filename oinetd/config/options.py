"""Options in brackets: each goes to the table that has it, and its value is parsed by its kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oinetd.config.mistake import NEAR_ENOUGH, Mistake, did_you_mean, nearest, shown
from oinetd.config.syntax import Line, Option
from oinetd.config.vocabulary import DIRECTIVES, GROUP_OPTIONS, OPTIONS, SERVER_OPTIONS, Duty, Entry
from oinetd.errors import Problem

__all__ = ["Tables", "read_options"]


Tables = Mapping[str, Mapping[str, Entry]]
"""The fields of `Entry` that hold options, and their tables; an option goes to the first table that has it."""


def read_options(
    line: Line, options: tuple[Option, ...], tables: Tables, problems: list[Problem], owner: str
) -> dict[str, dict[str, Any]]:
    """The values of the options, by their table; if an option occurs twice, the last one counts."""
    said: dict[str, dict[str, Any]] = {kind: {} for kind in tables}
    for option in options:
        name = option.name
        kind = next((kind for kind, table in tables.items() if name.text in table), None)
        if kind is None:
            problems.append(_unknown_option(line, option, tables, owner))
            continue
        entry = tables[kind][name.text]
        assert entry.value is not None  # every option has a value
        value = option.value
        if value is None and (bare := getattr(entry.value, "bare", "")):
            said[kind][getattr(entry, kind)] = entry.value.parse(bare)
        elif value is None or not value.text:
            place = name if value is None else value
            problems.append(line.problem(f"{name.text} needs a value", place.column, place.width, entry.option_usage))
        else:
            try:
                said[kind][getattr(entry, kind)] = entry.value.parse(value.text)
            except Mistake as mistake:
                problems.append(line.mistaken(value, mistake))
    return said


def _unknown_option(line: Line, option: Option, tables: Tables, owner: str) -> Problem:
    name = option.name
    known = {each: entry for table in tables.values() for each, entry in table.items()}
    if not name.text:
        return line.problem("the name of the option is missing", name.column, name.width, "an option is NAME=VALUE")
    for table, where in ((GROUP_OPTIONS, "a group"), (SERVER_OPTIONS, "a server"), (OPTIONS, "a rule")):
        if name.text in table and where != owner:
            hint = {
                "a group": f"write upstream NAME [{table[name.text].option_usage}]",
                "a server": f"write upstream NAME address port [{table[name.text].option_usage}]",
                "a rule": "write it in the brackets of the rule",
            }[where]
            message = f"'{name.text}' is an option of {where}, not of {owner}"
            return line.problem(message, name.column, name.width, hint)
    first, *rest = name.text.split(None, 1)
    near = first if first in known else nearest(first, known, NEAR_ENOUGH)
    if rest and near:
        message = f"'=' is missing between {shown(first)} and its value"
        return line.problem(message, name.column, name.width, f"write {near}={rest[0]}")
    if name.text in DIRECTIVES:
        message = f"'{name.text}' is a directive, not an option of {owner}"
        directive, value = DIRECTIVES[name.text], "" if option.value is None else option.value.text
        of_a_rule = directive.duty is Duty.ACCESS and owner == "a rule"
        place = "on a line of its own" + (" behind the rule, for this rule" if of_a_rule else "")
        said = f"{name.text} {value}" if value else directive.usage
        return line.problem(message, name.column, name.width, f"write {said} {place}")
    hint = did_you_mean(name.text, known, "options") or f"the options are {', '.join(known)}"
    return line.problem(f"unknown option {shown(name.text)}", name.column, name.width, hint)
