"""Which lane serves a rule, and why; what the forwarder asks of all lanes together.

- The native lane gives the listening socket to the reactors, which do everything from accept to end.
- The Python lane runs a `Session` for each connection. It serves what needs Python: an `admit` hook, a machine without
  the extension, rules between UDP and TCP, and rules that ask for it. With `admit` the native engine still relays; with
  `tap` it cannot.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

from oinetd.core.dial import Dialer
from oinetd.core.engine import Engine
from oinetd.core.histogram import HistogramCounts
from oinetd.core.lane import AccessCheck, Departing, Lane, Listener
from oinetd.core.record import SessionRecord, Totals
from oinetd.core.registry import Registry
from oinetd.core.service import Service, Watcher
from oinetd.core.stats import ReactorStats
from oinetd.lanes.native.lane import NativeLane
from oinetd.lanes.python.lane import PythonLane
from oinetd.model import Config, Endpoint, EngineChoice, Protocol, Rule
from oinetd.net.forking import Held
from oinetd.net.poller import Poller
from oinetd.net.ports import PortKey
from oinetd.upstream.loops import Bound, Loops

__all__ = ["Choice", "Lanes"]

log = logging.getLogger("oinetd")

QUIET_LOOK_S = 0.02
"""Time between two looks for UDP sessions that need not be waited for."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The lane that serves a rule, the engine and the dialer if it is a lane in Python, and the reason."""

    lane: Lane
    engine: Engine
    dialer: Dialer
    why: str

    def __str__(self) -> str:
        return f"{self.lane.label(self.engine)}: {self.why}"


class Lanes:
    """The lanes of one forwarder, on one loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        registry: Registry,
        watcher: Watcher,
        loops: Loops,
        *,
        hooked: bool,
        tapped: bool = False,
    ) -> None:
        self._loop = loop
        self._registry = registry
        self.poller = Poller(loop)
        self._held = Held(self.poller)
        self.native = NativeLane(loop, registry, watcher, loops, self._held, hooked=hooked, tapped=tapped)
        self.python = PythonLane(loop, self.poller, registry, tapped=tapped)
        self._tapped = tapped
        self._by_preference: tuple[Lane, ...] = (self.native, self.python)
        self.lingering: dict[PortKey, Listener] = {}
        self._quiet_at = 0.0
        self.held_back: set[Protocol] = set()

    @property
    def _running(self) -> list[Lane]:
        return [lane for lane in self._by_preference if lane.running]

    # Which lane

    def choose(self, config: Config, rule: Rule) -> Choice:
        """How `rule` is to be served. Raises `EngineUnavailable` if it insists on an engine that cannot serve it."""
        wanted = config.settings_of(rule).engine
        reasons = []
        for lane in self._by_preference:
            reason = lane.eligible(config, rule)
            if reason is None:
                break
            reasons.append(reason)
        native = self.native.engine if self.native.running and wanted is not EngineChoice.PYTHON else None
        why = reasons[0] if reasons else "asked for" if wanted is EngineChoice.NATIVE else "default"
        tcp = Protocol.UDP not in (rule.bind.protocol, rule.connect.protocol)
        if self._tapped and not tcp:
            why += "; tap sees only TCP"
        engine, dialer = self.python.means(config, rule, native)
        if lane is self.python and native not in (None, engine) and tcp and not self._tapped:
            why += "; bandwidth-per-rule and bandwidth-per-source need the Python engine"
        return Choice(lane, engine, dialer, why)

    def choose_unresolved(self, choice: Choice) -> Choice:
        """How a rule of `choice` is served while a name of it has no address: only the Python lane can wait for one."""
        return replace(choice, lane=self.python, why="until its name is resolved")

    # Listeners

    def serve(self, choice: Choice, sock: socket.socket, service: Service) -> Listener:
        """Serve `sock` by `choice` from now on; in the Python lane if the reactors have no room for it."""
        self._held.listening.add(sock)
        start = service.route.bind.protocol not in self.held_back
        try:
            return choice.lane.serve(sock, service, start=start)
        except OSError as error:
            if choice.lane is self.python:
                raise
            log.warning("%s: the Python lane serves, the reactors cannot: %s", service.route, error.strerror)
            return self.python.serve(sock, service, start=start)

    def change_lane(self, listener: Listener, choice: Choice, service: Service) -> Listener:
        """Serve the socket of `listener` by `choice`, in another lane; its UDP sessions end."""
        listener.release()
        return self.serve(choice, listener.sock, service)

    def retire(self, key: PortKey, listener: Listener, *, ours: bool = True, handshakes: bool = False) -> None:
        """Serve the accept queue, then close the socket; see `Retired.take`. UDP closes with its last session."""
        if key.protocol is Protocol.UDP:
            self.lingering[key] = listener
            listener.linger(lambda: self.lingering.pop(key, None))
            return
        listener.release()
        self.python.retire(listener.sock, listener.service, ours=ours, handshakes=handshakes)

    @property
    def retired(self) -> list[socket.socket]:
        """Listening sockets that still wait for handshakes or for places; another one may share the port."""
        return self.python.retired

    def close_retired(self, *, only_unix: bool = False) -> None:
        """Close listeners that still wait for handshakes or for places; their addresses are free then."""
        self.python.close_retired(only_unix=only_unix)

    # Reload

    @property
    def reactors(self) -> int:
        """The number of native threads."""
        return sum(lane.reactors for lane in self._running)

    def reactor_stats(self) -> list[ReactorStats]:
        """The native threads and what lives on them."""
        counts = self.native.hub.reactor_counts() if self.native.running else []
        return [
            ReactorStats(thread, streams + datagrams, moved, polling)
            for thread, streams, datagrams, moved, polling in counts
        ]

    def reconfigure(self, config: Config) -> None:
        """Apply the settings that belong to no listener."""
        for lane in self._running:
            lane.reconfigure(config)

    def set_own_listeners(self, datagrams: Iterable[Bound]) -> None:
        """The UDP listeners of all lanes: a datagram from one of them is a forwarding loop."""
        for lane in self._running:
            lane.set_own_listeners(datagrams)

    def limit_datagrams(self, sessions_max: int) -> None:
        """Set the limit of UDP sessions; those above it end."""
        self._registry.datagrams.set_limits(sessions_max, 0)
        for lane in reversed(self._running):
            lane.trim_datagrams()

    def check_access(self, rules: AccessCheck) -> Counter[Rule]:
        """The number of live connections of each rule that its access rules refuse."""
        return sum((Counter(lane.check_access(rules)) for lane in self._running), Counter())

    def report_each_session(self, each: bool) -> None:
        """Whether the watcher is to hear of each session; otherwise totals are enough."""
        for lane in self._running:
            lane.report_each_session(each)

    # Sessions

    @property
    def busy(self) -> bool:
        """Whether a client waits or a session lives that the registry does not know."""
        return any(lane.busy for lane in self._running)

    def totals(self) -> dict[Endpoint | Rule, Totals]:
        """The sums of sessions that the registry does not know, by the `identity` of rules, up to date."""
        found: dict[Endpoint | Rule, Totals] = {}
        for lane in self._running:
            lane.settle()
            found.update(lane.totals())
        return found

    def sessions(self) -> list[SessionRecord]:
        """The live sessions, oldest first."""
        records = (record for lane in self._running for record in lane.sessions())
        return sorted(records, key=lambda record: record.id)

    def histograms(self) -> dict[Endpoint | Rule, tuple[HistogramCounts, HistogramCounts]]:
        """Durations and connect times of all sessions that ended, by the `identity` of rules."""
        found = self._registry.histograms()
        for lane in self._running:
            for identity, (durations, connects) in lane.histograms().items():
                known = found.get(identity)
                found[identity] = (
                    (known[0].plus(durations), known[1].plus(connects)) if known else (durations, connects)
                )
        return found

    def session_batches(self, size: int) -> Iterator[list[SessionRecord]]:
        """The live sessions in lists of at most `size`, in no order."""
        records = (record for lane in self._running for record in lane.sessions())
        while batch := list(islice(records, size)):
            yield [record for record in batch if record.ending is None]

    def take_out(self, at_most: int) -> tuple[list[Departing], int]:
        """Take out connections that can move to another process; see `Lane.take_out`."""
        found: list[Departing] = []
        left = 0
        for lane in self._running:
            some, more = lane.take_out(at_most - len(found))
            found += some
            left += more
        return found, left

    def kill(self, session_id: int, *, known: bool = False) -> bool:
        """End one session; False if there is none with this number. A `known` one is not searched for."""
        if self._registry.away.kill(session_id):
            return True
        return any(lane.kill(session_id, known=known) for lane in reversed(self._running))

    # Drain and stop

    def end_quiet_datagrams(self) -> None:
        """End the UDP sessions that wait for no answer; may be called as often as you like."""
        now = self._loop.time()
        if self._registry.datagrams.live and now >= self._quiet_at:
            self._quiet_at = now + QUIET_LOOK_S
            for lane in self._running:
                lane.end_quiet()

    def abort_all(self) -> None:
        """End every session with a reset for both peers."""
        for lane in reversed(self._running):
            lane.abort_all()

    async def close(self) -> None:
        """End every session, report each, and free everything. The listeners are released before."""
        self.close_retired()
        self.abort_all()
        for listener in tuple(self.lingering.values()):
            listener.end()
        for lane in reversed(self._running):  # the native engine relays for the Python lane
            await lane.close()
        self.poller.close()
