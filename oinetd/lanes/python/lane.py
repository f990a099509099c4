"""The Python lane: a task for each connection, callbacks for UDP. It serves every rule and needs no extension."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Iterable, Mapping

from oinetd.core.access import AccessControl
from oinetd.core.dial import Dialer
from oinetd.core.engine import Engine
from oinetd.core.histogram import HistogramCounts
from oinetd.core.lane import AccessCheck, Departing, Listener
from oinetd.core.record import SessionRecord, Totals
from oinetd.core.registry import Registry
from oinetd.core.service import Service
from oinetd.lanes.python.departure import take_out
from oinetd.lanes.python.dialer import StreamDialer
from oinetd.lanes.python.listener import StreamListener
from oinetd.lanes.python.relay import PortableEngine
from oinetd.lanes.python.retired import Retired
from oinetd.lanes.python.tapped import TappedEngine
from oinetd.lanes.python.udp.listener import DatagramListener
from oinetd.lanes.python.udp.plane import DatagramPlane
from oinetd.lanes.python.udp.stream import DatagramEngine
from oinetd.model import Config, Endpoint, Protocol, Rule
from oinetd.net.poller import Poller
from oinetd.upstream.loops import Bound

__all__ = ["PythonLane"]


class PythonLane:
    """Serves on the loop of the program; see `oinetd.core.lane.Lane`. Its sessions are in `registry.live`."""

    running = True
    name = "python"
    reactors = 0

    def __init__(
        self, loop: asyncio.AbstractEventLoop, poller: Poller, registry: Registry, *, tapped: bool = False
    ) -> None:
        self.tasks: set[asyncio.Task[None]] = set()
        self.datagrams = DatagramPlane(loop, poller, self.tasks, registry.datagrams)
        self._loop = loop
        self._registry = registry
        self._dialer = StreamDialer(loop, poller, registry.gate)
        self._tapped = tapped
        self._engine = TappedEngine(loop, poller, self.tasks) if tapped else PortableEngine(loop, poller)
        self._retired = Retired(loop)

    def eligible(self, config: Config, rule: Rule) -> None:
        return None

    def label(self, engine: Engine) -> str:
        return f"Python lane, {engine.name} engine"

    def means(self, config: Config, rule: Rule, engine: Engine | None) -> tuple[Engine, Dialer]:
        """What relays and what dials for `rule`; `engine` relays between TCP connections if there is one."""
        if rule.bind.protocol is Protocol.UDP:
            return self._engine, self._dialer
        if rule.connect.protocol is Protocol.UDP:
            datagrams = DatagramEngine(self.datagrams, rule.options, config.settings_of(rule))
            return datagrams, datagrams
        settings = config.settings_of(rule)
        if self._tapped or settings.bandwidth_per_rule_bytes or settings.bandwidth_per_source_bytes:
            engine = None  # it knows pairs of sockets: neither what several of them share, nor hooks
        return engine or self._engine, self._dialer

    def serve(self, sock: socket.socket, service: Service, *, start: bool = True) -> Listener:
        listener: Listener
        if service.route.bind.protocol is Protocol.UDP:
            listener = DatagramListener(self, self.datagrams, sock, service)
        else:
            listener = StreamListener(self, self._loop, sock, service, self.tasks)
        if start:
            listener.start()
        return listener

    def retire(self, sock: socket.socket, service: Service, *, ours: bool, handshakes: bool) -> None:
        """Serve the accept queue of a TCP socket, then close it; see `Retired.take`."""
        listener = StreamListener(self, self._loop, sock, service, self.tasks)
        self._retired.take(listener, ours=ours, handshakes=handshakes)

    @property
    def retired(self) -> list[socket.socket]:
        """The sockets of listeners that still wait for handshakes or for places."""
        return self._retired.sockets

    def close_retired(self, *, only_unix: bool = False) -> None:
        """Close listeners that still wait for handshakes or for places; their addresses are free then."""
        self._retired.close(only_unix=only_unix)

    def reconfigure(self, config: Config) -> None:
        """Nothing to do: every setting of this lane is in a service."""

    def set_own_listeners(self, datagrams: Iterable[Bound]) -> None:
        """Nothing to do: the guard of each service knows them."""

    def trim_datagrams(self) -> None:
        self.datagrams.table.trim()

    def check_access(self, rules: AccessCheck) -> Counter[Rule]:
        by_identity = {rule.identity: rule for rule in rules}
        controls = {rule: AccessControl(access, rule.access) for rule, (access, _) in rules.items()}
        refused: Counter[Rule] = Counter()
        for live in tuple(self._registry.live.values()):
            rule = by_identity.get(live.record.route.rule.identity)
            if rule is None or live.revoke is None:
                continue
            if controls[rule].decide(live.record.client) is not None:
                refused[rule] += 1
                if rules[rule][1]:
                    live.revoke()
        return refused

    def report_each_session(self, each: bool) -> None:
        """Nothing to do: this lane always reports each session."""

    @property
    def busy(self) -> bool:
        return bool(self._retired)

    def settle(self) -> None:
        """Nothing to do: sessions count in the registry."""

    def histograms(self) -> Mapping[Endpoint | Rule, tuple[HistogramCounts, HistogramCounts]]:
        return {}

    def totals(self) -> Mapping[Endpoint | Rule, Totals]:
        return {}

    def sessions(self) -> Iterable[SessionRecord]:
        return self._registry.sessions()

    def kill(self, session_id: int, *, known: bool = False) -> bool:
        if (live := self._registry.live.get(session_id)) is None:
            return False
        live.kill()
        return True

    def take_out(self, at_most: int) -> tuple[list[Departing], int]:
        away = self._registry.away
        found = (live for live in self._registry.live.values() if live.relaying is None or live.record.id not in away)
        return take_out(found, at_most)

    def end_quiet(self) -> None:
        self.datagrams.table.end_quiet()

    def abort_all(self) -> None:
        for live in tuple(self._registry.live.values()):
            live.kill()

    async def close(self) -> None:
        while self.tasks:
            await asyncio.wait(tuple(self.tasks))
        await self._engine.close()
