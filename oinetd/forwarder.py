"""The embeddable forwarder: start, reload, drain, stop; what is bound, who is connected, how much was moved.

It runs in whatever event loop is running and touches nothing else of the program: no signal, no logger configuration,
no loop policy, no process limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
from collections.abc import Callable, Iterable
from types import TracebackType

from oinetd.bounds import check_type
from oinetd.core.access import access_control
from oinetd.core.hooks import Admit, Hook, Hooks
from oinetd.core.record import SessionRecord
from oinetd.core.registry import Stats
from oinetd.core.revocation import Revocation
from oinetd.core.service import Callbacks, Service
from oinetd.lanes.choose import Choice, Lanes, Listening
from oinetd.lanes.datagrams import settle_datagrams
from oinetd.lanes.limits import Limits
from oinetd.lanes.unresolved import Unresolved
from oinetd.model import Config, LogSettings, Protocol, Route
from oinetd.net.ports import BoundAddress, Port, PortKey, open_ports, plan_ports
from oinetd.net.sockets import Address, bound_address, start_listening
from oinetd.observe.announcement import listening, no_longer
from oinetd.observe.connection_log import ConnectionLog
from oinetd.upstream.destination import Destination, DestinationState
from oinetd.upstream.destinations import Destinations
from oinetd.upstream.loops import Loops

__all__ = ["BoundAddress", "Forwarder"]

log = logging.getLogger("oinetd")

DRAIN_LOOK_S = 0.02
"""Time between two looks at who is left while draining."""


class Forwarder:
    """Forwards as `config` says, from `start` (or `async with`) to `stop`.

    `admit` is awaited with the `SessionRecord` of each client that access rules and limits let pass, before its
    destination is dialled; False or an exception refuses it. `on_open` and `on_close` are called with the record of
    each admitted session, and of each one that ended (the refused too); where they are coroutines they are awaited.
    What hooks raise is logged. `inherited` are listening sockets made by somebody else (a service manager); a rule
    whose address is that of one of them uses it.
    """

    def __init__(
        self,
        config: Config,
        *,
        admit: Admit | None = None,
        on_open: Hook | None = None,
        on_close: Hook | None = None,
        inherited: Iterable[socket.socket] = (),
    ) -> None:
        self.config = check_type(config, Config)
        self._admit = admit
        self._hooks = Hooks(on_open, on_close)
        self._inherited = list(inherited)
        self._limits = Limits()
        self._registry = self._limits.registry
        self._revocation = Revocation(self._registry)
        self._loops = Loops()
        self._watcher = Callbacks(self._opened, self._closed, self._left)
        self._listeners: dict[PortKey, Listening] = {}
        self._destinations: Destinations | None = None
        self._reloading = asyncio.Lock()
        self._stopping = asyncio.Lock()
        self._accepting = True
        self._stopped: asyncio.Event | None = None
        self._connection_log = ConnectionLog(
            LogSettings(), log.warning, lambda *when: asyncio.get_running_loop().call_later(*when)
        )

    # Start and stop

    async def __aenter__(self) -> Forwarder:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def open_log(self) -> None:
        """Open the connection log before `start`, to give up privileges in between. Raises `ConfigError`."""
        self._connection_log.check_change(self.config.log)
        self._connection_log.reconfigure(self.config.log)

    async def start(self) -> None:
        """Open every listener and begin to accept; all of them or none.

        Raises `ConfigError` for a destination that cannot be resolved or a log that cannot be, `BindError` for an
        address that cannot be listened on, `EngineUnavailable` where the configuration insists on an engine that is
        not there.
        """
        if self._stopped is not None:
            raise RuntimeError("a Forwarder starts once; make another one")
        self._loop = asyncio.get_running_loop()
        self._lanes = Lanes(self._loop, self._registry, self._watcher, self._loops, hooked=self._admit is not None)
        self._unresolved = Unresolved(self._lanes)
        self._stopped = asyncio.Event()
        self._ended = asyncio.Event()
        try:
            await self._apply(self.config)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Close every listener, abort the sessions that are left, and write the last lines of the log.

        A start or a reload that is under way gives up.
        """
        if self._stopped is None:
            self._connection_log.close()  # after `open_log`; it has no line, so this takes no time
            return
        self._accepting = False
        async with self._stopping:
            if self._stopped.is_set():
                return
            for listener in self._listeners.values():
                listener.release()
                listener.sock.close()
            self._listeners.clear()
            if self._destinations is not None:
                self._destinations.stop()
            await self._lanes.close()
            self._limits.close()
            await self._hooks.close()
            self._connection_log.end_gaps()
            try:  # A dead disk takes two seconds.
                await self._loop.run_in_executor(None, self._connection_log.close)
            except RuntimeError:  # no thread can be had
                self._connection_log.close()
            for sock in self._inherited:
                sock.close()
            self._stopped.set()

    async def serve_forever(self) -> None:
        """Wait until somebody calls `stop`."""
        await self._running().wait()

    async def drain(self, timeout_s: float) -> int:
        """Accept no more, and wait for the sessions to end by themselves, at most `timeout_s` seconds.

        Those left are aborted; the answer is how many. UDP sessions with an answer due have two seconds; clients
        queued at a limit wait for a place. A start or reload under way gives up; afterwards there is only `stop`.
        """
        self._running()
        self._accepting = False
        self._lanes.close_retired()
        for key, listener in self._listeners.items():
            self._retire(key, listener)
        self._listeners.clear()
        deadline = self._loop.time() + timeout_s
        await self._until_empty(timeout_s, self._lanes.end_quiet_datagrams)
        cut = self._registry.count
        self._lanes.close_retired()
        self._lanes.abort_all()
        await self._until_empty(math.inf)
        await self._hooks.wait(deadline - self._loop.time())
        return cut

    async def _until_empty(self, timeout_s: float, look: Callable[[], object] = lambda: None) -> None:
        """Wait until nobody is connected, at most `timeout_s` seconds. Some places are given back without a word."""
        deadline = self._loop.time() + timeout_s
        while (self._registry.anybody or self._lanes.anybody) and (left_s := deadline - self._loop.time()) > 0:
            look()
            self._ended.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left_s, DRAIN_LOOK_S)):
                    await self._ended.wait()

    # Configuration

    async def reload(self, config: Config) -> None:
        """Put `config` in force. Live sessions go on; listeners that are in both keep their queue.

        Raises what `start` raises, and then everything is as it was. Raises `RuntimeError` where the forwarder is not
        running, or was told to drain or to stop.
        """
        self._running()
        async with self._reloading:
            self._check_accepting()
            await self._apply(check_type(config, Config))

    def _running(self) -> asyncio.Event:
        if self._stopped is None:
            raise RuntimeError("the forwarder has not been started")
        return self._stopped

    def _check_accepting(self) -> None:
        if not self._accepting:
            raise RuntimeError("the forwarder was told to stop")

    async def _apply(self, config: Config) -> None:
        """Everything that can fail comes first; the change itself is one step of the loop."""
        self._connection_log.check_change(config.log)
        choices = {id(rule): self._lanes.choose(config, rule) for rule in config.rules}
        access = {id(rule): access_control(config, rule) for rule in config.rules}
        destinations = Destinations(config, self._destinations)
        with destinations.unless_it_fails():
            await destinations.resolve()
            ports = await plan_ports(config, {key: each.service.route for key, each in self._listeners.items()})
            self._check_accepting()
            self._lanes.close_retired()
            standing = {**self._lanes.lingering, **self._listeners}
            kept = {key: listener.sock for key, listener in standing.items()}
            sockets = open_ports(config, ports, kept, self._inherited)

        self._lanes.reconfigure(config)
        self._limits.apply(config, len(sockets) + len(self._lanes.lingering), self._lanes.reactors)
        guards = self._loops.renew(
            (sock, port.route, destinations.of(port.route.rule)) for port, sock in sockets.items()
        )
        self._lanes.know_own(self._loops.datagrams)
        before, self._listeners = self._listeners, {}
        self._unresolved.clear()
        news: list[tuple[Route, Address, str]] = []
        for (port, sock), guard in zip(sockets.items(), guards, strict=True):
            rule, choice = port.route.rule, choices[id(port.route.rule)]
            service = Service(
                route=port.route,
                settings=config.settings_of(rule),
                access=access[id(rule)],
                global_access=config.access,
                destination=destinations.of(rule),
                source_host=destinations.source_of(rule),
                rule=self._registry.of(rule),
                registry=self._registry,
                dialer=choice.dialer,
                engine=choice.engine,
                watcher=self._watcher,
                admit=self._admit,
                source_prefix=config.source_prefix,
                guard=guard,
            )
            listener = before.pop(port.key, None) or self._lanes.lingering.pop(port.key, None)
            choice = self._unresolved.choose(port.key, choice, service, listener)
            if listener is None or listener.service.route.rule != port.route.rule or listener.native != choice.native:
                news.append((port.route, bound_address(sock), str(choice)))
            self._listeners[port.key] = self._put_in_service(listener, port, sock, service, choice)
        for warning in config.warnings:
            log.warning("%s", warning)
        for line in (*listening(news), *no_longer(before)):
            log.info(line)
        # Behind the change: what this ends was let in by listeners that are all in their new place now.
        self._lanes.report_each_session(bool(config.log.file or self._hooks))
        self._connection_log.reconfigure(config.log)
        self._lanes.limit_datagrams(self._limits.udp_sessions(config))
        for key, listener in before.items():
            self._retire(key, listener, handshakes=True)
        settle_datagrams(config, self._lanes, self._listeners)
        self._revocation.apply(config, self._lanes.judge)
        self._destinations = destinations
        destinations.start(on_change=self._refresh)
        self.config = config

    def _put_in_service(
        self, listener: Listening | None, port: Port, sock: socket.socket, service: Service, choice: Choice
    ) -> Listening:
        """Let `sock` be served as `service` says, by the `listener` that has it already where there is one."""
        if listener is None:
            return self._lanes.serve(choice, sock, service)
        if port.key.protocol is Protocol.TCP:
            start_listening(sock, port.key.address, service.settings.listen_backlog)
        if listener.native == choice.native:
            listener.replace_service(service)
            return listener
        return self._lanes.change_lane(listener, choice, service)

    def _retire(self, key: PortKey, listener: Listening, *, handshakes: bool = False) -> None:
        address = bound_address(listener.sock)
        ours = all(bound_address(sock) != address for sock in self._inherited)
        self._lanes.retire(key, listener, ours=ours, handshakes=handshakes)

    def _refresh(self, destination: Destination) -> None:
        looping = self._loops.refresh()
        for listener in self._listeners.values():
            service = listener.service
            if service.guard in looping or destination in (service.destination, service.source_host):
                listener.refresh()
        self._loop.call_soon(self._unresolved.move, self._listeners)

    # What there is to know

    @property
    def addresses(self) -> tuple[BoundAddress, ...]:
        """Where it listens, with the ports that the kernel chose for port 0."""
        bound = []
        for listener in self._listeners.values():
            address = bound_address(listener.sock)
            bound.append(BoundAddress(listener.service.route, address.host, address.port))
        return tuple(bound)

    def sessions(self) -> list[SessionRecord]:
        """The live sessions, oldest first, with their counts of this moment and `ending` None."""
        records = [*self._registry.sessions(), *self._native_sessions()]
        return sorted(records, key=lambda record: record.id)

    def kill(self, session_id: int) -> bool:
        """End one session; both its peers see a reset. False where there is no such session."""
        return self._stopped is not None and self._lanes.kill(session_id)

    def stats(self) -> Stats:
        """The counters since the start."""
        if self._stopped is None:
            return self._registry.stats()
        self._lanes.settle()
        self._lanes.count_lost()
        return self._limits.completed(self._registry.stats(self._lanes.totals()))

    def destinations(self) -> list[DestinationState]:
        """The names that destinations and source addresses have, each once, and what they resolve to."""
        return self._destinations.states() if self._destinations is not None else []

    def reopen_log(self) -> None:
        """Close and open the connection log, after it was moved away. Nothing is lost in between."""
        self._connection_log.reopen()

    def _native_sessions(self) -> list[SessionRecord]:
        return self._lanes.sessions() if self._stopped is not None else []

    # What sessions tell

    def _opened(self, record: SessionRecord) -> None:
        self._connection_log.opened(record)
        self._hooks.opened(record)

    def _left(self) -> None:
        self._ended.set()

    def _closed(self, record: SessionRecord) -> None:
        self._ended.set()
        if self._unresolved:
            self._loop.call_soon(self._unresolved.move, self._listeners)
        self._connection_log.closed(record)
        self._hooks.closed(record)
