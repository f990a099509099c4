"""Listening sockets in the hands of the reactors, TCP and UDP."""

from __future__ import annotations

import socket
from collections.abc import Callable

from oinetd.core.service import Service
from oinetd.lanes.native.lane import NativeLane
from oinetd.model import AccessRule

__all__ = ["ReactorDatagrams", "ReactorListener"]


class ReactorListener:
    """A listening socket that `lane` serves; `keys` is where it is found by the lane's number for it."""

    native = True

    def __init__(self, lane: NativeLane, keys: dict[int, ReactorListener], sock: socket.socket, service: Service):
        self.sock = sock
        self.service = service
        self._lane = lane
        self._keys = keys
        self._key = 0

    def start(self) -> None:
        """Serve from now on. Raises `OSError` where the machine has no room to watch the socket."""
        if not self._key:
            self._key = self._lane.add(self.sock, self.service)
            self._keys[self._key] = self

    def replace_service(self, service: Service) -> None:
        """Serve the sessions to come differently."""
        self.service = service
        if self._key:
            self._lane.replace(self._key, service)

    def refresh(self) -> None:
        """The destination, or where its sockets are bound to, has other addresses."""
        if self._key:
            self._lane.refresh(self._key)

    def release(self) -> None:
        """Accept no more; over UDP its sessions end."""
        if self._key:
            self._lane.remove(self._key)
            del self._keys[self._key]
            self._key = 0

    def emptied(self) -> None:
        """The last session of a UDP socket that lingers has ended."""


class ReactorDatagrams(ReactorListener):
    """A UDP socket, which belongs to one of the reactors."""

    on_closed: Callable[[], object] | None = None
    _judged: tuple[tuple[AccessRule, ...], ...] = ()

    def start(self) -> None:
        super().start()
        self._judged = (self.service.global_access, self.service.route.rule.access)

    def revoke(self, access: tuple[AccessRule, ...]) -> int:
        """End the sessions that the global rules `access`, or the rule's own, refuse; how many those were."""
        by = (access, self.service.route.rule.access)
        if not self._key or by == self._judged:
            return 0
        self._judged = by
        return self._lane.revoke(self._key, access)

    def replace_service(self, service: Service) -> None:
        """Serve the clients to come differently; it lingers no more."""
        self.on_closed = None
        super().replace_service(service)

    def linger(self, on_closed: Callable[[], object]) -> None:
        """Let nobody new in, and close with the last session; `on_closed` is called then, perhaps at once."""
        self.on_closed = on_closed
        if not self._key or not self._lane.linger(self._key):
            self.end()

    def end(self) -> None:
        """End every session; a listener that lingers closes with that."""
        on_closed, self.on_closed = self.on_closed, None
        self.release()
        if on_closed is not None:
            self.sock.close()
            on_closed()

    def emptied(self) -> None:
        # It may have come back, and be about to go again with other sessions.
        if self.on_closed is not None and self._lane.is_empty(self._key):
            self.end()
