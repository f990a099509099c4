"""All hosts in the rules of a configuration, each resolved once and kept over reloads."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Iterator

from oinetd.errors import ConfigError, Problem
from oinetd.model import Config, Rule
from oinetd.net.sockets import is_numeric
from oinetd.upstream.destination import START_PATIENCE_S, Destination, DestinationState

__all__ = ["Destinations"]

RELOAD_PATIENCE_S = 1.0
"""How long a reload waits for new names; known names keep their addresses meanwhile."""


class Destinations:
    """All destinations in the rules of `config`, and the source addresses of `src=`.

    Those that are also in `before` are the same objects, with their known addresses.
    """

    def __init__(self, config: Config, before: Destinations | None = None) -> None:
        self._config = config
        self._known = before._hosts if before is not None else {}
        self._first = before is None
        self._hosts: dict[tuple[str, float], tuple[Destination, Rule, str]] = {}
        for rule in config.rules:
            self._add(self._key(rule), rule, "destination")
            if rule.options.source:
                self._add((rule.options.source, self._key(rule)[1]), rule, "source address")

    def _add(self, key: tuple[str, float], rule: Rule, what: str) -> None:
        if key in self._hosts:
            return
        if key in self._known:
            destination = self._known[key][0]
        else:
            # With another refresh time it is a new object, which takes the known addresses.
            same = (each for (host, _), (each, _, _) in self._known.items() if host == key[0] and each.resolved)
            found = next(same, None)
            destination = Destination(*key, tuple(each.at(0) for each in found.at(0)) if found is not None else ())
        self._hosts[key] = destination, rule, what

    def _key(self, rule: Rule) -> tuple[str, float]:
        return rule.connect.address, self._config.settings_of(rule).dns_refresh_s

    def __iter__(self) -> Iterator[Destination]:
        return (destination for destination, _, _ in self._hosts.values())

    async def resolve(self) -> None:
        """Resolve the hosts that have no address. Raises `ConfigError` with all unknown names.

        Waits `START_PATIENCE_S`, on reload `RELOAD_PATIENCE_S`. A host without an answer then has no addresses yet.
        """
        patience_s = START_PATIENCE_S if self._first else RELOAD_PATIENCE_S
        asked = [(each, rule, what) for each, rule, what in self._hosts.values() if not each.resolved]
        try:
            answers = await asyncio.gather(
                *(destination.resolve(rule.origin, what, patience_s) for destination, rule, what in asked),
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
        return self._hosts[self._key(rule)][0]

    def source_of(self, rule: Rule) -> Destination | None:
        """The source address of `rule`; None if the kernel chooses it."""
        source = rule.options.source
        return self._hosts[source, self._key(rule)[1]][0] if source else None

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
