"""Resolves the names of a configuration without serving it, for `oinetd -t --resolve`."""

from __future__ import annotations

import asyncio

from oinetd.errors import ConfigError, Problem
from oinetd.model import Config
from oinetd.net.resolver import is_temporary, resolve
from oinetd.upstream.hosts import names_of

__all__ = ["check_names"]


async def check_names(config: Config) -> list[str]:
    """Resolve every name. Returns a message for each name that got no answer.

    Raises `ConfigError` with all unknown names.
    """
    names = names_of(config)
    answers = await asyncio.gather(*(resolve(host) for host in names), return_exceptions=True)
    problems: list[Problem] = []
    unanswered: list[str] = []
    for (host, (origin, what)), answer in zip(names.items(), answers, strict=True):
        if not isinstance(answer, OSError):
            continue
        message = f"cannot resolve the {what} {host}: {answer.strerror or answer}"
        problem = Problem(message, file=origin.file, line=origin.line)
        if is_temporary(answer):
            unanswered.append(str(problem))
        else:
            problems.append(problem)
    if problems:
        raise ConfigError(*problems)
    return unanswered
