"""`watch on`: the files of the configuration are read again when they change."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from oinetd.errors import ConfigError
from oinetd.file_state import FileSource, look
from oinetd.model import Config
from oinetd.net.file_watch import FileWatch

__all__ = ["ConfigWatch"]

logger = logging.getLogger("oinetd")


class ConfigWatch:
    """Calls `reload` when a file of the configuration in force has changed, if it has `watch on`.

    After a failed reload the files with mistakes are watched, too, so that a correction causes another reload.
    """

    def __init__(self, reload: Callable[[], object]) -> None:
        self._reload = reload
        self._watch: FileWatch | None = None
        self._sources: tuple[FileSource, ...] = ()

    def follow(self, config: Config) -> None:
        """This configuration is in force now."""
        self._sources = config.sources
        if not config.watch:
            self.close()
            return
        if self._watch is None:
            self._watch = FileWatch(asyncio.get_running_loop(), self._on_change)
        self._watch.watch(self._sources)

    def failed(self, error: Exception) -> None:
        """A new configuration could not be used."""
        if self._watch is None:
            return
        named = [problem.file for problem in error.problems if problem.file] if isinstance(error, ConfigError) else []
        paths = dict.fromkeys([*(source.path for source in self._sources), *named])
        self._watch.watch(FileSource(path, look(path)) for path in paths)

    def close(self) -> None:
        """Stop watching."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _on_change(self) -> None:
        logger.info("watch: the configuration has changed, reloading")
        self._reload()
