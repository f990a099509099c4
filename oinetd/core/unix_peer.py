"""The user that may serve a unix destination (`peer-uid=`)."""

from __future__ import annotations

from oinetd.errors import ConfigError, Problem
from oinetd.model import Rule
from oinetd.net.unix_sockets import user_of

__all__ = ["peer_uid_of"]


def peer_uid_of(rule: Rule) -> int | None:
    """The number of the user that `rule` demands; None if it demands none. Raises `ConfigError`."""
    name = rule.options.peer_user
    if name is None:
        return None
    try:
        return user_of(name)
    except LookupError as error:
        problem = Problem(f"peer-uid={name}: {error}", rule.origin.file, rule.origin.line, hint="a name or a number")
        raise ConfigError(problem) from None
