"""All groups of servers of a configuration. Groups and servers are known by their names, and kept over reloads.

A configuration is prepared first, which changes nothing; `enforce` puts it in force, also to go back to an earlier one.
"""

from __future__ import annotations

import asyncio
import itertools
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from oinetd.bounds import WEIGHT_MAX
from oinetd.errors import ConfigError, Problem
from oinetd.model import Config, Rule
from oinetd.servers import Balance, Server, Upstream
from oinetd.upstream.carrying import count_on, restore_health, server_document
from oinetd.upstream.checks import Checks
from oinetd.upstream.destinations import Destinations
from oinetd.upstream.group import Group, Listener
from oinetd.upstream.group_destination import GroupDestination
from oinetd.upstream.load import NewLoad
from oinetd.upstream.maglev import fill, server_name
from oinetd.upstream.member import Member, ServerStatus, State
from oinetd.upstream.selection import Tables
from oinetd.upstream.sources import Found, Source, source_of

__all__ = ["Groups", "Known", "UpstreamStatus", "group_name"]

OPERATED: Final = {"ready": State.UP, "drain": State.DRAIN, "maint": State.MAINT}
"""The words of an operator; `ready` takes the others back."""


@dataclass(frozen=True, slots=True)
class UpstreamStatus:
    """A snapshot of a group: its name, how it balances, and its servers in the order written."""

    name: str
    balance: Balance
    servers: tuple[ServerStatus, ...]


class Known:
    """The groups and servers that a forwarder has ever had in force, as long as they are needed."""

    def __init__(self, new_load: NewLoad, listener: Listener) -> None:
        self.new_load = new_load
        self.listener = listener
        self.groups: dict[str, Group] = {}
        self.members: dict[tuple[str, str], Member] = {}
        self.by_tag: dict[int, Member] = {}
        self.checks = Checks()
        self.checked_for: Groups | None = None
        self._tags = itertools.count(1)

    def member(self, group: str, name: str) -> Member:
        """The server of this name, known or new."""
        member = self.members.get((group, name))
        if member is None:
            member = Member(group, name, self.new_load(next(self._tags)))
            self.members[group, name] = self.by_tag[member.load.tag] = member
        return member

    def forget(self, used: set[Member]) -> None:
        """Forget servers that are in no group and have no session."""
        for key, member in tuple(self.members.items()):
            if member not in used and not member.load.live:
                del self.members[key], self.by_tag[member.load.tag]


def group_name(rule: Rule) -> str:
    """The name of a rule's group: its own, or where the rule listens."""
    upstream, bind = rule.upstream, rule.bind
    if upstream is not None and upstream.name:
        return upstream.name
    host = f"[{bind.address}]" if ":" in bind.address else bind.host
    return f"{host}:{bind.port}" if not bind.is_unix else bind.host


@dataclass(slots=True)
class _Wanted:
    """A group as a configuration has it: what it says, and the servers that came of that."""

    group: Group
    upstream: Upstream
    sources: list[Source]
    found: list[Found]
    tables: Tables = (None, None)


class Groups:
    """The groups in the rules of `config`; the hosts of their servers are in `destinations`."""

    def __init__(self, config: Config, destinations: Destinations, known: Known) -> None:
        self._known = known
        self._wanted: dict[str, _Wanted] = {}
        self._of_rule: dict[int, GroupDestination] = {}
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._running = False
        self.on_change: Callable[[Group], object] = lambda group: None
        for rule in config.rules:
            if rule.upstream is None:
                continue
            name = group_name(rule)
            if name not in self._wanted:
                group = known.groups.get(name) or Group(name, rule.upstream, known.listener)
                refresh_s = destinations.refresh_of(rule)
                sources = [
                    source_of(
                        server,
                        rule.upstream.options,
                        destinations.of_server(server, rule.upstream, refresh_s),
                        destinations.source_of_server(server, rule.upstream, refresh_s),
                    )
                    for server in rule.upstream.servers
                ]
                self._wanted[name] = _Wanted(group, rule.upstream, sources, [])
            self._of_rule[id(rule)] = GroupDestination(self._wanted[name].group)

    def __iter__(self) -> Iterator[Group]:
        return (wanted.group for wanted in self._wanted.values())

    def destination_of(self, rule: Rule) -> GroupDestination:
        """What stands for the group of `rule` where a destination is asked for."""
        return self._of_rule[id(rule)]

    async def prepare(self) -> None:
        """Find the servers, and compute what takes time. Raises `ConfigError`."""
        problems: list[Problem] = []
        for wanted in self._wanted.values():
            for source in wanted.sources:
                try:
                    await source.prepare()
                except ConfigError as error:
                    problems += error.problems
            wanted.found = _found(wanted.sources)
            wanted.tables = await _tables(wanted)
        if problems:
            raise ConfigError(*problems)

    def enforce(self) -> None:
        """Put the groups and servers in force; what is in no group any more is drained."""
        for name, group in tuple(self._known.groups.items()):
            if name not in self._wanted:
                group.configure(group.upstream, [], (None, None))
                group.close()
                del self._known.groups[name]
        for name, wanted in self._wanted.items():
            self._known.groups[name] = wanted.group
            self._configure(wanted)

    def _configure(self, wanted: _Wanted) -> None:
        members = []
        for found in wanted.found:
            member = self._known.member(wanted.group.name, found.server.name)
            member.configure(found.server, wanted.upstream.options, found.destination, found.source)
            members.append(member)
        gone = [member for member in wanted.group.members if member not in members]
        wanted.group.configure(wanted.upstream, members, wanted.tables)
        for member in gone:
            self._known.listener.gone(member)

    def start(self, before: Groups | None) -> None:
        """Follow DNS and files from now on, in place of `before`."""
        self._known.checked_for = self
        if before is not None:
            before.stop()
        self._running = True
        self._follow()
        self._known.forget({member for group in self for member in group.members})
        for wanted in self._wanted.values():
            for source in wanted.sources:
                source.start(lambda wanted=wanted: self._changed(wanted))  # type: ignore[misc]

    def stop(self) -> None:
        """Follow nothing more, and check nobody if no other configuration is in force."""
        self._running = False
        if self._known.checked_for is self:
            self._known.checks.close()
        for wanted in self._wanted.values():
            for source in wanted.sources:
                source.stop()
        for task in tuple(self._tasks):
            task.cancel()

    def _changed(self, wanted: _Wanted) -> None:
        """A name or a file means other servers."""
        if self._running:
            task = self._loop.create_task(self._update(wanted))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _update(self, wanted: _Wanted) -> None:
        found = _found(wanted.sources)
        if found == wanted.found:
            return
        wanted.found = found
        wanted.tables = await _tables(wanted)
        if self._running and wanted.found is found:
            self._configure(wanted)
            self._follow()
            self.on_change(wanted.group)

    def _follow(self) -> None:
        """Have the servers of this moment checked."""
        self._known.checks.follow({member: group for group in self for member in group.members if member.is_checked})

    # What there is to know, and to say

    def statuses(self) -> tuple[UpstreamStatus, ...]:
        """A snapshot of all groups."""
        return tuple(
            UpstreamStatus(group.name, group.options.balance, tuple(member.status() for member in group.members))
            for group in self
        )

    def documents(self) -> list[dict[str, Any]]:
        """What is known of each server, for another process: also what an operator has said, as `operate` takes it."""
        words = {state: word for word, state in OPERATED.items()}
        return [
            {
                **server_document(member),
                "group": name,
                "operator": [words[member.operator] if member.operator else None, member.operator_weight],
            }
            for name, wanted in self._wanted.items()
            for member in wanted.group.members
        ]

    def restore(self, said: Mapping[str, Any], *, counters: bool) -> None:
        """Let a server be as another process has said: its health before that process ends, `counters` and words of an
        operator at the end. Does nothing if there is no such server. Raises `ValueError`, `TypeError` or `KeyError`."""
        wanted = self._wanted.get(str(said["group"]))
        found = [each for each in wanted.group.members if each.name == said["name"]] if wanted is not None else []
        if wanted is None or not found:
            return
        if not counters:
            restore_health(wanted.group, found[0], said)
            return
        count_on(found[0], said)
        state, weight = said["operator"]
        if state is not None or weight is not None:
            self.operate(str(said["group"]), found[0].name, state, weight)

    def operate(self, group: str, server: str, state: str | None, weight: int | None) -> None:
        """An operator's word about a server; `state` is one of `OPERATED`.

        Raises `LookupError` for an unknown group or server, `ValueError` for another state or weight.
        """
        if state is not None and state not in OPERATED:
            raise ValueError(f"{state!r} is not one of {', '.join(OPERATED)}")
        if weight is not None and not 0 <= weight <= WEIGHT_MAX:
            raise ValueError(f"the weight is {weight}; it is from 0 to {WEIGHT_MAX}")
        wanted = self._wanted.get(group.removeprefix("@"))
        if wanted is None:
            raise LookupError(f"there is no group {group}; the groups are {', '.join(self._wanted) or 'none'}")
        members = wanted.group.members
        found = next((member for member in members if member.name.lower() == server.lower()), None)
        if found is None:
            names = ", ".join(member.name for member in members[:8])
            raise LookupError(f"the group {group} has no server {server}; it has {names or 'none'}")
        wanted.group.operate(found, OPERATED[state] if state is not None else None, weight)


def _found(sources: list[Source]) -> list[Found]:
    """The servers of all sources; of two with one name the first one counts."""
    found: dict[str, Found] = {}
    for source in sources:
        for each in source.servers():
            found.setdefault(each.server.name, each)
    return list(found.values())


async def _tables(wanted: _Wanted) -> Tables:
    """Maglev's tables for what was found, if the group balances by source; those in force are used if they fit."""
    if wanted.upstream.options.balance is not Balance.SOURCE:
        return None, None
    group, servers = wanted.group, [found.server for found in wanted.found]
    if [member.config for member in group.members] == servers and None not in group.tables:
        return group.tables
    return await _table(servers, False), await _table(servers, True)


async def _table(servers: list[Server], backup: bool) -> array[int]:
    """The table of a tier; the loop is not held for longer than a few milliseconds."""
    places = [at for at, server in enumerate(servers) if server.backup is backup and server.weight]
    named = [
        (server_name(servers[at].endpoint.address, servers[at].endpoint.port), servers[at].weight) for at in places
    ]
    table: array[int] | None = None
    for table in fill(named):
        if table is None:
            await asyncio.sleep(0)
    assert table is not None
    return array("h", [places[at] if at >= 0 else -1 for at in table])
