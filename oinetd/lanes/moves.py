"""Sessions that leave this process, or come from another one, while an upgrade replaces the program.

A session that moves is what another process needs to go on with it: two descriptors, the bytes that are pending, and
a document. Sessions of the native lane can move between two reads. Those of the Python lane stay: hooks of this program
are in them.
"""

from __future__ import annotations

import logging
import socket
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from oinetd.core.lane import Departing, Listener
from oinetd.core.record import Ending
from oinetd.core.registry import Registry
from oinetd.lanes.choose import Lanes
from oinetd.model import Protocol
from oinetd.net.ports import PortKey
from oinetd.net.unix_sockets import UnixListener

__all__ = ["Moves"]

log = logging.getLogger("oinetd")

_COUNTERS = (
    "accepted", "refused", "failed", "bytes_up", "bytes_down", "datagrams_up", "datagrams_down", "datagrams_lost",
    "datagrams_forged", "times_full",
)  # fmt: skip


@dataclass(slots=True)
class Moves:
    """What an upgrade asks of a forwarder that runs."""

    lanes: Lanes
    listeners: dict[PortKey, Listener]
    registry: Registry

    def sockets(self) -> list[socket.socket]:
        """The listening sockets of both protocols."""
        return [listener.sock for listener in self.listeners.values()]

    def pause(self) -> None:
        """Accept no more: clients wait in the accept queue, which the other process shares."""
        for listener in self._of(Protocol.TCP):
            listener.release()

    def resume(self) -> None:
        """Accept again."""
        for listener in self.listeners.values():
            try:
                listener.start()
            except OSError as error:
                log.error("%s: not served after a failed upgrade: %s", listener.service.route, error.strerror)

    def leave(self) -> None:
        """The listeners belong to the other process now, with the files of unix sockets."""
        for listener in self.listeners.values():
            listener.release()
            if isinstance(listener.sock, UnixListener):
                listener.sock.leave_file()
            listener.sock.close()
        self.listeners.clear()

    def end_datagrams(self) -> None:
        """Stop reading UDP sockets."""
        for listener in self._of(Protocol.UDP):
            listener.release()

    def hold_back(self) -> None:
        """Serve nothing until `start_streams` and `start_datagrams`."""
        self.lanes.held_back = {Protocol.TCP, Protocol.UDP}

    def start_streams(self) -> None:
        """Accept connections, which were held back."""
        self._start(Protocol.TCP)

    def start_datagrams(self) -> None:
        """Read the UDP sockets, which were held back."""
        self._start(Protocol.UDP)

    def _start(self, protocol: Protocol) -> None:
        self.lanes.held_back.discard(protocol)
        for listener in self._of(protocol):
            listener.start()

    def _of(self, protocol: Protocol) -> list[Listener]:
        return [listener for key, listener in self.listeners.items() if key.protocol is protocol]

    def take_out(self, at_most: int) -> tuple[list[Departing], int]:
        """Take out sessions that can move; the second value is how many of the others may be able to soon."""
        return self.lanes.native.departures.take_out(at_most) if self.lanes.native.running else ([], 0)

    @property
    def staying(self) -> int:
        """How many sessions there are."""
        return self.registry.count

    def adopt(
        self, state: Mapping[str, Any], fds: tuple[int, int], pending: tuple[bytes, bytes]
    ) -> Callable[[], None] | None:
        """Take over a session of another process and its descriptors; None if no rule wants it.

        It goes on when the result is called: not before that process knows, or both might go on with it. Raises
        `ValueError`, `TypeError` or `KeyError` if `state` is not the document of a session.
        """
        if not self.lanes.native.running:
            return None
        bind = state["bind"]
        for listener in self._of(Protocol.TCP):
            if str(listener.service.route.bind) == bind:
                return self.lanes.native.departures.adopt(listener, state, fds, pending)
        return None

    # Counters

    def counters(self) -> dict[str, Any]:
        """The totals of each rule, without the sessions that have moved: those are counted where they live."""
        rules = []
        for rule, stats in self.registry.stats(self.lanes.totals()).rules.items():
            counts = {name: getattr(stats, name) for name in _COUNTERS}
            counts["accepted"] -= self.lanes.native.departures.moved[rule.identity]
            rules.append(
                [
                    str(rule.bind),
                    counts,
                    {ending.value: count for ending, count in stats.endings.items() if count},
                ]
            )
        return {"next_id": self.registry.gate.next_id(), "rules": rules}

    def restore(self, counters: Mapping[str, Any]) -> None:
        """Count on from the totals of another process. Raises as `adopt` does."""
        self.registry.gate.skip_ids(int(counters["next_id"]))
        known = {str(rule.bind): rule for rule in self.registry.rules()}
        words = {ending.value: ending for ending in Ending}
        for bind, counts, endings in counters["rules"]:
            if (rule := known.get(bind)) is None:
                continue
            stats = self.registry.of(rule).stats
            for name in _COUNTERS:
                setattr(stats, name, getattr(stats, name) + int(counts.get(name, 0)))
            stats.endings += Counter({words[word]: int(count) for word, count in endings.items() if word in words})
