"""Reads a file of servers (`upstream NAME file:/path`): a server with its options on each line."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from typing import Final

from oinetd.bounds import SERVERS_MAX
from oinetd.config.mistake import Mistake
from oinetd.config.syntax import Word, read_statements
from oinetd.config.upstream import DATAGRAMS, ServerLine, read_server
from oinetd.enums import Protocol, SendProxy
from oinetd.errors import ConfigError, Problem
from oinetd.model import Origin
from oinetd.servers import Resolve, Server

__all__ = ["FILE_BYTES_MAX", "parse_servers", "read_servers"]

FILE_BYTES_MAX: Final = 1024 * 1024

USAGE: Final = "address port [options]"


def read_servers(path: str, origin: Origin, protocol: Protocol = Protocol.TCP) -> tuple[Server, ...]:
    """The servers in the file at `path`, which the configuration names at `origin`: they are reached over `protocol`.
    Raises `ConfigError`.

    Who can write to the file chooses where clients go, so it has to belong to root or to the user of this process, and
    others must not be able to write to it.
    """
    try:
        content = _content(path)
    except OSError as error:
        message = f"cannot read the servers in {path}: {error.strerror}"
        raise ConfigError(Problem(message, file=origin.file, line=origin.line)) from error
    return parse_servers(content.decode("utf-8", "surrogateescape"), path, protocol)


def _content(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(0, "it is not a regular file")
        if found.st_uid not in (0, os.geteuid()):
            raise OSError(0, f"it belongs to the user {found.st_uid}; chown it to root, or to the user of oinetd")
        if found.st_mode & stat.S_IWOTH:
            raise OSError(0, "everybody may write to it; chmod o-w")
        with open(fd, "rb", closefd=False) as file:
            content = file.read(FILE_BYTES_MAX + 1)
    finally:
        os.close(fd)
    if len(content) > FILE_BYTES_MAX:
        raise OSError(0, f"it has more than {FILE_BYTES_MAX} bytes")
    return content


def parse_servers(text: str, file: str, protocol: Protocol = Protocol.TCP) -> tuple[Server, ...]:
    """The servers in `text`. Raises `ConfigError` with all problems."""
    problems: list[Problem] = []
    servers: dict[str, ServerLine] = {}
    for statement in read_statements(text, file):
        before = len(problems)
        line, words = statement.line, statement.words
        problems.extend(statement.problems)
        if not words:
            continue
        found = read_server(line, list(words), statement.options, problems)
        if found is None or len(problems) > before:
            continue
        place = Word(words[0].text, words[0].column, words[-1].end - words[0].column)
        try:
            _check(found, servers, protocol)
        except Mistake as mistake:
            problems.append(line.problem(mistake.message, place.column, place.width, mistake.hint))
        else:
            servers[found.server.name.lower()] = found
    if problems:
        raise ConfigError(*problems)
    return tuple(each.server for each in servers.values())


def _check(new: ServerLine, servers: Mapping[str, ServerLine], protocol: Protocol) -> None:
    """Raises `Mistake` for a server that cannot be in a file, or not beside the others."""
    server = new.server
    if server.is_file or server.resolve not in (None, Resolve.ONE):
        raise Mistake("a file of servers has addresses and names of single servers", USAGE)
    if len(server.endpoint.ports) > 1:
        raise Mistake("a server in a file has one port", USAGE)
    if (known := servers.get(server.name.lower())) is not None:
        raise Mistake(f"the server {server} is in the file twice, also in line {known.line.number}")
    if server.endpoint.protocol is not protocol:
        if protocol is Protocol.UDP:
            hint = f"write {server.endpoint.port}/udp" if server.endpoint.port else "unix sockets are for TCP"
            raise Mistake("the servers of this file are reached over UDP, and this one over TCP", hint)
        raise Mistake(
            "the servers of this file are reached over TCP, and this one over UDP",
            f"write upstream NAME file:{new.line.file} {DATAGRAMS} for a file of UDP servers",
        )
    if protocol is Protocol.UDP and server.send_proxy is SendProxy.V1:
        raise Mistake("send-proxy=v1 is for TCP, and this server is reached over UDP", "write send-proxy=v2")
    if len(servers) >= SERVERS_MAX:
        raise Mistake(f"the file has more than {SERVERS_MAX} servers")
