"""Servers from SRV records: each address of each target is a server, with the record's port and weight.

The records are looked up at the start and every `dns_refresh_s`. Without an answer the servers stay as they were.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable
from typing import Final

from oinetd.bounds import SERVERS_MAX, WEIGHT_MAX
from oinetd.errors import ConfigError, Problem
from oinetd.model import Endpoint
from oinetd.net.resolver import is_temporary, resolve
from oinetd.net.sockets import Address
from oinetd.net.srv import ServiceRecord, find_services, missing_extra
from oinetd.servers import GroupOptions, Server
from oinetd.upstream.destination import RETRY_MAX_S, RETRY_S, Destination
from oinetd.upstream.sources import Found
from oinetd.upstream.special import without_special

__all__ = ["ServiceSource", "weights_of"]

log = logging.getLogger("oinetd")

PATIENCE_S: Final = 3.0
"""How long a start or a reload waits for records that were never seen."""


def weights_of(records: list[ServiceRecord]) -> list[int]:
    """The weights of servers: those of records go up to 65,535, and 0 is a small one."""
    most = max((record.weight for record in records), default=0)
    return [max(1, record.weight * WEIGHT_MAX // most if most > WEIGHT_MAX else record.weight) for record in records]


class ServiceSource:
    """A line with `resolve=srv`; `known` are the servers that an earlier configuration found for it."""

    def __init__(
        self,
        server: Server,
        options: GroupOptions,
        source: Destination | None,
        refresh_s: float,
        known: list[Found],
    ) -> None:
        self._server = server
        self._special = options.allow_special
        self._source = source
        self._refresh_s = refresh_s
        self._found = known
        self._failing = False
        self._retry_s = RETRY_S
        self._on_change: Callable[[], object] | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return self._server.endpoint.host

    async def prepare(self) -> None:
        if why := missing_extra():
            raise self._unusable(why)
        if self._found:
            return
        try:
            async with asyncio.timeout(PATIENCE_S):
                self._found = await self._look()
        except TimeoutError:
            self._say_failing(OSError(0, f"no answer from the name server within {PATIENCE_S:g} s"))
        except OSError as error:
            if not is_temporary(error):
                raise self._unusable(f"cannot resolve the server {self.name}: {error.strerror}") from error
            self._say_failing(error)

    def _unusable(self, message: str) -> ConfigError:
        origin = self._server.origin
        return ConfigError(Problem(message, file=origin.file, line=origin.line))

    def servers(self) -> list[Found]:
        return self._found

    def start(self, on_change: Callable[[], object]) -> None:
        self._on_change = on_change
        self._task = asyncio.get_running_loop().create_task(self._follow())

    def stop(self) -> None:
        self._on_change = None
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _follow(self) -> None:
        """Look the records up again and again."""
        while True:
            wait_s = self._refresh_s
            if self._failing:
                wait_s = self._retry_s = min(self._retry_s * 2, RETRY_MAX_S if not self._found else self._refresh_s)
            if not wait_s:
                return
            await asyncio.sleep(wait_s)
            try:
                found = await self._look()
            except OSError as error:
                self._say_failing(error)
                continue
            if self._failing:
                log.info("DNS: %s resolves again", self.name)
            self._failing, self._retry_s = False, RETRY_S
            if found != self._found:
                self._found = found
                if self._on_change is not None:
                    self._on_change()

    def _say_failing(self, error: OSError) -> None:
        """Log the first of several failed lookups."""
        if not self._failing:
            self._failing = True
            still = "still using its last servers" if self._found else "it has no server yet"
            log.warning("DNS: cannot resolve the SRV records of %s (%s); %s", self.name, error.strerror, still)

    async def _look(self) -> list[Found]:
        records = await find_services(self.name)
        answers = await asyncio.gather(*(self._addresses(record.target) for record in records))
        before = {(found.server.endpoint.host, found.server.endpoint.port): found for found in self._found}
        found: list[Found] = []
        for record, weight, addresses in zip(records, weights_of(records), answers, strict=True):
            for address in addresses:
                where = Endpoint(address.host, record.port, self._server.endpoint.protocol)
                server = dataclasses.replace(
                    self._server,
                    endpoint=where,
                    weight=weight,
                    backup=self._server.backup or record.priority > records[0].priority,
                    resolve=None,
                )
                known = before.get((address.host, record.port))
                destination = known.destination if known else Destination(address.host, 0.0, (address,))
                found.append(Found(server, destination, self._source))
        if not found:
            raise OSError(0, "no target has an address")
        if len(found) > SERVERS_MAX:
            log.warning("DNS: %s has %d servers; using %d of them", self.name, len(found), SERVERS_MAX)
        return found[:SERVERS_MAX]

    async def _addresses(self, target: str) -> tuple[Address, ...]:
        try:
            addresses = await resolve(target)
            return addresses if self._special else without_special(target, addresses)
        except OSError as error:
            log.warning("DNS: %s: the target %s has no address (%s)", self.name, target, error.strerror)
            return ()
