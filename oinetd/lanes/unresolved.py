"""Listeners whose destination has no address yet. The Python lane serves them: only it can wait for a name.

When the name is resolved the listener goes to the lane that was chosen for its rule. It keeps its socket and its accept
queue. Clients that waited are served in the Python lane.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import replace

from oinetd.core.lane import Listener
from oinetd.core.service import Service
from oinetd.lanes.choose import Choice, Lanes
from oinetd.net.ports import PortKey

__all__ = ["Unresolved"]


class Unresolved:
    """The listeners that wait for a name, and how each is to be served afterwards."""

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self._choices: dict[PortKey, Choice] = {}
        self._waited: Mapping[PortKey, Choice] = {}

    def begin(self) -> None:
        """A reload begins: each of its listeners goes through `choose` again."""
        self._waited, self._choices = self._choices, {}

    def roll_back(self) -> None:
        """The reload failed: wait for the same names as before `begin`."""
        self._choices = dict(self._waited)

    def choose(self, key: PortKey, choice: Choice, service: Service, listener: Listener | None) -> Choice:
        """How to serve `service` now: by `choice`, or in the Python lane if a name of it has no address yet."""
        # A change of the lane ends UDP sessions. Resolving a name is no reason to end them; a new choice of lane is.
        waits = not service.resolved or (key in self._waited and listener is not None and listener.has_sessions)
        if choice.lane is self._lanes.python or not waits:
            return choice
        self._choices[key] = choice
        return self._lanes.choose_unresolved(choice)

    def move(self, listeners: MutableMapping[PortKey, Listener]) -> None:
        """Move those of `listeners` whose names are resolved to the lane that was chosen for them."""
        for key, choice in tuple(self._choices.items()):
            listener = listeners.get(key)
            if listener is None or not listener.service.resolved or listener.has_sessions:
                continue
            del self._choices[key]
            service = replace(listener.service, dialer=choice.dialer, engine=choice.engine)
            listeners[key] = self._lanes.change_lane(listener, choice, service)

    def __bool__(self) -> bool:
        return bool(self._choices)
