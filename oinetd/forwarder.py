"""The embeddable forwarder: start, reload, drain, stop; addresses, sessions and counters.

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
from dataclasses import replace
from types import TracebackType

from oinetd.bounds import check_type
from oinetd.config.server_file import read_servers
from oinetd.core.hooks import Admit, Hook, Hooks, ServerHook
from oinetd.core.lane import Listener
from oinetd.core.record import SessionRecord
from oinetd.core.router import RouteHook, Router
from oinetd.core.service import Callbacks
from oinetd.core.tap import Tap
from oinetd.lanes.choose import Lanes
from oinetd.lanes.limits import Limits
from oinetd.lanes.moves import Moves
from oinetd.lanes.native.groups import means_for_groups
from oinetd.lanes.server_events import ServerEvents, python_sessions
from oinetd.lanes.unresolved import Unresolved
from oinetd.model import Config, LogSettings, Rule
from oinetd.net.ports import BoundAddress, PortKey
from oinetd.observe.connection_log import ConnectionLog
from oinetd.reload import Reload
from oinetd.succession import Succession
from oinetd.upstream.groups import Known
from oinetd.upstream.loops import Loops

__all__ = ["BoundAddress", "Forwarder"]

log = logging.getLogger("oinetd")

DRAIN_LOOK_S = 0.02
"""Time between two looks at the sessions that are left while draining."""


class Forwarder(Succession):
    """Forwards as `config` says, from `start` (or `async with`) to `stop`.

    `admit` is awaited with the `SessionRecord` of each client that access rules and limits let pass, before its
    destination is dialled; False or an exception refuses it. `route` is asked after it, in the same place, and says
    where a TCP client goes: None (as the rule says), False (refused), an `Endpoint` or a text `host:port`.

    `tap` gets the record, a `Direction` and the bytes that were read, and answers None (they pass), the bytes that pass
    in their place, or something to be awaited that gives one of these. It is for TCP, in the Python lane.

    `on_open` and `on_close` are called with the record of each admitted session, and of each one that ended (the
    refused too), `on_server` with the `ServerStatus` of each server whose state changed; coroutines are
    awaited. What hooks raise is logged. `inherited` are listening sockets that a service manager opened; a rule with
    the address of one uses it. `lent` ones are closed after the start if no rule does. With `hold_back` nothing is
    served until `moves` says so.
    """

    def __init__(
        self,
        config: Config,
        *,
        admit: Admit | None = None,
        route: RouteHook | None = None,
        tap: Tap | None = None,
        on_open: Hook | None = None,
        on_close: Hook | None = None,
        on_server: ServerHook | None = None,
        inherited: Iterable[socket.socket] = (),
        lent: Iterable[socket.socket] = (),
        hold_back: bool = False,
    ) -> None:
        self.config = check_type(config, Config)
        self._router = Router(admit, route)
        self._tap = tap
        self._hooks = Hooks(on_open, on_close, on_server)
        self._lent = list(lent)
        self.inherited = [*inherited, *self._lent]
        self._hold_back = hold_back
        self._limits = Limits()
        self._registry = self._limits.registry
        self._loops = Loops()
        self._watcher = Callbacks(self._opened, self._closed, self._left)
        self._listeners: dict[PortKey, Listener] = {}
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

    def open_log(self, descriptor: int = -1) -> None:
        """Open the connection log before `start`, to give up privileges in between. Raises `ConfigError`.

        `descriptor` is that of the log file, if another process has opened it.
        """
        if descriptor >= 0:
            self._connection_log.take_over(self.config.log, descriptor)
            return
        self._connection_log.check_change(self.config.log)
        self._connection_log.reconfigure(self.config.log)

    async def start(self) -> None:
        """Open every listener and begin to accept; all of them or none.

        Raises `ConfigError` for a destination that cannot be resolved or a log that cannot be, `BindError` for an
        address that cannot be listened on, `EngineUnavailable` if the configuration demands an engine that is not
        available.
        """
        if self._stopped is not None:
            raise RuntimeError("a Forwarder starts once; make another one")
        self._loop = asyncio.get_running_loop()
        self._lanes = Lanes(
            self._loop,
            self._registry,
            self._watcher,
            self._loops,
            hooked=bool(self._router),
            tapped=self._tap is not None,
        )
        self.moves = Moves(self._lanes, self._listeners, self._limits, self.inherited)
        if self._hold_back:
            self.moves.hold_back()
        self._unresolved = Unresolved(self._lanes)
        self._servers = ServerEvents((python_sessions, self._lanes.native.server_sessions), self._hooks.server_changed)
        self._known = Known(*means_for_groups(), self._servers, self._lanes.poller, read_servers)
        self._reload = Reload(
            self._listeners,
            self._lanes,
            self._limits,
            self._loops,
            self._unresolved,
            self._known,
            connection_log=self._connection_log,
            watcher=self._watcher,
            hooks=self._hooks,
            admit=self._router.decide if self._router else None,
            tap=self._tap,
            inherited=self.inherited,
            lent=self._lent,
        )
        self._stopped = asyncio.Event()
        self._ended = asyncio.Event()
        try:
            await self._reload.apply(self.config, self._check_accepting)
        except BaseException:
            await self.stop()
            raise
        self.moves.let_go(self._lent)

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
            self._servers.close()
            if self._reload.destinations is not None:
                self._reload.destinations.stop()
            if self._reload.groups is not None:
                self._reload.groups.stop()
            for group in self._known.groups.values():
                group.close()
            await self._lanes.close()
            self._limits.close()
            self._router.close()
            await self._hooks.close()
            self._connection_log.end_gaps()
            try:  # A dead disk takes two seconds.
                await self._loop.run_in_executor(None, self._connection_log.close)
            except RuntimeError:  # no thread can be had
                self._connection_log.close()
            for sock in (*self.inherited, *self.moves.unserved):
                sock.close()
            self._stopped.set()

    async def serve_forever(self) -> None:
        """Wait until `stop` is called."""
        await self._running().wait()

    async def drain(self, timeout_s: float) -> int:
        """Stop accepting, and wait at most `timeout_s` seconds for the sessions to end by themselves.

        The sessions left are aborted; returns their number. UDP sessions that wait for an answer have two seconds.
        Clients in a full accept queue are served when there is room. A running start or reload gives up. Afterwards
        only `stop` is possible.
        """
        self._running()
        self._accepting = False
        self._lanes.close_retired()
        for key, listener in self._listeners.items():
            self._reload.retire(key, listener)
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
        """Wait at most `timeout_s` seconds until there is no session. Some end without an event, so look repeatedly."""
        deadline = self._loop.time() + timeout_s
        while (self._registry.busy or self._lanes.busy) and (left_s := deadline - self._loop.time()) > 0:
            look()
            self._ended.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left_s, DRAIN_LOOK_S)):
                    await self._ended.wait()

    # Configuration

    async def reload(self, config: Config) -> None:
        """Put `config` in force. Live sessions go on; listeners that are in both keep their queue.

        Raises what `start` raises, and then everything is as before. Raises `RuntimeError` if the forwarder is not
        running, or if `drain` or `stop` was called.
        """
        self._running()
        async with self._reloading:
            self._check_accepting()
            await self._reload.apply(check_type(config, Config), self._check_accepting)
            self.config = config

    async def add_rule(self, rule: Rule) -> None:
        """Serve one more rule; nothing else is touched. Raises what `reload` raises."""
        await self._change(lambda rules: (*rules, check_type(rule, Rule)))

    async def remove_rule(self, rule: Rule) -> None:
        """Serve a rule no longer; its live sessions go on. Raises `ValueError` if it is not in force."""
        await self._change(lambda rules: tuple(each for at, each in enumerate(rules) if at != rules.index(rule)))

    async def replace_rule(self, old: Rule, new: Rule) -> None:
        """Serve `new` in the place of `old`. Raises `ValueError` if that is not in force."""
        check_type(new, Rule)
        await self._change(lambda rules: (*rules[: rules.index(old)], new, *rules[rules.index(old) + 1 :]))

    async def _change(self, change: Callable[[tuple[Rule, ...]], tuple[Rule, ...]]) -> None:
        self._running()
        async with self._reloading:  # so that no other change is lost
            self._check_accepting()
            config = replace(self.config, rules=change(tuple(self.config.rules)))
            await self._reload.apply(config, self._check_accepting)
            self.config = config

    def _running(self) -> asyncio.Event:
        if self._stopped is None:
            raise RuntimeError("the forwarder has not been started")
        return self._stopped

    def _check_accepting(self) -> None:
        if not self._accepting:
            raise RuntimeError("the forwarder was told to stop")

    @property
    def started(self) -> bool:
        """Whether `start` was called."""
        return self._stopped is not None

    def kill(self, session_id: int, *, known: bool = False) -> bool:
        """End one session; both its peers get a reset. False if there is no such session.

        A session that is `known`, because `sessions` has just returned it, is not searched for.
        """
        return self._stopped is not None and self._lanes.kill(session_id, known=known)

    def watch(self, opened: Hook, closed: Hook, server: ServerHook | None = None) -> Callable[[], None]:
        """Call these as `on_open`, `on_close` and `on_server`, from now on until the result is called.

        Until then the native lane reports each session.
        """
        stop = self._hooks.watch(opened, closed, server)
        self._report_each_session()

        def unwatch() -> None:
            stop()
            self._report_each_session()

        return unwatch

    def _report_each_session(self) -> None:
        if self._stopped is not None and not self._stopped.is_set():
            self._lanes.report_each_session(bool(self.config.log.file or self._hooks))

    def set_server(self, group: str, server: str, *, state: str | None = None, weight: int | None = None) -> None:
        """Change a server until the process ends, also over reloads: `state` is `ready`, `drain` or `maint`, and
        `weight` is from 0 to 256. None leaves it as it is.

        Drain: no new sessions, those that live go on. Maint: no sessions and no checks. Raises `LookupError` for an
        unknown group or server, `ValueError` for another state or weight.
        """
        self._running()
        if self._reload.groups is None:
            raise LookupError("there is no group yet")
        self._reload.groups.operate(group, server, state, weight)

    def reopen_log(self) -> None:
        """Close and open the connection log, after it was moved away. Nothing is lost in between."""
        self._connection_log.reopen()

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
