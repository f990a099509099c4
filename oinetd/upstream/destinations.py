"""All hosts in the rules of a configuration, each resolved once and kept over reloads."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Iterator

from oinetd.errors import ConfigError, Problem
from oinetd.model import Config, Origin, Rule
from oinetd.net.sockets import is_numeric
from oinetd.servers import Server, Upstream
from oinetd.upstream.destination import START_PATIENCE_S, Destination, DestinationState
from oinetd.upstream.original import Original

__all__ = ["Destinations"]

RELOAD_PATIENCE_S = 1.0
"""How long a reload waits for new names; known names keep their addresses meanwhile."""

_Key = tuple[str, float, bool]
"""A host, how often it is resolved again, and whether special addresses may be used."""


def _server_key(server: Server, upstream: Upstream, refresh_s: float) -> _Key:
    host = server.endpoint.address
    return host, refresh_s, upstream.options.allow_special or is_numeric(host)


class Destinations:
    """All destinations in the rules of `config`, and the source addresses of `src=`.

    Those that are also in `before` are the same objects, with their known addresses.
    """

    def __init__(self, config: Config, before: Destinations | None = None) -> None:
        self._config = config
        self._known = before._hosts if before is not None else {}
        self._first = before is None
        self._hosts: dict[_Key, tuple[Destination, Origin, str]] = {}
        self._originals: dict[Rule, Destination] = {}
        for rule in config.rules:
            if rule.connect.is_original:
                self._originals[rule] = Original(rule)
            elif rule.upstream is None:
                self._add(self._key(rule), rule.origin, "destination")
            else:
                self._add_servers(rule.upstream, self.refresh_of(rule))
            if rule.options.source_host:
                self._add((rule.options.source_host, self.refresh_of(rule), True), rule.origin, "source address")

    def _add_servers(self, upstream: Upstream, refresh_s: float) -> None:
        for server in upstream.servers:
            if server.is_address:
                self._add(_server_key(server, upstream, refresh_s), server.origin, "server")
            source = server.source or upstream.options.source
            if source:
                self._add((source, refresh_s, True), server.origin, "source address")

    def _add(self, key: _Key, origin: Origin, what: str) -> None:
        if key in self._hosts:
            return
        if key in self._known:
            destination = self._known[key][0]
        else:
            # With another refresh time it is a new object, which takes the known addresses.
            same = (
                each
                for (host, _, special), (each, _, _) in self._known.items()
                if (host, special) == (key[0], key[2]) and each.resolved
            )
            found = next(same, None) if not is_numeric(key[0]) else None
            known = tuple(each.at(0) for each in found.at(0)) if found is not None else ()
            destination = Destination(key[0], key[1], known, special=key[2])
        self._hosts[key] = destination, origin, what

    def refresh_of(self, rule: Rule) -> float:
        """How often the names of a rule are resolved again; those of a group with a name, as all rules say."""
        if rule.upstream is not None and rule.upstream.name:
            return self._config.settings.dns_refresh_s
        return self._config.settings_of(rule).dns_refresh_s

    def _key(self, rule: Rule) -> _Key:
        return rule.connect.address, self.refresh_of(rule), True

    def of_server(self, server: Server, upstream: Upstream, refresh_s: float) -> Destination | None:
        """The host of a server; None if it has none."""
        return self._hosts[_server_key(server, upstream, refresh_s)][0] if server.is_address else None

    def source_of_server(self, server: Server, upstream: Upstream, refresh_s: float) -> Destination | None:
        """The source address of a server, or of its group; None if that is the rule's."""
        source = server.source or upstream.options.source
        return self._hosts[source, refresh_s, True][0] if source else None

    def __iter__(self) -> Iterator[Destination]:
        return (destination for destination, _, _ in self._hosts.values())

    async def resolve(self) -> None:
        """Resolve the hosts that have no address. Raises `ConfigError` with all unknown names.

        Waits `START_PATIENCE_S`, on reload `RELOAD_PATIENCE_S`. A host without an answer then has no addresses yet.
        """
        patience_s = START_PATIENCE_S if self._first else RELOAD_PATIENCE_S
        asked = [(each, origin, what) for each, origin, what in self._hosts.values() if not each.resolved]
        try:
            answers = await asyncio.gather(
                *(destination.resolve(origin, what, patience_s) for destination, origin, what in asked),
                return_exceptions=True,
            )
        except BaseException:
            self.discard()
            raise
        problems: list[Problem] = []
        for answer in answers:
            if isinstance(answer, ConfigError):
                problems += answer.problems
            elif isinstance(answer, BaseException):
                raise answer
        if problems:
            self.discard()
            raise ConfigError(*problems)

    def of(self, rule: Rule) -> Destination:
        """The destination of `rule`."""
        return self._originals[rule] if rule.connect.is_original else self._hosts[self._key(rule)][0]

    def source_of(self, rule: Rule) -> Destination | None:
        """The source address of `rule`; None if the kernel chooses it."""
        source = rule.options.source_host
        return self._hosts[source, self.refresh_of(rule), True][0] if source else None

    def start(self, on_change: Callable[[Destination], object]) -> None:
        """Replace the hosts of `before`: refresh the addresses from now on, and resolve known names again now.

        `on_change` is called with a destination whose addresses changed.
        """
        for key, (destination, _, _) in self._known.items():
            if self._hosts.get(key, (None,))[0] is not destination:
                destination.stop()
        for key, (destination, _, _) in self._hosts.items():
            destination.on_change = functools.partial(on_change, destination)
            if key in self._known:
                destination.look_up_now()
            destination.start()
        self._known = {}

    def states(self) -> list[DestinationState]:
        """The state of each name, and of each address that fails."""
        states = {each.host: each.state for each in self}
        return [state for host, state in states.items() if not is_numeric(host) or state.failing]

    @contextlib.contextmanager
    def unless_it_fails(self) -> Iterator[None]:
        """Call `discard` if the body raises."""
        try:
            yield
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Stop the hosts that are not in `before`: this configuration does not come into force."""
        for key, (destination, _, _) in self._hosts.items():
            if key not in self._known:
                destination.stop()

    def stop(self) -> None:
        """Stop refreshing."""
        for destination, _, _ in self._hosts.values():
            destination.stop()
