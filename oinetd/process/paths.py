"""The paths of a configuration, as absolute paths: a daemon works in the root directory."""

from __future__ import annotations

import os
from dataclasses import replace

from oinetd.errors import ConfigError, Problem
from oinetd.model import Config
from oinetd.observe.connection_log import ConnectionLog
from oinetd.process.invocation import Options

__all__ = ["with_absolute_paths"]


def with_absolute_paths(config: Config, options: Options, base: str) -> Config:
    """`config` with the command line's overrides; its paths are relative to `base`, "" if that directory is gone.

    Raises `ConfigError`.
    """
    config = options.with_overrides(config)
    if config.pid_file:
        config = replace(config, pid_file=_absolute("pid file", config.pid_file, base))
    if ConnectionLog.is_standard_stream(config.log):
        if not options.foreground:
            hint = "use a file, or run in the foreground (-f)"
            raise ConfigError(Problem(f"logfile {config.log.file}: a daemon has no standard output", hint=hint))
    elif ConnectionLog.is_file(config.log):
        config = replace(config, log=replace(config.log, file=_absolute("logfile", config.log.file, base)))
    return config


def _absolute(what: str, path: str, base: str) -> str:
    if not base and not os.path.isabs(path):
        hint = "start oinetd in another directory, or use an absolute path"
        raise ConfigError(Problem(f"{what} {path}: the working directory has been removed", hint=hint))
    return os.path.join(base, path)
