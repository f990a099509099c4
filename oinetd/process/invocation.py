"""The options of the command line, and the exit codes."""

from __future__ import annotations

import errno
from dataclasses import dataclass, replace
from typing import Any, Final

from oinetd.errors import ConfigError, EngineUnavailable
from oinetd.model import Config, EngineChoice, RelayMode
from oinetd.process.privileges import Identity

__all__ = [
    "EX_CONFIG",
    "EX_NOINPUT",
    "EX_NOPERM",
    "EX_OK",
    "EX_OSERR",
    "EX_TEMPFAIL",
    "EX_USAGE",
    "Options",
    "exit_code",
]

# From sysexits.h.
EX_OK: Final = 0
EX_USAGE: Final = 64
EX_NOINPUT: Final = 66
EX_OSERR: Final = 71
EX_TEMPFAIL: Final = 75
EX_NOPERM: Final = 77
EX_CONFIG: Final = 78


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of the command line; None if the configuration decides.

    `lines` are further lines of the configuration; with them `conf_file` may be empty. `default_pid_file` is used if
    neither `pidlogfile` nor `-p` is given. `name` is that of the instance, empty for the stem of `conf_file`;
    `admin_path` replaces the admin sockets of the configuration.
    """

    conf_file: str
    lines: tuple[str, ...] = ()
    foreground: bool = False
    pid_file: str | None = None
    default_pid_file: str = ""
    identity: Identity | None = None
    engine: EngineChoice | None = None
    relay: RelayMode | None = None
    threads: int | None = None
    log_level: str = "info"
    log_format: str = "text"
    name: str = ""
    admin_path: str = ""

    def load(self) -> Config:
        """The configuration of file and lines, without the overrides of the command line. Raises `ConfigError`."""
        from oinetd.config import load_config

        return load_config(self.conf_file, self.lines)

    def with_overrides(self, config: Config) -> Config:
        """`config` with the overrides of the command line, which also replace the options of single rules."""
        if self.pid_file is not None:
            config = replace(config, pid_file=self.pid_file)
        elif self.default_pid_file and not config.pid_file:
            config = replace(config, pid_file=self.default_pid_file)
        if self.threads is not None:
            config = replace(config, threads=self.threads)
        said: dict[str, Any] = {}
        if self.engine is not None:
            said["engine"] = self.engine
        if self.relay is not None:
            said["relay"] = self.relay
        if not said:
            return config
        unsaid = dict.fromkeys(said)
        return replace(
            config,
            settings=replace(config.settings, **said),
            rules=tuple(replace(rule, options=replace(rule.options, **unsaid)) for rule in config.rules),
        )


_PASSING: Final = frozenset({errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Temporary failures: no answer from a name server, no descriptor or memory left."""


def exit_code(error: Exception) -> int:
    """The exit code of a start that failed with `error`."""
    if isinstance(error, (ConfigError, EngineUnavailable)):
        return EX_CONFIG
    number = getattr(error, "errno", None)
    if number in (errno.EACCES, errno.EPERM):
        return EX_NOPERM
    return EX_TEMPFAIL if number in _PASSING else EX_OSERR
