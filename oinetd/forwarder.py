"""The embeddable forwarder: start, reload, drain, stop; what is bound, who is connected, how much was moved.

It runs in whatever event loop is running and touches nothing else of the program: no signal, no logger configuration,
no loop policy, no process limit.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import time
from collections.abc import Awaitable, Callable, Iterable
from types import TracebackType
from typing import NamedTuple

from oinetd.access import AccessControl
from oinetd.account import Account, Stats
from oinetd.destination import Destination
from oinetd.dialer import Dialer
from oinetd.engine import Engine
from oinetd.engine.portable import PortableEngine
from oinetd.errors import ConfigError, EngineUnavailable, Problem
from oinetd.journal import Journal
from oinetd.listener import Listener
from oinetd.model import Config, EngineChoice, Route, Rule
from oinetd.poller import Poller
from oinetd.ports import Port, PortKey, open_ports, plan_ports
from oinetd.record import SessionRecord
from oinetd.session import Service
from oinetd.sockets import bound_address, start_listening, tune

__all__ = ["BoundAddress", "Forwarder"]

log = logging.getLogger("oinetd")

DESCRIPTORS_KEPT_BACK = 64
"""Descriptors that sessions may not use: logs, the loop, lookups, and the program around the forwarder."""


class BoundAddress(NamedTuple):
    """A listening address as the kernel has it, and the route it serves."""

    route: Route
    host: str
    port: int


class Forwarder:
    """Forwards as `config` says, from `start` (or `async with`) to `stop`.

    `admit` is awaited with the `SessionRecord` of each client that access rules and limits let pass, before its
    destination is dialled; False or an exception refuses it. `on_open` and `on_close` are called with the record of
    each admitted session, and of each one that ended (the refused too). `inherited` are listening sockets made by
    somebody else (a service manager); a rule whose address is that of one of them uses it.
    """

    def __init__(
        self,
        config: Config,
        *,
        admit: Callable[[SessionRecord], Awaitable[bool]] | None = None,
        on_open: Callable[[SessionRecord], object] | None = None,
        on_close: Callable[[SessionRecord], object] | None = None,
        inherited: Iterable[socket.socket] = (),
    ) -> None:
        self.config = config
        self._admit = admit
        self._on_open = on_open
        self._on_close = on_close
        self._inherited = list(inherited)
        self._account = Account()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listeners: dict[PortKey, Listener] = {}
        self._destinations: list[Destination] = []
        self._reloading = asyncio.Lock()
        self._stopped: asyncio.Event | None = None
        self._journal: Journal | None = None

    # Start and stop

    async def __aenter__(self) -> Forwarder:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Open every listener and begin to accept; all of them or none.

        Raises `ConfigError` for a destination that cannot be resolved or a log that cannot be, `BindError` for an
        address that cannot be listened on, `EngineUnavailable` where the configuration insists on an engine that is
        not there.
        """
        if self._stopped is not None:
            raise RuntimeError("a Forwarder starts once; make another one")
        self._loop = asyncio.get_running_loop()
        self._poller = Poller(self._loop)
        self._dialer = Dialer(self._loop, self._poller)
        self._portable = PortableEngine(self._loop, self._poller)
        self._stopped = asyncio.Event()
        try:
            await self._apply(self.config)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Close every listener, abort the sessions that are left, and write the last lines of the log."""
        if self._stopped is None or self._stopped.is_set():
            return
        for listener in self._listeners.values():
            listener.close()
        self._listeners.clear()
        for destination in self._destinations:
            destination.stop()
        for live in tuple(self._account.live.values()):
            live.kill()
        while self._tasks:
            await asyncio.wait(tuple(self._tasks))
        await self._portable.close()
        self._poller.close()
        if self._journal is not None:
            self._journal.close()
        for sock in self._inherited:
            sock.close()
        self._stopped.set()

    async def serve_forever(self) -> None:
        """Wait until somebody calls `stop`."""
        if self._stopped is None:
            raise RuntimeError("the forwarder has not been started")
        await self._stopped.wait()

    async def drain(self, timeout_s: float) -> int:
        """Accept no more, and wait for the sessions to end by themselves, at most `timeout_s` seconds.

        Those that are left are aborted; the answer is how many that were.
        """
        for listener in self._listeners.values():
            listener.close()
        self._listeners.clear()
        deadline = self._loop.time() + timeout_s
        while self._tasks and (left := deadline - self._loop.time()) > 0:
            await asyncio.wait(tuple(self._tasks), timeout=left)
        cut = tuple(self._account.live.values())
        for live in cut:
            live.kill()
        while self._tasks:
            await asyncio.wait(tuple(self._tasks))
        return len(cut)

    # Configuration

    async def reload(self, config: Config) -> None:
        """Put `config` in force. Live sessions go on; listeners that are in both keep their queue.

        Raises what `start` raises, and then everything is as it was.
        """
        if self._stopped is None or self._stopped.is_set():
            raise RuntimeError("the forwarder is not running")
        async with self._reloading:
            await self._apply(config)

    async def _apply(self, config: Config) -> None:
        """Everything that can fail comes first; the change itself is one step of the loop."""
        Journal.check(config.log)
        engines = {id(rule): self._engine_of(config, rule) for rule in config.rules}
        destinations = await self._resolve(config)
        kept = {key: listener.sock for key, listener in self._listeners.items()}
        sockets = open_ports(config, await plan_ports(config), kept, self._inherited)

        self._account.max_connections = config.max_connections or _descriptor_limit()
        self._account.max_per_source = config.max_connections_per_source
        if self._journal is None:
            self._journal = Journal(config.log, log.warning)
        else:
            self._journal.reconfigure(config.log)
        before, self._listeners = self._listeners, {}
        for port, sock in sockets.items():
            destination = destinations[port.route.connect, config.settings_of(port.route.rule).dns_refresh_s]
            engine, why = engines[id(port.route.rule)]
            service = self._service(config, port.route, destination, engine)
            listener = before.pop(port.key, None)
            if listener is None:
                listener = Listener(self._loop, sock, service, self._tasks)
                self._say(port, sock, engine, why)
            else:
                changed = listener.service.route.rule != port.route.rule
                listener.service = service
                self._retune(port, sock, service)
                if changed:
                    self._say(port, sock, engine, why)
            self._listeners[port.key] = listener
        for key, listener in before.items():
            log.info("no longer listening on %s", key.address)
            listener.close()
        for destination in self._destinations:
            destination.stop()
        self._destinations = list(destinations.values())
        for destination in self._destinations:
            destination.start()
        for listener in self._listeners.values():
            listener.start()
        self.config = config

    def _service(self, config: Config, route: Route, destination: Destination, engine: Engine) -> Service:
        assert self._journal is not None
        return Service(
            route=route,
            settings=config.settings_of(route.rule),
            access=AccessControl(config.access, route.rule.access),
            destination=destination,
            rule=self._account.of(route.rule),
            account=self._account,
            dialer=self._dialer,
            engine=engine,
            watcher=self,
            admit=self._admit,
        )

    def _engine_of(self, config: Config, rule: Rule) -> tuple[Engine, str]:
        """The engine that serves `rule`, and why it is this one."""
        choice = config.settings_of(rule).engine
        if choice is EngineChoice.NATIVE:
            raise EngineUnavailable(
                f"{rule.origin}: the native engine is not part of this build; `engine auto` or `engine python` serve"
            )
        return self._portable, "asked for" if choice is EngineChoice.PYTHON else "the native engine is not built"

    async def _resolve(self, config: Config) -> dict[tuple[object, float], Destination]:
        """A destination for each endpoint that is connected to. Raises `ConfigError` with all that have no address."""
        wanted: dict[tuple[object, float], tuple[Destination, Rule]] = {}
        for rule in config.rules:
            refresh_s = config.settings_of(rule).dns_refresh_s
            for route in rule.routes():
                wanted.setdefault((route.connect, refresh_s), (Destination(route.connect, refresh_s), rule))
        answers = await asyncio.gather(
            *(destination.resolve(rule.origin) for destination, rule in wanted.values()),
            return_exceptions=True,
        )
        problems: list[Problem] = []
        for answer in answers:
            if isinstance(answer, ConfigError):
                problems += answer.problems
            elif isinstance(answer, BaseException):
                raise answer
        if problems:
            raise ConfigError(*problems)
        return {key: destination for key, (destination, _) in wanted.items()}

    @staticmethod
    def _retune(port: Port, sock: socket.socket, service: Service) -> None:
        """Give a listener that stays what the new configuration says of its socket; the queue is not touched."""
        tune(sock, service.settings.keepalive)
        start_listening(sock, port.key.address, service.settings.listen_backlog)

    @staticmethod
    def _say(port: Port, sock: socket.socket, engine: Engine, why: str) -> None:
        log.info(
            "listening on %s, forwarding to %s %d (%s engine: %s)",
            bound_address(sock),
            port.route.connect.host,
            port.route.connect.port,
            engine.name,
            why,
        )

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
        return list(self._account.sessions(time.time()))

    def kill(self, session_id: int) -> bool:
        """End one session; both its peers see a reset. False where there is no such session."""
        live = self._account.live.get(session_id)
        if live is None:
            return False
        live.kill()
        return True

    def stats(self) -> Stats:
        """The counters since the start."""
        return self._account.stats()

    def reopen_log(self) -> None:
        """Close and open the connection log, after it was moved away. Nothing is lost in between."""
        if self._journal is not None:
            self._journal.reopen()

    # What sessions tell

    def opened(self, record: SessionRecord) -> None:
        """A session was admitted."""
        if self._journal is not None:
            self._journal.opened(record)
        if self._on_open is not None:
            _call(self._on_open, record)

    def closed(self, record: SessionRecord) -> None:
        """A session ended, or was refused."""
        if self._journal is not None:
            self._journal.closed(record)
        if self._on_close is not None:
            _call(self._on_close, record)


def _call(hook: Callable[[SessionRecord], object], record: SessionRecord) -> None:
    try:
        hook(record)
    except Exception:
        log.exception("a hook failed for session %d", record.id)


def _descriptor_limit() -> int:
    """How many sessions the soft limit of descriptors allows: two each, and some kept back."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return 0
    return max(1, (soft - DESCRIPTORS_KEPT_BACK) // 2)
