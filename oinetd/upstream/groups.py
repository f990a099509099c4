"""All groups of servers of a configuration. Groups and servers are known by their names, and kept over reloads.

A configuration is prepared first, which changes nothing; `enforce` puts it in force, also to go back to an earlier one.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from oinetd.bounds import WEIGHT_MAX
from oinetd.enums import Protocol, SendProxy
from oinetd.errors import ConfigError, Problem
from oinetd.model import Config, Rule
from oinetd.net.poller import Poller
from oinetd.servers import Server, Upstream
from oinetd.upstream.carrying import count_on, restore_health, server_document
from oinetd.upstream.checks import Checked, Checks
from oinetd.upstream.destinations import Destinations
from oinetd.upstream.group import Group, Listener, UpstreamStatus
from oinetd.upstream.group_destination import GroupDestination
from oinetd.upstream.load import NewLoad
from oinetd.upstream.maglev import Build
from oinetd.upstream.member import Member, State
from oinetd.upstream.prospect import Prospect, prospects
from oinetd.upstream.selection import Tables
from oinetd.upstream.server_file import ReadServers
from oinetd.upstream.source_choice import Means, source_of
from oinetd.upstream.sources import Found, Source
from oinetd.upstream.tables import tables_for

__all__ = ["Groups", "Known", "group_names"]

OPERATED: Final = {"ready": State.UP, "drain": State.DRAIN, "maint": State.MAINT}
"""The words of an operator; `ready` takes the others back."""


class Known:
    """The groups and servers that a forwarder has ever had in force, as long as they are needed."""

    def __init__(
        self,
        new_load: NewLoad,
        build: Build | None,
        listener: Listener,
        poller: Poller,
        read: ReadServers,
    ) -> None:
        self.new_load = new_load
        self.read = read
        self.build = build
        self.listener = listener
        self.groups: dict[str, Group] = {}
        self.members: dict[tuple[str, str], Member] = {}
        self.by_tag: dict[int, Member] = {}
        self.checks = Checks(poller)
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


def group_names(rules: Iterable[Rule]) -> dict[int, str]:
    """The name of each rule's group, by the `id` of the rule: its own, or where the rule listens, with what tells it
    apart from other rules there."""
    names: dict[int, str] = {}
    used: set[str] = set()
    for rule in rules:
        upstream, bind = rule.upstream, rule.bind
        if upstream is None:
            continue
        if upstream.name:
            names[id(rule)] = upstream.name
            continue
        host = f"[{bind.address}]" if ":" in bind.address else bind.host
        name = bind.host if bind.is_unix else f"{host}:{bind.port}"
        if bind.protocol is Protocol.UDP:
            name += "/udp"
        name += "".join(f"/{word}" for word in (*(rule.options.sni or ()), *(rule.options.alpn or ())))
        same = itertools.count(2)
        names[id(rule)] = next(each for each in (name, *(f"{name}#{next(same)}" for _ in used)) if each not in used)
        used.add(names[id(rule)])
    return names


@dataclass(slots=True)
class _Wanted:
    """A group as a configuration has it: what it says, the servers that came of that, and the PROXY header that its
    rules have sent to servers that say nothing of one."""

    group: Group
    header: SendProxy
    upstream: Upstream
    sources: list[Source]
    found: list[Found]
    tables: Tables = (None, None)
    latest: list[Found] | None = None
    """What is to take the place of `found` as soon as its tables are made."""


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
        names, before = group_names(config.rules), known.checked_for
        for rule in config.rules:
            if rule.upstream is None:
                continue
            name, header = names[id(rule)], config.settings_of(rule).send_proxy
            if (known_one := self._wanted.get(name)) is not None:
                if known_one.header is not header:  # of two rules only one can tell what the server expects
                    known_one.header = SendProxy.OFF
            else:
                group = known.groups.get(name) or Group(name, rule.upstream, known.listener)
                refresh_s = destinations.refresh_of(rule)
                sources = [
                    source_of(
                        server,
                        rule.upstream.options,
                        Means(
                            destinations.of_server(server, rule.upstream, refresh_s),
                            destinations.source_of_server(server, rule.upstream, refresh_s),
                            refresh_s,
                            before.found_by(name, server) if before is not None else [],
                            known.read,
                        ),
                    )
                    for server in rule.upstream.servers
                ]
                self._wanted[name] = _Wanted(group, header, rule.upstream, sources, [])
            self._of_rule[id(rule)] = GroupDestination(self._wanted[name].group)

    def found_by(self, group: str, line: Server) -> list[Found]:
        """The servers of this moment that a line of a group stands for; none if there is no such line."""
        wanted = self._wanted.get(group)
        if wanted is None or line.is_address:  # what DNS says of those is kept by their destinations
            return []
        each = zip(wanted.upstream.servers, wanted.sources, strict=True)
        return next((source.servers() for server, source in each if server == line), [])

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
            wanted.tables = await self._tables(wanted, wanted.found)
        if problems:
            raise ConfigError(*problems)

    async def _tables(self, wanted: _Wanted, found: Sequence[Found]) -> Tables:
        servers = [each.server for each in found]
        return await tables_for(wanted.group, wanted.upstream.options.balance, servers, self._known.build)

    def enforce(self) -> None:
        """Put the groups and servers in force; what is in no group any more is drained."""
        for name, group in tuple(self._known.groups.items()):
            if name not in self._wanted:
                group.dissolve()
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
        wanted.latest = found = _found(wanted.sources)
        if found == wanted.found:  # a name in a file has other addresses
            self.on_change(wanted.group)
            return
        tables = await self._tables(wanted, found)
        if self._running and wanted.latest is found:
            wanted.found, wanted.tables = found, tables  # together: the numbers in a table are places in `found`
            self._configure(wanted)
            self._follow()
            self.on_change(wanted.group)

    def _follow(self) -> None:
        """Have the servers of this moment checked."""
        self._known.checks.follow(
            {
                member: Checked(wanted.group, member.header(wanted.header))
                for wanted in self._wanted.values()
                for member in wanted.group.members
                if member.is_checked
            }
        )

    # What there is to know, and to say

    def statuses(self) -> tuple[UpstreamStatus, ...]:
        """A snapshot of all groups."""
        return tuple(group.status() for group in self)

    def servers_of(self, rule: Rule, client: str) -> tuple[UpstreamStatus | None, tuple[Prospect, ...]]:
        """The group of `rule`, and its servers as a new client finds them; nothing if it has none."""
        destination = self._of_rule.get(id(rule))
        if destination is None:
            return None, ()
        return destination.group.status(), prospects(destination.group, client)

    def documents(self) -> list[dict[str, Any]]:
        """What is known of each server, for another process: also what an operator has said, as `operate` takes it.
        And the counters of each group, which have no name of a server."""
        words = {state: word for word, state in OPERATED.items()}
        counted = [
            {"group": name, "name": "", "down": status.down, "times": [status.times_full, status.times_down]}
            for name, status in zip(self._wanted, self.statuses(), strict=True)
        ]
        return [
            {
                **server_document(member),
                "group": name,
                "operator": [words[member.operator] if member.operator else None, member.operator_weight],
            }
            for name, wanted in self._wanted.items()
            for member in wanted.group.members
        ] + counted

    def restore(self, said: Mapping[str, Any], *, counters: bool) -> None:
        """Let a server be as another process has said: its health before that process ends, `counters` and words of an
        operator at the end. Does nothing if there is none such. Raises `ValueError`, `TypeError` or `KeyError`."""
        wanted = self._wanted.get(str(said["group"]))
        if wanted is not None and "times" in said:
            times_full, times_down = (max(0, int(number)) for number in said["times"])
            if counters:
                wanted.group.count_on(times_full, times_down)
            elif said.get("down"):
                wanted.group.times_down = 0  # an outage that is found here, too, began there
        found = [each for each in wanted.group.members if each.name == said["name"]] if wanted is not None else []
        if wanted is None or not found:
            return
        if not counters:
            restore_health(wanted.group, found[0], said)
            return
        count_on(found[0], said)
        state, weight = said["operator"]
        if state is not None or weight is not None:
            counted = found[0].changes, wanted.group.times_down  # there, too
            self.operate(str(said["group"]), found[0].name, state, weight)
            found[0].changes, wanted.group.times_down = counted

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
            groups = f"; the groups are {', '.join(self._wanted)}" if self._wanted else ", and no other one"
            raise LookupError(f"there is no group {group}{groups}")
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
