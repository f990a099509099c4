"""Listeners whose destination has no address yet: the Python lane serves them, because somebody has to wait for it.

When the name is resolved the listener goes to the lane that was chosen for its rule. Its socket and its queue stay, and
clients that waited are served where they waited.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import replace

from oinetd.core.lane import Listener
from oinetd.core.service import Service
from oinetd.lanes.choose import Choice, Lanes
from oinetd.net.ports import PortKey

__all__ = ["Unresolved"]


class Unresolved:
    """Which listeners wait for a name, and how each is to be served then."""

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self._choices: dict[PortKey, Choice] = {}
        self._waited: frozenset[PortKey] = frozenset()

    def clear(self) -> None:
        """Begin anew: every listener is chosen for again."""
        self._waited = frozenset(self._choices)
        self._choices.clear()

    def choose(self, key: PortKey, choice: Choice, service: Service, listener: Listener | None) -> Choice:
        """How to serve `service` now: by `choice`, or in the Python lane where a name of it has no address yet."""
        # Who began while it waited is not ended for that; who asks for another lane is.
        waits = not service.resolved or (key in self._waited and listener is not None and listener.has_sessions)
        if choice.lane is self._lanes.python or not waits:
            return choice
        self._choices[key] = choice
        return self._lanes.choose_unresolved(choice)

    def move(self, listeners: MutableMapping[PortKey, Listener]) -> None:
        """Give those of `listeners` whose names are resolved to the lane that was chosen for them."""
        for key, choice in tuple(self._choices.items()):
            listener = listeners.get(key)
            if listener is None or not listener.service.resolved or listener.has_sessions:
                continue
            del self._choices[key]
            service = replace(listener.service, dialer=choice.dialer, engine=choice.engine)
            listeners[key] = self._lanes.change_lane(listener, choice, service)

    def __bool__(self) -> bool:
        return bool(self._choices)
