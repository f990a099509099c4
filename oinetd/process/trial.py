"""What `oinetd -t` tries beside the text of the configuration: engines, and files of servers. Nothing is bound."""

from __future__ import annotations

import os
from typing import Final

from oinetd.config.server_file import read_servers
from oinetd.config.vocabulary import OPTIONS
from oinetd.errors import ConfigError, EngineUnavailable, Problem
from oinetd.lanes.native.unserved import why_unserved
from oinetd.model import Config, EngineChoice
from oinetd.servers import FILE_PREFIX, Server

__all__ = ["try_out"]

SOCKET_OPTIONS: Final = (
    *("freebind", "interface", "defer-accept", "transparent", "out-interface", "mark", "dscp", "fastopen", "mptcp"),
    "congestion",
)
"""Those that a start tries with the kernel; whether it takes them hangs on the rights of the service."""


def try_out(config: Config) -> list[str]:
    """Try what can be tried without serving. Returns a message for each thing that only a start tries.

    Raises `ConfigError` and `EngineUnavailable`, as a start does.
    """
    _try_engines(config)
    untried = _try_files(config)
    if options := _untried_options(config):
        untried.append(f"socket options not tried with the kernel (a start does): {', '.join(options)}")
    return untried


def _try_engines(config: Config) -> None:
    """Raises `EngineUnavailable` if a rule insists on an engine that cannot serve it here."""
    for rule in config.rules:
        if config.settings_of(rule).engine is not EngineChoice.NATIVE:
            continue
        from oinetd.lanes.native.plane import available  # loads the extension

        unserved = why_unserved(rule)
        if error := unserved[1] if unserved is not None else available():
            raise EngineUnavailable(f"{rule.origin}: {error}" if rule.origin.line else error)


def _try_files(config: Config) -> list[str]:
    """Read the files of servers. Returns a message for each that only the user of the service can judge.

    Raises `ConfigError` with the mistakes of the others.
    """
    problems: list[Problem] = []
    untried: list[str] = []
    for path, server in sorted(_files(config).items()):
        try:
            read_servers(path, server.origin, server.endpoint.protocol)
        except ConfigError as error:
            if isinstance(error.__cause__, OSError) and _is_of_another_user(path):
                untried.append(f"not read as this user (the user of the service may): {path}")
            else:
                problems.extend(error.problems)
    if problems:
        raise ConfigError(*problems)
    return untried


def _untried_options(config: Config) -> list[str]:
    """The socket options of the rules."""
    fields = {name: OPTIONS[name].option for name in SOCKET_OPTIONS}
    return [name for name, field in fields.items() if any(getattr(rule.options, field) for rule in config.rules)]


def _files(config: Config) -> dict[str, Server]:
    """The files of servers that rules use, each with the first line that names it."""
    found: dict[str, Server] = {}
    for rule in config.rules:
        for server in rule.upstream.servers if rule.upstream is not None else ():
            if server.is_file:
                found.setdefault(server.endpoint.host.removeprefix(FILE_PREFIX), server)
    return found


def _is_of_another_user(path: str) -> bool:
    """Whether the file may not be read by this user, or belongs to another one who may be that of the service."""
    try:
        return os.stat(path).st_uid not in (0, os.geteuid()) or not os.access(path, os.R_OK)
    except PermissionError:
        return True
    except OSError:
        return False
