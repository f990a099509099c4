"""Parses the lines of groups of servers, and the destinations of rules that are groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from oinetd.bounds import SERVERS_MAX
from oinetd.config.address import Ports, host_and_port, parse_host, parse_ports
from oinetd.config.mistake import Mistake, shown
from oinetd.config.options import read_options
from oinetd.config.syntax import Line, Option, Statement, Word
from oinetd.config.vocabulary import DIRECTIVES, GROUP_OPTIONS, SERVER_OPTIONS
from oinetd.enums import Protocol, SendProxy
from oinetd.errors import Problem
from oinetd.model import UNIX_PREFIX, Endpoint, Origin
from oinetd.servers import FILE_PREFIX, GroupOptions, Resolve, Server, Upstream

__all__ = [
    "DATAGRAMS",
    "UPSTREAM_USAGE",
    "GroupDraft",
    "ServerLine",
    "UpstreamLine",
    "read_hosts",
    "read_server",
    "read_upstream",
]

DATAGRAMS = "/udp"
"""Behind the path of a file: its servers are reached over UDP."""

UPSTREAM_USAGE = "upstream NAME address port [options], or upstream NAME [options of the group]"


@dataclass(frozen=True, slots=True)
class ServerLine:
    """A server with the place for its problems."""

    line: Line
    word: Word
    server: Server


@dataclass(frozen=True, slots=True)
class UpstreamLine:
    """One `upstream` line: a server, or options of the group."""

    line: Line
    name: Word
    server: ServerLine | None
    said: Mapping[str, Any]


def read_upstream(statement: Statement, problems: list[Problem]) -> UpstreamLine | None:
    """The line in a statement; if it has problems, they are added to `problems` and the result is None."""
    before = len(problems)
    line, words = statement.line, statement.words
    problems.extend(statement.problems)
    if len(words) < 2:
        problems.append(line.problem("the name of the group is missing", words[0].end, 1, UPSTREAM_USAGE))
        return None
    keyword, name, *rest = words
    try:
        entry = DIRECTIVES[keyword.text]
        assert entry.value is not None
        entry.value.parse(name.text)
    except Mistake as mistake:
        problems.append(line.mistaken(name, mistake))
    if not rest:
        if not statement.options and not statement.problems:
            problems.append(line.problem("a server or options of the group are missing", name.end, 1, UPSTREAM_USAGE))
        said = read_options(line, statement.options, {"group": GROUP_OPTIONS}, problems, "a group")
        found = UpstreamLine(line, name, None, said["group"])
    else:
        server = read_server(line, rest, statement.options, problems)
        if server is None:
            return None
        found = UpstreamLine(line, name, server, {})
    return found if len(problems) == before else None


def read_server(
    line: Line, words: list[Word], options: tuple[Option, ...], problems: list[Problem]
) -> ServerLine | None:
    """The server that `words` locate; None if they do not. Problems of its options leave it as it is without them."""
    said = read_options(line, options, {"server": SERVER_OPTIONS}, problems, "a server")["server"]
    endpoint = _read_endpoint(line, words, said, problems)
    if endpoint is None:
        return None
    place = Word(words[0].text, words[0].column, words[-1].end - words[0].column)
    return ServerLine(line, place, Server(endpoint, origin=Origin(line.file, line.number), **said))


def _read_endpoint(line: Line, words: list[Word], said: Mapping[str, Any], problems: list[Problem]) -> Endpoint | None:
    """The location of the server: an address and a port, the name of SRV records, or a file."""
    host = words[0]
    if host.text.startswith((FILE_PREFIX, UNIX_PREFIX)):
        protocol = Protocol.TCP
        of_file = host.text.startswith(FILE_PREFIX)
        if len(words) == 2 and of_file and words[1].text == DATAGRAMS:
            protocol = Protocol.UDP
        elif len(words) > 1:
            hint = f"the file has the ports; {DATAGRAMS} says that it is for UDP" if of_file else "it has no port"
            problems.append(_unexpected(line, words[1], hint))
        if host.text.startswith(UNIX_PREFIX):
            try:
                parse_host(host.text)
            except Mistake as mistake:
                problems.append(line.mistaken(host, mistake))
        elif not host.text.startswith(FILE_PREFIX + "/"):
            problems.append(line.problem("the path of the file is not absolute", host.column, host.width))
        return Endpoint(host.text, 0, protocol)
    srv = said.get("resolve") is Resolve.SRV
    if len(words) > 2 or (srv and len(words) > 1):
        hint = "resolve=srv takes the ports from DNS" if srv else UPSTREAM_USAGE
        problems.append(_unexpected(line, words[1 if srv else 2], hint))
        return None
    try:
        parse_host(host.text)
    except Mistake as mistake:
        problems.append(line.mistaken(host, mistake))
    if srv:
        protocol = Protocol.UDP if "._udp." in host.text.lower() else Protocol.TCP
        return Endpoint(host.text, 0, protocol)
    if len(words) < 2:
        mistake_or_none = host_and_port(host.text)
        if mistake_or_none is not None:
            problems.append(line.mistaken(host, mistake_or_none))
        else:
            hint = "the port, or [resolve=srv] for the name of SRV records"
            problems.append(line.problem("the port of the server is missing", host.end, 1, hint))
        return None
    try:
        ports = parse_ports(words[1].text)
    except Mistake as mistake:
        problems.append(line.mistaken(words[1], mistake))
        return None
    if not ports.first:
        problems.append(line.problem("port 0 cannot be a destination", words[1].column, words[1].width))
        return None
    return Endpoint(host.text, ports.first, ports.protocol, ports.last)


def _unexpected(line: Line, word: Word, hint: str) -> Problem:
    return line.problem(f"unexpected {shown(word.text)} after the server", word.column, word.width, hint)


def read_hosts(line: Line, word: Word, ports: Ports, problems: list[Problem]) -> list[ServerLine]:
    """The servers of a rule's destination: hosts with commas between them, and one port."""
    servers, start = [], 0
    for part in word.text.split(","):
        place = Word(part, word.column + start, max(1, len(part)))
        start += len(part) + 1
        if not part:
            problems.append(line.problem("a host is missing before or after the comma", place.column))
            continue
        try:
            parse_host(part)
        except Mistake as mistake:
            problems.append(line.mistaken(place, mistake))
            continue
        endpoint = Endpoint(part, ports.first, ports.protocol, ports.last)
        servers.append(ServerLine(line, place, Server(endpoint, origin=Origin(line.file, line.number))))
    return servers


# Groups


@dataclass(slots=True)
class GroupDraft:
    """A group whose lines may still follow; `index` is the index of its first statement."""

    index: int
    first: UpstreamLine
    servers: list[tuple[int, ServerLine]] = field(default_factory=list)
    named: dict[str, ServerLine] = field(default_factory=dict)
    said: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.first.name.text

    def take(self, index: int, said: UpstreamLine, problems: list[tuple[int, Problem]]) -> None:
        """Add one line."""
        self.said.update(said.said)
        if said.server is not None:
            problem = self._misfit(said.server)
            if problem is not None:
                problems.append((index, problem))
            else:
                self.servers.append((index, said.server))

    def _misfit(self, new: ServerLine) -> Problem | None:
        known = self.named.setdefault(new.server.name.lower(), new)
        if known is not new:
            message = f"the server {new.server} is in the group {self.name} twice, also at {known.line}"
            return new.line.problem(message, new.word.column, new.word.width)
        if new.server.endpoint.protocol is Protocol.UDP and new.server.send_proxy is SendProxy.V1:
            message = f"send-proxy=v1 is for TCP, and the server {new.server} is reached over UDP"
            return new.line.problem(message, new.word.column, new.word.width, "write send-proxy=v2")
        if self.servers and self.servers[0][1].server.endpoint.protocol is not new.server.endpoint.protocol:
            other = self.servers[0][1]
            message = f"{new.server.endpoint.protocol.value} and {other.server.endpoint.protocol.value} in one group"
            hint = f"the server at {other.line} decides; write another group"
            return new.line.problem(message, new.word.column, new.word.width, hint)
        if len(self.servers) >= SERVERS_MAX:
            message = f"the group {self.name} has more than {SERVERS_MAX} servers"
            return new.line.problem(message, new.word.column, new.word.width)
        return None

    def problem(self) -> Problem | None:
        """The problem of the group as a whole; None if there is none."""
        if self.servers:
            return None
        line, name = self.first.line, self.first.name
        hint = f"write upstream {name.text} address port"
        return line.problem(f"the group {shown(name.text)} has no server", name.column, name.width, hint)

    def upstream(self) -> Upstream:
        """The group."""
        line = self.first.line
        servers = tuple(server.server for _, server in self.servers)
        return Upstream(self.name, servers, GroupOptions(**self.said), Origin(line.file, line.number))
