"""Sessions that leave this process, or come from another one, while an upgrade replaces the program.

A session that moves is what another process needs to go on with it: its descriptors, the bytes that are pending, and
a document. It can move between two reads, in both lanes. What is connecting, or waits for a hook, cannot.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from oinetd.core.histogram import HistogramCounts
from oinetd.core.lane import Departing, Listener
from oinetd.core.record import Ending
from oinetd.core.registry import Registry
from oinetd.lanes.choose import Lanes
from oinetd.lanes.limits import Limits
from oinetd.model import Protocol, Rule
from oinetd.net.port import PortKey, settle_port
from oinetd.net.sockets import bound_address, is_connected
from oinetd.net.unix_sockets import UnixListener

__all__ = ["Moves"]

log = logging.getLogger("oinetd")

IDS_KEPT = 100_000
"""Numbers that the old process keeps, for sessions that begin in it until its last socket is handed over."""

START_AGAIN_S = 0.2
"""Between two tries to serve a listening socket for which there was no memory or no descriptor."""

_COUNTERS = (
    "accepted", "refused", "failed", "bytes_up", "bytes_down", "datagrams_up", "datagrams_down", "datagrams_lost",
    "datagrams_forged", "rate_waits",
)  # fmt: skip


@dataclass(slots=True)
class Moves:
    """What an upgrade asks of a forwarder that runs."""

    lanes: Lanes
    listeners: dict[PortKey, Listener]
    limits: Limits
    inherited: list[socket.socket]
    """The service manager's."""
    unserved: list[socket.socket] = field(default_factory=list)
    """Unix sockets of another process that no rule has here; their files go when everything is taken over."""

    @property
    def registry(self) -> Registry:
        return self.limits.registry

    def sockets(self) -> list[socket.socket]:
        """The listening sockets of both protocols."""
        return [listener.sock for listener in self.listeners.values()]

    def pause(self) -> None:
        """Accept no more: clients wait in the accept queue, which the other process shares.

        Nor does a listener that goes to another lane meanwhile, because a name of it is resolved.
        """
        self.lanes.held_back.add(Protocol.TCP)
        for listener in self._of(Protocol.TCP):
            listener.pause()

    def resume(self) -> None:
        """Accept again, and read the UDP sockets."""
        self.registry.away.forget()
        self.start_streams()
        self.start_datagrams()

    def leave(self) -> None:
        """The listeners belong to the other process now, with the files of unix sockets."""
        for listener in self.listeners.values():
            listener.release()
            if isinstance(listener.sock, UnixListener):
                listener.sock.leave_file()
            listener.sock.close()
        self.listeners.clear()

    def let_go(self, lent: list[socket.socket]) -> None:
        """Close the sockets of another process, of which rules have copies; at the end, if a file has to go with it."""
        settled = not lent or bool(self.lanes.held_back)
        while lent:
            sock = lent.pop()
            self.inherited.remove(sock)
            if isinstance(sock, UnixListener) and sock.path:
                self.unserved.append(sock)
            else:
                sock.close()
        if not settled:
            self.settle()

    def settle(self) -> None:
        """Everything is taken over: sockets get the options that they have here, and files of unix sockets are ours."""
        managed = {(sock.type, bound_address(sock)) for sock in self.inherited}
        for key, listener in self.listeners.items():
            place, service = (listener.sock.type, bound_address(listener.sock)), listener.service
            settle_port(key, listener.sock, service.settings, service.route.rule.options, managed=place in managed)
        for sock in (*self.sockets(), *self.unserved):
            if isinstance(sock, UnixListener):
                sock.lent = False
        while self.unserved:
            self.unserved.pop().close()

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
        """Start the listeners. What has no memory or descriptor now is tried again: whoever gives up for it would take
        sessions along that have moved already."""
        self.lanes.held_back.discard(protocol)
        late = []
        for listener in self._of(protocol):
            try:
                listener.start()
            except (OSError, MemoryError) as error:
                log.error("%s: not served yet (%s); trying again", listener.service.route, _reason(error))
                late.append(listener)
        if late:
            asyncio.get_running_loop().call_later(START_AGAIN_S, self._start_again, protocol, late)

    def _start_again(self, protocol: Protocol, waiting: list[Listener]) -> None:
        late = []
        for listener in waiting:
            if protocol in self.lanes.held_back or listener not in self._of(protocol):
                continue  # `_start` follows, or nobody wants it any more
            try:
                listener.start()
            except (OSError, MemoryError):
                late.append(listener)
            else:
                log.info("%s: served now", listener.service.route)
        if late:
            asyncio.get_running_loop().call_later(START_AGAIN_S, self._start_again, protocol, late)

    def _of(self, protocol: Protocol) -> list[Listener]:
        return [listener for key, listener in self.listeners.items() if key.protocol is protocol]

    # Out

    def take_out(self, at_most: int) -> tuple[list[Departing], int]:
        """Take out connections that can move; the second value is how many of the others may be able to soon."""
        found, left = self.lanes.take_out(at_most)
        return self._away(found), left

    def take_out_datagrams(self, at_most: int) -> list[Departing]:
        """Stop reading UDP sockets, and take out their sessions; nothing is left when the list is empty."""
        found: list[Departing] = []
        listeners = self._of(Protocol.UDP)
        self.lanes.held_back.add(Protocol.UDP)
        for listener in listeners:
            listener.pause()
        for listener in listeners:
            if len(found) < at_most:
                found += listener.take_out(at_most - len(found))
        return self._away(found)

    def _away(self, found: list[Departing]) -> list[Departing]:
        for each in found:
            self.registry.away.leave(each.id)
        return found

    def put_back(self, each: Departing) -> None:
        """A session goes on here."""
        self._go_on(each.id, each.put_back)

    def _go_on(self, number: int, begin: Callable[[], object]) -> None:
        """Let a session go on here, and end it if that was said meanwhile."""
        killed = self.registry.away.come_back(number)
        try:
            begin()
        except (OSError, MemoryError) as error:
            log.error("session %d ends: %s", number, _reason(error))
        if killed:  # once it has begun: what is cancelled before could not clean up
            asyncio.get_running_loop().call_soon(lambda: self.lanes.kill(number, known=True))

    @property
    def staying(self) -> int:
        """How many sessions there are."""
        return self.registry.count

    # In

    def adopt(
        self, state: Mapping[str, Any], fds: tuple[int, ...], pending: tuple[bytes, bytes]
    ) -> Callable[[], object] | None:
        """Take over a session of another process and its descriptors; None if no rule wants it.

        It goes on when the result is called: not before that process knows, or both might go on with it. Raises
        `ValueError`, `TypeError`, `KeyError` or `OSError` if `state` is not the document of a session.
        """
        listener = self._listener_for(state)
        if listener is None:
            return None
        route = listener.service.route
        udp = {Protocol.UDP: socket.SOCK_DGRAM}
        kinds = [udp.get(end.protocol, socket.SOCK_STREAM) for end in (route.bind, route.connect)]
        if route.bind.protocol is Protocol.UDP:
            del kinds[0]  # its clients share the listening socket
        if len(fds) != len(kinds) or not all(map(is_connected, fds, kinds)):
            raise ValueError("not the sockets of a session")
        for fd in fds:
            os.set_blocking(fd, False)
        begin, number = listener.adopt(state, fds, pending), int(state["id"])
        if begin is None:
            return None
        self.registry.away.leave(number)  # until it goes on
        return partial(self._go_on, number, begin)

    def _listener_for(self, state: Mapping[str, Any]) -> Listener | None:
        """The listener that has its socket, of UDP sessions, or its address, of connections."""
        if "socket" in state:
            udp = (each for each in self._of(Protocol.UDP) if str(bound_address(each.sock)) == state["socket"])
            return next(udp, None)
        return next((each for each in self._of(Protocol.TCP) if str(each.service.route.bind) == state["bind"]), None)

    # Counters

    def id_for_another(self) -> int:
        """From which number on another process may number its sessions, while UDP sessions still begin here."""
        return self.registry.gate.next_id() + IDS_KEPT

    def number_from(self, least: int) -> None:
        """Number the sessions to come from `least` on, at least."""
        self.registry.gate.skip_ids(least)

    def counters(self) -> dict[str, Any]:
        """The totals of each rule, without the sessions that have moved: those are counted where they live. And which
        of those are to end."""
        times = self.lanes.histograms()
        stats = self.limits.completed(self.registry.stats(self.lanes.totals()))
        rules: list[object] = []
        for rule, found in stats.rules.items():
            counts: dict[str, int] = {name: getattr(found, name) for name in (*_COUNTERS, "times_full")}
            counts["accepted"] -= self.lanes.native.departures.moved[rule.identity]
            rules.append(
                [
                    _name_of(rule),
                    counts,
                    {ending.value: count for ending, count in found.endings.items() if count},
                    [[list(each.counts), each.sum_s] for each in times.get(rule.identity, ())],
                ]
            )
        return {
            "rules": rules,
            "times_full": stats.times_full,
            "killed": sorted(self.registry.away.killed),
        }

    def restore(self, counters: Mapping[str, Any]) -> None:
        """Count on from the totals of another process, and end what was to end there. Raises as `adopt` does."""
        known = {_name_of(rule): rule for rule in self.registry.rules()}
        words = {ending.value: ending for ending in Ending}
        self.limits.count_on(None, int(counters.get("times_full", 0)))
        for name, counts, endings, times in counters["rules"]:
            if (rule := known.get(str(name))) is None:
                continue
            entry = self.registry.of(rule)
            for each in _COUNTERS:
                setattr(entry.stats, each, getattr(entry.stats, each) + int(counts.get(each, 0)))
            entry.stats.endings += Counter(
                {words[word]: int(count) for word, count in endings.items() if word in words}
            )
            self.limits.count_on(rule, int(counts.get("times_full", 0)))
            if times:
                durations, connects = (HistogramCounts(tuple(map(int, each)), float(sum_s)) for each, sum_s in times)
                entry.times.count_on(durations, connects)
        self.end(int(session_id) for session_id in counters.get("killed", ()))

    def killed_late(self, told: Iterable[int]) -> list[int]:
        """The sessions of the other process that are to end and that `counters` has not `told`. From now on this
        process knows none of them."""
        late = sorted(self.registry.away.killed.difference(told))
        self.registry.away.forget()
        return late

    def end(self, session_ids: Iterable[int]) -> None:
        """End what was to end in another process."""
        for session_id in session_ids:
            self.lanes.kill(session_id)


def _reason(error: OSError | MemoryError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or "out of memory"


def _name_of(rule: Rule) -> str:
    """A text for a rule that is the same in both processes, and another for each rule."""
    options = rule.options
    names = (*(options.sni or ()), *(f"/{protocol}" for protocol in options.alpn or ()))
    return " ".join((str(rule.bind), *names))
