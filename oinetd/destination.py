"""Where connections go: a name, its addresses of the moment, and when to ask again.

A name is looked up at start, every `dns_refresh_s`, and when connecting failed three times in a row. Lookups run in
the loop's executor, so that a slow resolver holds up nobody; connections use the addresses known so far.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
from collections.abc import Callable

from oinetd.errors import ConfigError, Problem
from oinetd.model import Config, Origin, Rule
from oinetd.sockets import Address, is_numeric, lookup

__all__ = ["Destination", "Destinations"]

log = logging.getLogger("oinetd")

FAILURES_BEFORE_LOOKUP = 3
"""Connects that fail in a row before the name is asked for again."""
LOOKUP_PAUSE_S = 1.0
"""Least time between two lookups that failures asked for: a dead destination must not flood the resolver."""


class Destination:
    """The addresses of one host, a name or a number; `on_change` is called when a lookup brought others."""

    def __init__(self, host: str, refresh_s: float, addresses: tuple[Address, ...] = ()) -> None:
        self.host = host
        self.refresh_s = refresh_s
        self._addresses = addresses
        self._at: dict[int, tuple[Address, ...]] = {}
        self.on_change: Callable[[], object] | None = None
        self.refusals = 0
        self._failures = 0
        self._timer: asyncio.TimerHandle | None = None
        self._lookup: asyncio.Task[None] | None = None
        self._looked_up_at = 0.0
        self._in_trouble = False
        self._stopped = False

    async def resolve(self, origin: Origin, what: str = "destination") -> None:
        """Look the name up for the first time. Raises `ConfigError` where it has no address."""
        try:
            self._addresses = await self._ask()
        except OSError as error:
            hint = "check the spelling and the resolver (`getent hosts NAME`)"
            if is_numeric(self.host):
                hint = "check the scope: it has to be an interface of this machine (`ip link`)"
            raise ConfigError(
                Problem(
                    f"the {what} {self.host} cannot be resolved: {error.strerror or error}",
                    file=origin.file,
                    line=origin.line,
                    hint=hint,
                )
            ) from error

    def at(self, port: int) -> tuple[Address, ...]:
        """The addresses of the moment, with `port`, in the order in which they are to be tried."""
        found = self._at.get(port)
        if found is None:
            found = self._at[port] = tuple(address.at(port) for address in self._addresses)
        return found

    def start(self) -> None:
        """Keep the addresses fresh from now on; nothing to do for a number."""
        if not is_numeric(self.host) and self.refresh_s > 0:
            self._timer = asyncio.get_running_loop().call_later(self.refresh_s, self._refresh)

    def stop(self) -> None:
        """End refreshing; a lookup under way is dropped. Sessions that dial meanwhile use what is known."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._lookup is not None:
            self._lookup.cancel()
            self._lookup = None
        self.on_change = None

    def connected(self) -> None:
        """To be called when an address took a connection."""
        self._failures = 0

    def failed(self) -> None:
        """To be called when no address took a connection."""
        self._failures += 1
        if self._failures >= FAILURES_BEFORE_LOOKUP:
            self._failures = 0
            self.look_up_again()

    def refused(self) -> None:
        """To be called when datagrams were refused: the next UDP session begins with the next address."""
        self.refusals += 1
        self.failed()

    def look_up_again(self) -> None:
        """The addresses do not serve: ask for others, but not more often than `LOOKUP_PAUSE_S`."""
        loop = asyncio.get_running_loop()
        due = loop.time() - self._looked_up_at >= LOOKUP_PAUSE_S
        if due and self._lookup is None and not self._stopped and not is_numeric(self.host):
            self._lookup = loop.create_task(self._update())

    def _refresh(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self.refresh_s, self._refresh)
        if self._lookup is None:
            self._lookup = asyncio.get_running_loop().create_task(self._update())

    async def _ask(self) -> tuple[Address, ...]:
        if is_numeric(self.host):
            return lookup(self.host)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, lookup, self.host)

    async def _update(self) -> None:
        try:
            found = await self._ask()
        except (OSError, socket.gaierror) as error:
            if not self._in_trouble:
                log.warning(
                    "%s cannot be resolved now (%s); its last addresses stay in use",
                    self.host,
                    error.strerror or error,
                )
            self._in_trouble = True
        else:
            if self._in_trouble:
                log.info("%s is resolved again", self.host)
            self._in_trouble = False
            # The resolver rotates its answers; only another set of addresses is a change.
            if set(found) != set(self._addresses):
                log.info("%s is now %s", self.host, ", ".join(address.host for address in found))
                self._addresses = found
                self._at.clear()
                if self.on_change is not None:
                    self.on_change()
        finally:
            self._looked_up_at = asyncio.get_running_loop().time()
            self._lookup = None


class Destinations:
    """Every host that the rules of `config` name, looked up once: where connections go and, for `src=`, come from."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._hosts: dict[tuple[str, float], tuple[Destination, Rule, str]] = {}
        for rule in config.rules:
            key = self._key(rule)
            self._hosts.setdefault(key, (Destination(*key), rule, "destination"))
            if rule.options.source is not None:
                key = rule.options.source, key[1]
                self._hosts.setdefault(key, (Destination(*key), rule, "source address"))

    def _key(self, rule: Rule) -> tuple[str, float]:
        return rule.connect.address, self._config.settings_of(rule).dns_refresh_s

    async def resolve(self) -> None:
        """Look all of them up for the first time. Raises `ConfigError` with all that have no address."""
        answers = await asyncio.gather(
            *(destination.resolve(rule.origin, what) for destination, rule, what in self._hosts.values()),
            return_exceptions=True,
        )
        problems: list[Problem] = []
        for answer in answers:
            if isinstance(answer, ConfigError):
                problems += answer.problems
            elif isinstance(answer, BaseException):
                raise answer
        if problems:
            raise ConfigError(*problems)

    def of(self, rule: Rule) -> Destination:
        """Where the connections of `rule` go."""
        return self._hosts[self._key(rule)][0]

    def source_of(self, rule: Rule) -> Destination | None:
        """Where the outgoing connections of `rule` come from; None where the kernel chooses."""
        source = rule.options.source
        return self._hosts[source, self._key(rule)[1]][0] if source is not None else None

    def start(self, on_change: Callable[[Destination], object]) -> None:
        """Keep the addresses fresh from now on; `on_change` is told of each that has others."""
        for destination, _, _ in self._hosts.values():
            destination.on_change = functools.partial(on_change, destination)
            destination.start()

    def stop(self) -> None:
        """End refreshing."""
        for destination, _, _ in self._hosts.values():
            destination.stop()
