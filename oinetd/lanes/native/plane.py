"""The native data plane as the control plane sees it. The only importer of `oinetd._fastpath`.

`DataPlane` owns the reactor threads of one event loop and hands out what they report. Two things are built on it:
`NativeLane` (`lane.py`) serves listening sockets from accept to close without Python, and `NativeEngine`, here, is an
`Engine`: it relays pairs of sockets that the Python lane connected.

Limits: `plane.permits` counts the sessions of the process, for both lanes. Reactors take a place before they accept
and wait at the bound without polling; the Python lane does the same with `permits.enter()` (False: no room, ask again
after a session ended) and `permits.leave()`, `permits.enter_source(host, prefix)` (False: refuse) and
`leave_source`. `permits.next_id()` numbers sessions for both lanes; who accepted a pair for `NativeEngine` counts it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import time
from collections.abc import Callable
from typing import TypeAlias

from oinetd.core.admission import Gate
from oinetd.core.engine import Meter
from oinetd.core.pattern import compile_access
from oinetd.core.record import Ending, RelayResult
from oinetd.errors import EngineUnavailable
from oinetd.lanes.native.cores import polling_us, reactors_for
from oinetd.model import SOURCE_PREFIX, AccessRule, KeepAlive, RelayMode, Settings, SourcePrefix, Verb
from oinetd.net.descriptors import Budget
from oinetd.net.sockets import close_with_reset
from oinetd.upstream import silence

try:
    from oinetd import _fastpath
except ImportError as error:  # no compiler when it was installed, or another Python
    _missing = f"the extension is not there: {error}"
else:
    _missing = ""

__all__ = [
    "DataPlane",
    "NativeEngine",
    "Row",
    "SocketAddress",
    "available",
    "compile_rules",
    "new_budget",
    "new_permits",
]

log = logging.getLogger("oinetd")

SocketAddress: TypeAlias = tuple[str, int] | tuple[str, int, int, int]
Row: TypeAlias = tuple[
    int, int, int, int, float, str, int, str, int, float, float, int, int, int, int, int, int, int, int, float
]

OPENED, CLOSED, LIVE, RELAYED, UNREACHABLE, TROUBLE, RESUMED, COUNTED, LOOPED, FULL, TARGET = *range(1, 11), 20
"""Kinds of rows, as `_fastpath/shared/ring.pxd` numbers them."""

BATCH_ROWS = 256
"""Rows handed out in one turn of the event loop: some two milliseconds of work."""
PACE_S = 0.005
"""Under load rows are fetched at this pace: a wake of the loop for each of them would cost more than they do."""
PACE_BRIEF_S = 0.05
"""The pace where there are only sums; a ring of 4,096 records is full after 0.1 s of 40,000 connections a second."""
REFRESH_S = 0.1
REFRESH_SHARE = 0.02
"""Meters of running relays are brought up to date ten times a second, or as often as takes this share of the loop."""

ENDINGS = tuple(Ending)
"""By the numbers of `_fastpath/tcp/ending.pxd`."""
_RELAY_MODES = {RelayMode.AUTO: 0, RelayMode.COPY: 1, RelayMode.SPLICE: 2}


def available() -> str:
    """Why the native engine cannot serve here; empty where it can."""
    return _missing


def new_budget() -> _fastpath.Budget:
    """The descriptors that sessions of both lanes may have."""
    return _fastpath.Budget()


def new_permits(budget: Budget | None = None, cost: int = 0) -> _fastpath.Permits:
    """A gate for the sessions of the process, which both lanes go through; each takes `cost` from the budget."""
    assert budget is None or isinstance(budget, _fastpath.Budget)
    return _fastpath.Permits(0, 0, budget, cost)


class DataPlane:
    """The reactor threads of one event loop. Raises `EngineUnavailable` where they cannot run.

    `threads` 0 is one for each core that the process may use. `busy_poll_us` is the longest a reactor polls before
    it sleeps: -1 decides by the cores there are, 0 never polls. `flip_bytes` is for tests: each read takes at most
    so many bytes and the direction changes between copy and splice every time. `permits` is the gate of the process
    for connections, `udp_permits` that for UDP sessions.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        permits: Gate | None = None,
        udp_permits: Gate | None = None,
        threads: int = 0,
        busy_poll_us: int = -1,
        flip_bytes: int = 0,
    ) -> None:
        if _missing:
            raise EngineUnavailable(_missing)
        self.flip_bytes = flip_bytes
        self.permits = new_permits() if permits is None else permits
        udp_permits = new_permits() if udp_permits is None else udp_permits
        assert isinstance(self.permits, _fastpath.Permits)
        assert isinstance(udp_permits, _fastpath.Permits)
        try:
            self.core = _fastpath.Core(
                self.permits, reactors_for(threads), polling_us(busy_poll_us), udp_permits=udp_permits
            )
        except OSError as error:
            raise EngineUnavailable(f"the native engine cannot start: {error}") from error
        self.local_ports = _local_ports()
        self._loop = loop
        self._takers: dict[int, Callable[[Row], object]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.on_trouble: Callable[[str], object] = log.warning
        self.on_empty: Callable[[], object] | None = None
        loop.add_reader(self.core.fileno(), self._on_bell)

    def reconfigure(self, threads: int, busy_poll_us: int) -> None:
        """Have another number of threads, and another longest polling, from now on; what lives stays where it is."""
        self.core.spin_us = polling_us(busy_poll_us)
        before, wanted = self.core.threads, reactors_for(threads)
        if wanted == before:
            return
        try:
            self.core.set_threads(wanted)
        except OSError as error:
            log.warning("threads: %d instead of %d: %s", self.core.threads, wanted, error.strerror)
        if self.core.threads != before:
            log.info("threads: %d get new connections, before it were %d", self.core.threads, before)

    def new_gate(self) -> _fastpath.Permits:
        """A gate for the sessions of one rule, without bounds yet."""
        return _fastpath.Permits()

    def take(self, kind: int, taker: Callable[[Row], object]) -> None:
        """Give rows of `kind` to `taker` from now on."""
        self._takers[kind] = taker

    async def close(self) -> None:
        """Abort everything, wait for the threads, and hand out the last rows. A second call does nothing."""
        if self.core.fileno() < 0:
            return
        self._loop.remove_reader(self.core.fileno())
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for row in self.core.stop():
            self._hand_out(row)

    def _on_bell(self) -> None:
        self.core.hush()
        if self._timer is None:
            self._fetch()

    def collect(self) -> None:
        """Hand out all rows that there are now."""
        while rows := self.core.drain(BATCH_ROWS):
            for row in rows:
                self._hand_out(row)

    def _fetch(self) -> None:
        """Hand out a batch; come back soon while there was something, else wait for the bell."""
        self._timer = None
        rows = self.core.drain(BATCH_ROWS)
        for row in rows:
            self._hand_out(row)
        if rows:
            brief = all(row[0] == COUNTED for row in rows)
            pause_s = 0.0 if len(rows) == BATCH_ROWS else PACE_BRIEF_S if brief else PACE_S
            self._timer = self._loop.call_later(pause_s, self._fetch)
        elif self.on_empty is not None:
            self.on_empty()

    def _hand_out(self, row: Row) -> None:
        kind = row[0]
        if kind == TROUBLE:
            self.on_trouble(
                f"cannot accept ({os.strerror(row[14])}); trying again until there is room. Raise the limit of "
                "descriptors or lower max-connections"
            )
        elif kind == RESUMED:
            log.info("accepting again")
        elif (taker := self._takers.get(kind)) is not None:
            taker(row)


def compile_rules(
    tag: int,
    gate: _fastpath.Permits | None,
    settings: Settings,
    *,
    flip_bytes: int = 0,
    local_ports: range = range(0),
    addresses: tuple[SocketAddress, ...] = (),
    may_broadcast: bool = False,
    sources: tuple[SocketAddress, ...] = (),
    looping: tuple[bool, ...] = (),
    before: _fastpath.Rules | None = None,
    access: tuple[tuple[AccessRule, ...], tuple[AccessRule, ...]] = ((), ()),
    source_prefix: SourcePrefix = SOURCE_PREFIX,
) -> _fastpath.Rules:
    """Settings in the form of the data plane; `access` are the global rules and the rule's own.

    What `before` knows of the same addresses is kept. `local_ports` are those that the kernel chooses from for outgoing
    connections.
    """
    keepalive: KeepAlive = settings.keepalive
    patterns: tuple[list[tuple[int, bytes]], ...] = ([], [], [], [])
    for stage, rules in enumerate(access):
        for rule in compile_access(rules):
            patterns[2 * stage + (rule.verb is Verb.DENY)].append((int(rule.kind), rule.data))
    return _fastpath.Rules(
        tag,
        gate,
        addresses=addresses,
        before=before,
        may_meet_itself=any(address[1] in local_ports for address in addresses),
        may_broadcast=may_broadcast,
        sources=sources,
        looping=looping,
        access=patterns,
        relay=_RELAY_MODES[settings.relay],
        buffer_bytes=settings.buffer_bytes,
        pipe_bytes=settings.pipe_bytes,
        connect_ms=_milliseconds(settings.connect_timeout_s),
        idle_ms=_milliseconds(settings.idle_timeout_s),
        half_close_ms=_milliseconds(settings.half_close_timeout_s),
        stall_ms=_milliseconds(settings.write_stall_timeout_s),
        keepalive=(keepalive.idle_s, keepalive.interval_s, keepalive.count),
        flip_bytes=flip_bytes,
        silence_ms=_milliseconds(silence.SILENCE_S),
        source_prefix=source_prefix,
    )


def _local_ports() -> range:
    """The ports that the kernel chooses from for outgoing connections; all, where it does not say."""
    try:
        with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as file:
            first, last = map(int, file.read().split())
    except OSError:
        return range(1, 65536)
    return range(first, last + 1)


def _milliseconds(seconds: float) -> int:
    """Rounded up, so that a short timeout does not become 0, which is "off"; at most what fits (49 days)."""
    return min(-int(-seconds * 1000 // 1), 0xFFFFFFFF)


class NativeEngine:
    """Relays pairs of sockets on a data plane; see `oinetd.core.engine` for the contract."""

    name = "native"

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane
        self._loop = asyncio.get_running_loop()
        self._tokens = itertools.count(1)
        self._running: dict[int, tuple[asyncio.Future[RelayResult], Meter]] = {}
        self._rules: dict[Settings, _fastpath.Rules] = {}
        self._timer: asyncio.TimerHandle | None = None
        plane.take(RELAYED, self._relayed)

    async def relay(
        self, client: socket.socket, upstream: socket.socket, settings: Settings, meter: Meter
    ) -> RelayResult:
        token = next(self._tokens)
        try:
            rules = self._rules_of(settings)
            for sock in (client, upstream):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
            session_id = self._plane.core.relay(client.fileno(), upstream.fileno(), rules, token)
        except BaseException:
            close_with_reset(client)
            close_with_reset(upstream)
            raise
        client.detach()  # a reactor closes them
        upstream.detach()
        ended: asyncio.Future[RelayResult] = self._loop.create_future()
        self._running[token] = (ended, meter)
        if self._timer is None:
            self._timer = self._loop.call_later(REFRESH_S, self._refresh)
        cancelled: asyncio.CancelledError | None = None
        while not ended.done():
            try:
                await asyncio.wait([ended])
            except asyncio.CancelledError as error:
                cancelled = error
                self._plane.core.kill(session_id)
        if cancelled is not None:
            raise cancelled
        return ended.result()

    async def close(self) -> None:
        """Abort every relay that runs and wait for their results; the plane stays."""
        for row in self._plane.core.snapshot():
            if row[3] in self._running:
                self._plane.core.kill(row[1])
        while self._running:
            await asyncio.wait([ended for ended, _ in self._running.values()])
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def refresh(self) -> None:
        """Bring the meters of all running relays up to date; it happens some times a second without being asked."""
        for row in self._plane.core.snapshot():
            if (running := self._running.get(row[3])) is not None:
                running[1].bytes_up, running[1].bytes_down = row[11], row[12]
                running[1].moved_at = time.monotonic() - row[19]

    def _refresh(self) -> None:
        self._timer = None
        if self._running:
            before = self._loop.time()
            self.refresh()
            pause_s = max(REFRESH_S, (self._loop.time() - before) / REFRESH_SHARE)
            self._timer = self._loop.call_later(pause_s, self._refresh)

    def _rules_of(self, settings: Settings) -> _fastpath.Rules:
        rules = self._rules.get(settings)
        if rules is None:
            if len(self._rules) >= 64:  # reloads bring others; connections keep what they began with
                self._rules.clear()
            rules = self._rules[settings] = compile_rules(0, None, settings, flip_bytes=self._plane.flip_bytes)
        return rules

    def _relayed(self, row: Row) -> None:
        ended, meter = self._running.pop(row[3])
        meter.bytes_up, meter.bytes_down = row[11], row[12]
        meter.result = RelayResult(ENDINGS[row[13]], row[11], row[12], row[14])
        ended.set_result(meter.result)
