"""The admin interface of the daemon: its state, its sockets, and the reloads that it asks for."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final

from oinetd.admin.instance import DRAINING, READY, Instance, Replaced
from oinetd.admin.place import instance_name
from oinetd.admin.print import status_lines
from oinetd.admin.server import AdminServer
from oinetd.errors import OinetdError
from oinetd.forwarder import Forwarder
from oinetd.model import Config
from oinetd.observe.status import summary
from oinetd.process.invocation import Options

__all__ = ["Administration"]


FLUSH_S: Final = 1.0
FLUSH_LOOK_S: Final = 0.005

REPLACED: Final = "another process serves in place of this one"

logger = logging.getLogger("oinetd")


class Administration:
    """`open` before root is dropped, `start` in the loop, `close` at the end. `ask_reload` begins a reload."""

    def __init__(
        self,
        options: Options,
        environ: Mapping[str, str],
        ask_reload: Callable[[], None],
        upgrade: Callable[[str, bool], Awaitable[Mapping[str, Any]]],
    ) -> None:
        identity = options.identity
        self._name = options.name or instance_name(options.conf_file, os.getpid())
        self._uid = identity.uid if identity else os.geteuid()
        self._ask_reload = ask_reload
        self._upgrade = upgrade
        self._conf_file = options.conf_file
        self._instance: Instance | None = None
        self._waiting: list[asyncio.Future[None]] = []
        self._began = 0.0
        self._replaced = False
        self._server = AdminServer(
            self._name,
            environ,
            path=options.admin_path,
            identity=(identity.uid, identity.gid) if identity else None,
        )

    def adopt(self, sockets: Mapping[str, socket.socket]) -> None:
        """Use these sockets of the process that is replaced."""
        self._server.adopt(sockets)

    def shared(self) -> dict[str, socket.socket]:
        """The open sockets, for the process that replaces this one."""
        return self._server.shared()

    def own_files(self) -> None:
        """The sockets of another process are this one's."""
        self._server.own_files()

    def leave_files(self) -> None:
        """Another process has the sockets, and does the reloads that were asked for."""
        self._server.leave_files()
        self._replaced = True
        for each in self.reload_begins():
            if not each.done():
                each.set_exception(Replaced(0, REPLACED))

    async def flush(self) -> None:
        """Send the answers that are under way, within a second."""
        deadline = time.monotonic() + FLUSH_S
        while self._server.busy and time.monotonic() < deadline:  # noqa: ASYNC110 - connections end by themselves
            await asyncio.sleep(FLUSH_LOOK_S)

    def open(self, config: Config) -> None:
        """Open the sockets. Raises `ConfigError`, `BindError` or `OSError`."""
        self._server.open(config.admin)

    def shut(self) -> None:
        """Close the sockets of a start that has failed."""
        self._server.shut()

    def start(self, forwarder: Forwarder) -> None:
        """Begin to answer; the process is still starting."""
        owners = frozenset({0, self._uid})
        self._instance = Instance(
            self._name,
            forwarder,
            self._reload,
            conf_file=self._conf_file,
            owners=owners,
            users=owners,
            upgrade=self._upgrade,
        )
        self._server.start(self._instance)

    def ready(self) -> None:
        """The forwarder has started."""
        assert self._instance is not None
        self._server.started()
        self._instance.state = READY

    def draining(self) -> None:
        """The process is stopping; a new one with this name may start."""
        assert self._instance is not None
        self._instance.state = DRAINING

    async def close(self) -> None:
        """Close the sockets."""
        for each in self._waiting:
            if not each.done():
                each.set_exception(OSError(0, "the process is stopping"))
        await self._server.close()

    def log_status(self) -> None:
        """Log what `oinetd status` prints, and the counters, the names and the most active sessions."""
        if self._instance is None:
            return
        forwarder = self._instance.forwarder
        details = summary(forwarder.stats(), forwarder.sessions(), forwarder.destinations())
        for line in (*status_lines(self._server.api.status()), *details):
            logger.info("%s", line)

    # Reloads

    async def _reload(self) -> None:
        if self._replaced:
            raise Replaced(0, REPLACED)
        waiting = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        self._ask_reload()
        await waiting

    def reload_begins(self) -> list[asyncio.Future[None]]:
        """A reload begins. Returns the callers that wait for it: all that have asked so far."""
        self._began = time.monotonic()
        waiting, self._waiting = self._waiting, []
        return waiting

    def reload_ends(self, waiting: list[asyncio.Future[None]], error: BaseException | None) -> None:
        """The reload has ended, with an `error` if it failed."""
        for each in waiting:
            if each.done():
                continue
            if error is None:
                each.set_result(None)
            else:
                each.set_exception(error if isinstance(error, OinetdError | OSError) else OSError(0, repr(error)))
        if self._instance is None:
            return
        reloads = self._instance.reloads
        reloads.last_at, reloads.last_duration_s = time.time(), time.monotonic() - self._began
        reloads.last_error = str(error) if error is not None else ""
        if error is None:
            reloads.succeeded += 1
        else:
            reloads.failed += 1
        first = reloads.last_error.partition("\n")[0]
        self._server.api.events.publish("reload", {"succeeded": error is None, "error": first})

    @contextlib.asynccontextmanager
    async def change(self, config: Config) -> AsyncIterator[None]:
        """Open the sockets of `config`; use them if the body succeeds, else leave everything as it was."""
        prepared = self._server.prepare(config.admin)
        try:
            yield
        except BaseException:
            self._server.abandon(prepared)
            raise
        await self._server.exchange(prepared)
