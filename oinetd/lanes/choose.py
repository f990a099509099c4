"""The two lanes of a forwarder: which one serves a rule, and why; what both have in common.

- The native lane gives the listening socket to the reactors, which do everything from accept to close.
- The Python lane runs a `Session` for each connection. It serves what needs Python: an `admit` hook, a build or a
  machine without the extension, and who asks for it. With a hook the native engine still does the relaying.

Rules with UDP on both sides are served by either lane, those with UDP on one side by the Python lane.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from oinetd.core.dial import Dialer
from oinetd.core.engine import Engine
from oinetd.core.record import Ending, SessionRecord, Totals
from oinetd.core.registry import Registry
from oinetd.core.service import Service, Watcher
from oinetd.errors import EngineUnavailable
from oinetd.lanes.native.engine import NativeEngine
from oinetd.lanes.native.lane import NativeLane
from oinetd.lanes.native.listener import ReactorDatagrams, ReactorListener
from oinetd.lanes.native.plane import Hub, available
from oinetd.lanes.python.dialer import StreamDialer
from oinetd.lanes.python.listener import Listener
from oinetd.lanes.python.relay import PortableEngine
from oinetd.lanes.python.retired import Retired
from oinetd.lanes.python.udp.listener import DatagramListener
from oinetd.lanes.python.udp.plane import DatagramPlane
from oinetd.lanes.python.udp.stream import DatagramDialer, DatagramEngine
from oinetd.model import AccessRule, Config, Endpoint, EngineChoice, Route, Rule
from oinetd.model import Protocol as Transport
from oinetd.net.forking import Held
from oinetd.net.poller import Poller
from oinetd.net.ports import PortKey
from oinetd.upstream.loops import Bound, Loops

__all__ = ["Choice", "Lanes", "Listening"]

log = logging.getLogger("oinetd")


QUIET_LOOK_S = 0.02
"""Time between two looks for UDP sessions that need not be waited for."""


@dataclass(frozen=True, slots=True)
class Choice:
    """How a rule is served: in the native lane or not, by which engine, and why."""

    native: bool
    engine: Engine
    dialer: Dialer
    why: str

    def __str__(self) -> str:
        lane = "native lane" if self.native else f"Python lane, {self.engine.name} engine"
        return f"{lane}: {self.why}"


class Listening(Protocol):
    """A listening socket that is served, in either lane."""

    sock: socket.socket
    service: Service
    native: bool

    def start(self) -> None:
        """Accept from now on. Raises `OSError` where the machine has no room to watch the socket."""
        ...

    def replace_service(self, service: Service) -> None:
        """Serve the connections to come differently; socket, queue and sessions stay."""
        ...

    def refresh(self) -> None:
        """The destination has other addresses."""
        ...

    def release(self) -> None:
        """Accept no more; the socket and its queue stay, and nobody else touches them."""
        ...


class Lanes:
    """Everything that serves connections of one forwarder, on one loop. The reactors start when a rule needs them."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        registry: Registry,
        watcher: Watcher,
        loops: Loops,
        *,
        hooked: bool,
    ) -> None:
        self._loop = loop
        self._loops = loops
        self._registry = registry
        self._watcher = watcher
        self._hooked = hooked
        self.poller = Poller(loop)
        self.dialer = StreamDialer(loop, self.poller, registry.gate)
        self.tasks: set[asyncio.Task[None]] = set()
        self.datagrams = DatagramPlane(loop, self.poller, self.tasks, registry.datagrams)
        self.lingering: dict[PortKey, DatagramListener | ReactorDatagrams] = {}
        self._portable = PortableEngine(loop, self.poller)
        self._hub: Hub | None = None
        self._lane: NativeLane | None = None
        self._engine: NativeEngine | None = None
        self._reactor_listeners: dict[int, ReactorListener] = {}
        self._retired = Retired(loop)
        self._each = True
        self._quiet_at = 0.0
        self._held = Held(self.poller)

    def choose(self, config: Config, rule: Rule) -> Choice:
        """How `rule` is to be served. Raises `EngineUnavailable` where it insists on what cannot be had."""
        wanted = config.settings_of(rule).engine
        if rule.bind.protocol is not rule.connect.protocol:
            return self._choose_mixed(config, rule, wanted)
        if wanted is EngineChoice.PYTHON:
            return Choice(False, self._portable, self.dialer, "asked for")
        try:
            engine = self._native(config)
        except EngineUnavailable as error:
            if wanted is EngineChoice.NATIVE:
                where = f"{rule.origin}: " if rule.origin.line else ""
                raise EngineUnavailable(f"{where}{error}; `engine auto` would fall back to the Python lane") from None
            return Choice(False, self._portable, self.dialer, str(error))
        if self._hooked:
            udp = rule.bind.protocol is Transport.UDP
            return Choice(False, self._portable if udp else engine, self.dialer, "the program has an admit hook")
        return Choice(True, engine, self.dialer, "asked for" if wanted is EngineChoice.NATIVE else "default")

    def _choose_mixed(self, config: Config, rule: Rule, wanted: EngineChoice) -> Choice:
        """For a rule that has UDP on one side and TCP on the other."""
        if wanted is EngineChoice.NATIVE:
            where = f"{rule.origin}: " if rule.origin.line else ""
            raise EngineUnavailable(
                f"{where}the native engine serves no rule from {rule.bind.protocol.value} to "
                f"{rule.connect.protocol.value}; [engine=auto] on this rule takes the Python lane"
            )
        why = "asked for" if wanted is EngineChoice.PYTHON else "it serves rules between UDP and TCP"
        if rule.bind.protocol is Transport.UDP:
            return Choice(False, self._portable, self.dialer, why)
        engine = DatagramEngine(self.datagrams, rule.options, config.settings_of(rule))
        return Choice(False, engine, DatagramDialer(engine), why)

    def choose_unresolved(self, choice: Choice, service: Service) -> Choice:
        """How a rule of `choice` is served as long as a name of it has no address: somebody has to wait for that."""
        udp = service.route.bind.protocol is Transport.UDP
        return Choice(False, self._portable if udp else choice.engine, choice.dialer, "until its name is resolved")

    def _native(self, config: Config) -> Engine:
        if self._engine is None:
            if reason := available():
                raise EngineUnavailable(reason)
            self._hub = Hub(
                self._loop,
                gate=self._registry.gate,
                udp_gate=self._registry.datagrams,
                threads=config.threads,
                busy_poll_us=config.busy_poll_us,
            )
            self._held.core = self._hub
            self._engine = NativeEngine(self._hub)
            self._lane = NativeLane(
                self._hub,
                on_opened=self._watcher.opened,
                on_closed=self._native_closed,
                on_counted=self._native_counted,
                on_unreachable=self._look_up_again,
                on_address=self._address_changed,
                on_emptied=self._emptied,
                on_looped=self._looped,
                on_full=self._registry.on_full,
            )
            self._lane.report_each_session(self._each)
        return self._engine

    def serve(self, choice: Choice, sock: socket.socket, service: Service) -> Listening:
        """Serve `sock` by `choice` from now on; where the reactors cannot take it, in the Python lane."""
        self._held.listening.add(sock)
        if choice.native:
            assert self._lane is not None
            kind = ReactorDatagrams if service.route.bind.protocol is Transport.UDP else ReactorListener
            listener = kind(self._lane, self._reactor_listeners, sock, service)
            try:
                listener.start()
                return listener
            except OSError as error:
                log.warning("%s: the Python lane serves, the reactors cannot: %s", service.route, error.strerror)
        if service.route.bind.protocol is Transport.UDP:
            datagrams = DatagramListener(self.datagrams, sock, service)
            datagrams.start()
            return datagrams
        fallback = Listener(self._loop, sock, service, self.tasks)
        fallback.start()
        return fallback

    def change_lane(self, listening: Listening, choice: Choice, service: Service) -> Listening:
        """Serve the socket of `listening` by `choice`, in the other lane; its UDP sessions end."""
        if isinstance(listening, DatagramListener):
            listening.replace_service(service)  # one that lingers would close with its last session
            listening.end()
        listening.release()
        return self.serve(choice, listening.sock, service)

    @property
    def reactors(self) -> int:
        """How many reactors there are."""
        return self._hub.reactors if self._hub is not None else 0

    def reconfigure(self, config: Config) -> None:
        """Have as many reactors as `config` says, and let them poll as long."""
        if self._hub is not None:
            self._hub.reconfigure(config.threads, config.busy_poll_us)

    def judge(self, rules: Mapping[Rule, tuple[tuple[AccessRule, ...], bool]]) -> dict[Rule, int]:
        """As `NativeLane.judge`; nothing where there are no reactors."""
        return self._lane.judge(rules) if self._lane is not None else {}

    def limit_datagrams(self, sessions_max: int) -> None:
        """Bound the UDP sessions of both lanes; those above the bound end."""
        self.datagrams.table.shrink(sessions_max)
        if self._lane is not None:
            self._lane.trim()

    def know_own(self, datagrams: Iterable[Bound]) -> None:
        """These are the UDP listeners of both lanes: what comes from them is a loop."""
        if self._lane is not None:
            self._lane.know_own(datagrams)

    def end_quiet_datagrams(self) -> None:
        """End the UDP sessions in which nothing is under way; to be called as often as one likes."""
        now = self._loop.time()
        if self._registry.datagrams.live and now >= self._quiet_at:
            self._quiet_at = now + QUIET_LOOK_S
            self.datagrams.table.end_quiet()
            if self._lane is not None:
                self._lane.end_quiet()

    def count_lost(self) -> None:
        """Count the datagrams that the reactors dropped since the last call."""
        if self._lane is not None:
            for rule, lost, forged in self._lane.lost():
                self._registry.native_lost(rule, lost, forged)

    def retire(self, key: PortKey, listening: Listening, *, ours: bool = True, handshakes: bool = False) -> None:
        """Serve those in the queue, then close the socket; see `Retired.take`. UDP closes with its last session."""
        if isinstance(listening, DatagramListener | ReactorDatagrams):
            self.lingering[key] = listening
            listening.linger(lambda: self.lingering.pop(key, None))
            return
        listening.release()
        last = Listener(self._loop, listening.sock, listening.service, self.tasks)
        self._retired.take(last, ours=ours, handshakes=handshakes)

    def close_retired(self) -> None:
        """Have done with listeners that still wait, for handshakes or for places; their addresses are free then."""
        self._retired.close()

    def report_each_session(self, each: bool) -> None:
        """Whether the native lane reports each session to the watcher, or only totals; the Python lane always does."""
        if each != self._each and self._lane is not None:
            self._lane.report_each_session(each)
        self._each = each

    @property
    def anybody(self) -> bool:
        """Whether the native lane has a session, or one that ended and is not accounted for yet, or somebody waits in
        the queue of a listener that went away."""
        return bool(self._retired) or (self._lane is not None and self._lane.anybody)

    def settle(self) -> None:
        """Account for what has ended in the native lane, where that calls nobody's hooks."""
        if self._hub is not None and not self._each:
            self._hub.collect()

    def totals(self) -> dict[Endpoint | Rule, Totals]:
        """What the sessions of the native lane have moved, by the `identity` of rules."""
        return self._lane.totals() if self._lane is not None else {}

    def sessions(self) -> list[SessionRecord]:
        """The live sessions of the native lane."""
        return self._lane.sessions() if self._lane is not None else []

    def kill(self, session_id: int) -> bool:
        """End one session; False where there is none of this number."""
        live = self._registry.live.get(session_id)
        if live is not None:
            live.kill()
            return True
        return self._lane is not None and self._lane.kill(session_id)

    def abort_all(self) -> None:
        """End every session; both peers of each see a reset."""
        for live in tuple(self._registry.live.values()):
            live.kill()
        if self._lane is not None:
            self._lane.abort_all()

    async def close(self) -> None:
        """End every session, account for each, and give everything back. The listeners are released before."""
        self.close_retired()
        self.abort_all()
        while self.tasks:
            await asyncio.wait(tuple(self.tasks))
        for listener in tuple(self.lingering.values()):
            listener.end()
        await self._portable.close()
        if self._engine is not None and self._hub is not None:
            await self._engine.close()
            await self._hub.close()
        self.poller.close()

    def _native_counted(self, route: Route, ending: Ending, count: int) -> None:
        self._registry.native_counted(route.rule, ending, count)
        self._watcher.left()

    def _native_closed(self, record: SessionRecord) -> None:
        self._registry.native_closed(record)
        self._watcher.closed(record)

    def _looped(self, route: Route, address: str, source: bool) -> None:
        if source:
            self._loops.log_source(route, address)
        else:
            self._loops.log_destination(route, address)

    def _emptied(self, key: int) -> None:
        listener = self._reactor_listeners.get(key)
        if listener is not None:
            listener.emptied()

    def _address_changed(self, key: int, host: str, port: int, code: int) -> None:
        if (listener := self._reactor_listeners.get(key)) is not None:
            listener.service.destination.health.changed(host, port, code)

    def _look_up_again(self, key: int) -> None:
        if (listener := self._reactor_listeners.get(key)) is not None:
            listener.service.destination.look_up_again()
            if listener.service.source_host is not None:
                listener.service.source_host.look_up_again()
