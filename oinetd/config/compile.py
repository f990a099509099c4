"""Statements → `Config`.

All problems are found in one pass. No name is resolved, no file is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

from oinetd.bounds import UPSTREAMS_MAX
from oinetd.config.admin import AdminDraft
from oinetd.config.conflict import conflicts
from oinetd.config.lint import AccessLine, Source, find_warnings, zero_bounds
from oinetd.config.mistake import Mistake, did_you_mean, shown
from oinetd.config.original import original_problems
from oinetd.config.proxy import proxy_problems
from oinetd.config.rule import RuleLine, read_rule
from oinetd.config.sharing import Shared, sharing_problems
from oinetd.config.syntax import Line, Statement, Word
from oinetd.config.upstream import GroupDraft, UpstreamLine, read_upstream
from oinetd.config.values.common import FileName
from oinetd.config.vocabulary import DIRECTIVES, Duty, Entry
from oinetd.errors import ConfigError, Problem
from oinetd.file_state import FileSource
from oinetd.model import AccessRule, Config, LogSettings, Origin, Rule, Settings, Verb
from oinetd.servers import Upstream

__all__ = ["argument_problem", "compile_config"]

PROBLEMS_MAX = 10_000
"""A file with more problems is no configuration; its name was probably a slip."""


def _ports(count: int) -> str:
    return "1 port" if count == 1 else f"{count} ports"


@dataclass(slots=True)
class _Draft:
    """A rule whose access rules may still follow; `index` is the index of its statement."""

    index: int
    said: RuleLine
    access: list[AccessRule] = field(default_factory=list)

    @property
    def trusts(self) -> bool:
        return any(rule.verb is Verb.TRUST for rule in self.access)

    @property
    def allows(self) -> bool:
        return any(rule.verb is Verb.ALLOW for rule in self.access)

    def rule(self, groups: Mapping[str, Upstream]) -> Rule:
        said, origin = self.said, Origin(self.said.line.file, self.said.line.number)
        upstream = groups[said.group] if said.group else None
        if said.servers:
            upstream = Upstream("", said.servers, said.group_options, origin)
        connect = upstream.endpoint if upstream is not None and upstream.name else said.connect
        return Rule(said.bind, connect, said.options, tuple(self.access), origin, upstream)

    def problem(self, groups: Mapping[str, GroupDraft], faulty: Set[str]) -> Problem | None:
        """What is wrong between the rule and its group; None if nothing is, or if a line of the group is `faulty`."""
        said = self.said
        place = said.connect_word.column, said.connect_word.width
        if not said.group:
            return None
        group = groups.get(said.group)
        if group is None and said.group in faulty:
            return None
        if group is None:
            hint = did_you_mean(said.group, [*groups, *faulty], "names") or f"write upstream {said.group} address port"
            return said.line.problem(f"there is no group {shown(said.group)}", *place, hint)
        ports = len(said.bind.ports)
        for _, each in group.servers:
            wanted = len(each.server.endpoint.ports) if each.server.is_address else 1
            if wanted != ports:
                message = f"{_ports(ports)} to listen on, {_ports(wanted)} of the server {each.server}"
                return said.line.problem(message, *place, f"the server at {each.line} needs a range of this length")
        return None


def compile_config(statements: Iterable[Statement], file: str, sources: Sequence[FileSource] = ()) -> Config:
    """Compile the statements of `file` to a configuration with its warnings.

    `sources` is what the statements were read from; reading them may add to it.

    Raises `ConfigError` with every problem, in the order of the text.
    """
    compiler = _Compiler(file)
    for index, statement in enumerate(statements):
        compiler.take(index, statement)
        if compiler.problems_found >= PROBLEMS_MAX:
            break
    return compiler.config(sources)


def argument_problem(statement: Statement, entry: Entry) -> Problem | None:
    """The problem with the number of words after a directive; None if there is none."""
    line, (keyword, *arguments) = statement.line, statement.words
    wanted = 0 if entry.value is None else 1
    if len(arguments) < wanted:
        return line.problem(f"{entry.name} needs a value", keyword.end, 1, entry.usage)
    if len(arguments) == wanted:
        return None
    extra = arguments[wanted]
    if entry.duty is Duty.ACCESS:
        hint = f"write one pattern on a line: {entry.name} {extra.text}"
    elif isinstance(entry.value, FileName):
        hint = "put double quotes around a name with blanks"
    else:
        hint = entry.usage if wanted else ""
    takes = "no value" if wanted == 0 else "one value"
    return line.problem(f"{shown(extra.text)}: {entry.name} takes {takes}", extra.column, extra.width, hint)


class _Compiler:
    """The statements that were read so far."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._problems: list[tuple[int, Problem]] = []
        self._drafts: list[_Draft] = []
        self._global_access: list[AccessRule] = []
        # The list for the next allow or deny: of all rules, or of the last rule, even if that one is faulty.
        self._access = self._global_access
        self._access_lines: list[AccessLine] = []
        self._said: dict[str, Any] = {}
        self._groups: dict[str, GroupDraft] = {}
        self._faulty: set[str] = set()  # groups with lines that have mistakes: what they lack is said there
        self._zeros: list[tuple[int, Line, Word]] = []
        self._admin = AdminDraft()

    @property
    def problems_found(self) -> int:
        return len(self._problems)

    def take(self, index: int, statement: Statement) -> None:
        """Add one statement."""
        self._zeros.extend((index, statement.line, word) for word in zero_bounds(statement))
        entry = DIRECTIVES.get(statement.words[0].text) if statement.words else None
        if entry is None:
            self._rule(index, statement)
            return
        if entry.duty is Duty.UPSTREAM:
            self._upstream(index, statement)
            return
        if entry.duty is Duty.ADMIN:
            fault = self._admin.take(index, statement)
            self._problems.extend([(index, fault)] if fault is not None else [])
            return
        problem = statement.problems[0] if statement.problems else argument_problem(statement, entry)
        if problem is not None:
            self._problems.append((index, problem))
        elif entry.duty is Duty.INCLUDE:
            word = statement.words[0]
            hint = "read the configuration from a file"
            self._problems.append(
                (index, statement.line.problem("include works only in files", word.column, word.width, hint))
            )
        else:
            self._directive(index, statement, entry)

    def _directive(self, index: int, statement: Statement, entry: Entry) -> None:
        value: Any = entry.constant
        if entry.value is not None:
            word = statement.words[1]
            try:
                value = entry.value.parse(word.text)
            except Mistake as mistake:
                self._problems.append((index, statement.line.mistaken(word, mistake)))
                return
        if entry.duty is Duty.ACCESS:
            assert isinstance(entry.constant, Verb)
            rule = AccessRule(entry.constant, value)
            self._access.append(rule)
            self._access_lines.append(AccessLine(index, statement.line, statement.words[1], rule))
        else:
            self._said[entry.setting] = value
            if entry.setting == "log.file":
                self._said["log.origin"] = Origin(statement.line.file, statement.line.number)

    def _rule(self, index: int, statement: Statement) -> None:
        problems: list[Problem] = []
        if statement.words:
            said = read_rule(statement, problems)
            draft = _Draft(index, said) if said is not None else None
            self._access = draft.access if draft is not None else []
            if draft is not None:
                self._drafts.append(draft)
        else:
            problems.extend(statement.problems)
        self._problems.extend((index, problem) for problem in problems)

    def _upstream(self, index: int, statement: Statement) -> None:
        problems: list[Problem] = []
        said = read_upstream(statement, problems)
        self._problems.extend((index, problem) for problem in problems)
        if said is None:
            self._faulty.update(word.text for word in statement.words[1:2])
        else:
            self._group_of(index, said).take(index, said, self._problems)

    def _group_of(self, index: int, said: UpstreamLine) -> GroupDraft:
        group = self._groups.get(said.name.text)
        if group is None:
            if len(self._groups) == UPSTREAMS_MAX:
                message = f"more than {UPSTREAMS_MAX} groups"
                self._problems.append((index, said.line.problem(message, said.name.column, said.name.width)))
            group = self._groups[said.name.text] = GroupDraft(index, said)
        return group

    def config(self, sources: Sequence[FileSource]) -> Config:
        """The configuration, checked as a whole. Raises `ConfigError`."""
        listeners: list[Shared] = []
        said = [draft.said for draft in self._drafts]
        found = conflicts(said, listeners)
        self._problems.extend((self._drafts[index].index, problem) for index, problem in found)
        wrong = [(draft.index, draft.problem(self._groups, self._faulty)) for draft in self._drafts]
        wrong += [(group.index, group.problem()) for name, group in self._groups.items() if name not in self._faulty]
        self._problems.extend((index, problem) for index, problem in wrong if problem is not None)
        token_file = self._said.pop("admin.token_file", "")
        self._problems.extend(self._admin.problems(token_file))
        parts: dict[str, dict[str, Any]] = {"": {}, "settings": {}, "log": {}}
        for setting, value in self._said.items():
            part, _, name = setting.rpartition(".")
            parts[part][name] = value
        settings = Settings(**parts["settings"])
        rules = tuple((draft.index, draft.said) for draft in self._drafts)
        unequal = sharing_problems(said, listeners, settings)
        self._problems.extend((self._drafts[index].index, problem) for index, problem in unequal)
        trusted = any(rule.verb is Verb.TRUST for rule in self._global_access)
        believing = {at for at, draft in enumerate(self._drafts) if trusted or draft.trusts}
        believing.update(at for each in listeners if believing.intersection(each.rules) for at in each.rules)
        trusts = ((draft.index, draft.said, at in believing) for at, draft in enumerate(self._drafts))
        servers = {name: [each.server for _, each in group.servers] for name, group in self._groups.items()}
        self._problems.extend(proxy_problems(trusts, settings, servers))
        allowed = any(rule.verb is Verb.ALLOW for rule in self._global_access)
        allows = ((draft.index, draft.said, allowed or draft.allows) for draft in self._drafts)
        self._problems.extend(original_problems(allows, settings))
        if self._problems:
            self._problems.sort(key=lambda item: item[0])
            raise ConfigError(*(problem for _, problem in self._problems))
        groups = {name: group.upstream() for name, group in self._groups.items()}
        config = Config(
            rules=tuple(draft.rule(groups) for draft in self._drafts),
            upstreams=tuple(groups.values()),
            access=tuple(self._global_access),
            settings=settings,
            log=LogSettings(**parts["log"]),
            sources=tuple(sources),
            admin=self._admin.settings(token_file),
            **parts[""],
        )
        used = {draft.said.group for draft in self._drafts}
        unused = [group for group in self._groups.values() if group.name not in used]
        lines = tuple((group.index, group.first) for group in unused)
        source = Source(self._file, config, rules, tuple(self._access_lines), lines, tuple(self._zeros))
        return replace(config, warnings=find_warnings(source))
