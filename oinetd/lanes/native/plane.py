"""The native data plane as the control plane sees it. The only importer of `oinetd._fastpath`.

`Hub` owns the reactor threads of one event loop and hands out their records. Two things are built on it:
`NativeLane` (`lane.py`) serves listening sockets from accept to close without Python, and `NativeEngine` (`engine.py`)
relays pairs of sockets that the Python lane connected.

Limits: `hub.gate` counts the sessions of the process, for both lanes. A reactor enters it before it accepts, and at
the limit waits without polling. The Python lane does the same with `gate.enter()` (False: at the limit, ask again
after a session ended) and `gate.leave()`, `gate.enter_source(host, prefix)` (False: refuse) and `leave_source`.
`gate.next_id()` numbers sessions for both lanes; the lane that accepted a pair for `NativeEngine` counts it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import astuple
from typing import TypeAlias

from oinetd.core.admission import Gate
from oinetd.core.pattern import compile_access
from oinetd.core.record import Ending
from oinetd.errors import EngineUnavailable
from oinetd.lanes.native.cores import polling_us, reactors_for
from oinetd.lanes.native.packing import Packer
from oinetd.model import (
    SOURCE_PREFIX,
    AcceptProxy,
    AccessRule,
    ProxyTlv,
    RelayMode,
    SendProxy,
    SendProxyUdp,
    Settings,
    SourcePrefix,
    Verb,
)
from oinetd.net.descriptors import Budget
from oinetd.net.options import NO_CONNECT_OPTIONS, ConnectOptions
from oinetd.preamble.unique_id import RUN_ID
from oinetd.upstream import silence

try:
    from oinetd import _fastpath
    from oinetd._fastpath import Hub as _Reactors
except ImportError as error:  # no compiler when it was installed, or another Python
    # pip keeps a wheel that it built without a compiler, and would install it again.
    _missing = (
        f"cannot load the native extension ({error}); to build it: apt install gcc python3-dev (or what this system "
        "calls them), then pip install --force-reinstall --no-deps --no-cache-dir oinetd"
    )
    _Reactors = object  # type: ignore[misc, assignment]
else:
    _missing = ""

__all__ = [
    "Hub",
    "available",
    "compile_policy",
    "may_self_connect",
    "milliseconds",
    "new_budget",
    "new_gate",
]

log = logging.getLogger("oinetd")

SocketAddress: TypeAlias = tuple[str, int] | tuple[str, int, int, int] | str

OPENED, CLOSED, LIVE, RELAYED, UNREACHABLE, TROUBLE, RESUMED, COUNTED, LOOPED, FULL, LOADED = range(1, 12)
TARGET, SERVER = 20, 21
"""Kinds of records, as `_fastpath/shared/ring.pxd` numbers them."""

BATCH_RECORDS = 256
"""Records handed out in one turn of the event loop: some two milliseconds of work."""
PACE_S = 0.005
"""Under load records are fetched at this pace: a wake of the loop for each of them would cost more than they do."""
PACE_TOTALS_S = 0.05
"""The pace while there are only totals; a ring of 4,096 records is full after 0.1 s of 40,000 connections a second."""
SWEEP_S = 1.0
"""How often what nothing uses any more is looked for while records come without a break."""

ENDINGS = tuple(Ending)
"""By the numbers of `_fastpath/shared/ending.pxd`."""
_ACCEPT_PROXY = {AcceptProxy.OFF: 0, AcceptProxy.ON: 1, AcceptProxy.OPTIONAL: 2}
PROXY_VERSIONS = {SendProxy.OFF: 0, SendProxy.V1: 1, SendProxy.V2: 2}
_PROXY_TLVS = {ProxyTlv.CRC32C: 1, ProxyTlv.UNIQUE_ID: 2, ProxyTlv.AUTHORITY: 4, ProxyTlv.PASS: 8}
"""The bits of `_fastpath/shared/policy.pxd`."""
_RELAY_MODES = {RelayMode.AUTO: 0, RelayMode.COPY: 1, RelayMode.SPLICE: 2}


def available() -> str:
    """Why the native engine cannot serve here; empty if it can."""
    return _missing


def new_budget() -> _fastpath.Budget:
    """The descriptors that sessions of both lanes may have."""
    return _fastpath.Budget()


def new_gate(budget: Budget | None = None, cost: int = 0) -> _fastpath.Gate:
    """A gate without limits yet; a session that enters takes `cost` descriptors from the budget."""
    assert budget is None or isinstance(budget, _fastpath.Budget)
    return _fastpath.Gate(0, 0, budget, cost)


class Hub(_Reactors):
    """The reactor threads of one event loop. Raises `EngineUnavailable` if they cannot run.

    `threads` 0 is one for each core that the process may use. `busy_poll_us` is the longest a reactor polls before
    it sleeps: -1 decides by the cores there are, 0 never polls. For tests: with `flip_bytes` each read takes at most
    this many bytes and changes between copy and splice; with `move_turns` a connection changes its reactor after this
    many turns. `gate` is the gate of the process for connections, `udp_gate` that for UDP sessions.
    """

    def __new__(
        cls,
        loop: asyncio.AbstractEventLoop,
        *,
        gate: Gate | None = None,
        udp_gate: Gate | None = None,
        threads: int = 0,
        busy_poll_us: int = -1,
        flip_bytes: int = 0,
        move_turns: int = 0,
    ) -> Hub:
        if _missing:
            raise EngineUnavailable(_missing)
        gate = new_gate() if gate is None else gate
        udp_gate = new_gate() if udp_gate is None else udp_gate
        assert isinstance(gate, _fastpath.Gate)
        assert isinstance(udp_gate, _fastpath.Gate)
        try:
            self = super().__new__(cls, gate, reactors_for(threads), polling_us(busy_poll_us), udp_gate=udp_gate)
        except OSError as error:
            raise EngineUnavailable(f"the native engine cannot start: {error}") from error
        self.gate = gate
        self.flip_bytes, self.move_turns = flip_bytes, move_turns
        self.local_ports = _local_ports()
        self._loop = loop
        self._takers = {}
        self._timer = None
        self.on_trouble = log.warning
        self.on_empty = None
        self.packer = Packer(self, loop, self.threads)
        self.set_threads(1)
        self.take(LOADED, lambda _record: self.packer.wake())
        loop.add_reader(self.fileno(), self._on_bell)
        return self

    gate: _fastpath.Gate
    flip_bytes: int
    move_turns: int
    packer: Packer
    local_ports: range
    on_trouble: Callable[[str], object]
    on_empty: Callable[[], object] | None
    _loop: asyncio.AbstractEventLoop
    _takers: dict[int, Callable[[_fastpath.Record], object]]
    _timer: asyncio.TimerHandle | None
    _sweep_at = 0.0

    def reconfigure(self, threads: int, busy_poll_us: int) -> None:
        """Have another number of threads at most, and another longest polling; what lives in others moves."""
        self.spin_us = polling_us(busy_poll_us)
        before, wanted = self.packer.most, reactors_for(threads)
        if wanted == before:
            return
        try:
            self.packer.limit(wanted)
        except OSError as error:
            log.warning("threads: at most %d instead of %d: %s", before, wanted, error.strerror)
        else:
            log.info("threads: at most %d, before at most %d", wanted, before)

    def take(self, kind: int, taker: Callable[[_fastpath.Record], object]) -> None:
        """Give records of `kind` to `taker` from now on."""
        self._takers[kind] = taker

    async def close(self) -> None:
        """Abort everything, wait for the threads, and hand out the last records. A second call does nothing."""
        if self.fileno() < 0:
            return
        self._loop.remove_reader(self.fileno())
        self.packer.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for record in self.stop():
            self._hand_out(record)

    def _on_bell(self) -> None:
        self.hush()
        if self._timer is None:
            self._fetch()

    def collect(self) -> None:
        """Hand out all records that there are now."""
        while records := self.drain(BATCH_RECORDS):
            for record in records:
                self._hand_out(record)

    def fetch_soon(self) -> None:
        """Look for records though the bell has not rung, so that `on_empty` is called."""
        if self._timer is None and self.fileno() >= 0:
            self._timer = self._loop.call_later(PACE_S, self._fetch)

    def _fetch(self) -> None:
        """Hand out a batch; come back soon while there was something, else wait for the bell."""
        self._timer = None
        records = self.drain(BATCH_RECORDS)
        for record in records:
            self._hand_out(record)
        if records:
            counted = all(record.kind == COUNTED for record in records)
            pause_s = 0.0 if len(records) == BATCH_RECORDS else PACE_TOTALS_S if counted else PACE_S
            self._timer = self._loop.call_later(pause_s, self._fetch)
        if self.on_empty is not None and self.emptied and (not records or self._loop.time() >= self._sweep_at):
            self._sweep_at = self._loop.time() + SWEEP_S
            self.on_empty()

    def _hand_out(self, record: _fastpath.Record) -> None:
        try:
            self._take(record)
        except Exception:  # the records behind it are as important
            log.exception("a record of the reactors: internal error")

    def _take(self, record: _fastpath.Record) -> None:
        kind = record.kind
        if kind == TROUBLE:
            self.on_trouble(
                f"cannot accept ({os.strerror(record.errno)}); trying again until there is room. Raise the limit of "
                "descriptors or lower max-connections"
            )
        elif kind == RESUMED:
            log.info("accepting again")
        elif (taker := self._takers.get(kind)) is not None:
            taker(record)


def _headers(settings: Settings) -> tuple[int, int, int, bool]:
    """PROXY headers for servers: version, TLVs, run of unique IDs, whether only first datagrams have one."""
    tlvs = sum(bit for word, bit in _PROXY_TLVS.items() if word in settings.proxy_tlv)
    return PROXY_VERSIONS[settings.send_proxy], tlvs, RUN_ID, settings.send_proxy_udp is SendProxyUdp.FIRST


def compile_policy(
    tag: int,
    gate: _fastpath.Gate | None,
    settings: Settings,
    *,
    flip_bytes: int = 0,
    move_turns: int = 0,
    local_ports: range = range(0),
    addresses: tuple[SocketAddress, ...] = (),
    may_broadcast: bool = False,
    sources: tuple[SocketAddress, ...] = (),
    looping: tuple[bool, ...] = (),
    group: _fastpath.Group | None = None,
    before: _fastpath.Policy | None = None,
    udp_timeout_s: float | None = None,
    access: tuple[tuple[AccessRule, ...], tuple[AccessRule, ...]] = ((), ()),
    source_prefix: SourcePrefix = SOURCE_PREFIX,
    peer_uid: int | None = None,
    trusts: tuple[AccessRule, ...] = (),
    options: ConnectOptions = NO_CONNECT_OPTIONS,
    names: _fastpath.Names | None = None,
    original_port: int = -1,
) -> _fastpath.Policy:
    """Settings in the form of the data plane; `access` are the global rules and the rule's own.

    What `before` knows of the same addresses is kept. `local_ports` are those that the kernel chooses from for outgoing
    connections. `udp_timeout_s` is the idle timeout of UDP sessions, `original_port` the port of a rule to `original`.
    """
    return _fastpath.Policy(
        tag,
        gate,
        addresses=addresses,
        group=group,
        before=before,
        may_self_connect=may_self_connect(addresses, local_ports),
        may_broadcast=may_broadcast,
        sources=sources,
        looping=looping,
        access=_patterns(access),
        relay=_relay_mode(settings, options),
        buffer_bytes=settings.buffer_bytes,
        pipe_bytes=settings.pipe_bytes,
        connect_ms=milliseconds(settings.connect_timeout_s),
        idle_ms=milliseconds(settings.idle_timeout_s if udp_timeout_s is None else udp_timeout_s),
        half_close_ms=milliseconds(settings.half_close_timeout_s),
        stall_ms=milliseconds(settings.write_stall_timeout_s),
        lifetime_ms=milliseconds(settings.max_lifetime_s),
        keepalive=astuple(settings.keepalive),
        proxy=_headers(settings),
        accept=(
            _ACCEPT_PROXY[settings.accept_proxy],
            milliseconds(settings.proxy_timeout_s),
            [(int(rule.kind), rule.data) for rule in compile_access(trusts)],
        ),
        names=names,
        peek_ms=milliseconds(settings.peek_timeout_s),
        flip_bytes=flip_bytes,
        move_turns=move_turns,
        silence_ms=milliseconds(silence.SILENCE_S),
        source_prefix=source_prefix,
        peer_uid=-1 if peer_uid is None else peer_uid,
        protocol=options.protocol,
        bandwidth=settings.bandwidth_bytes,
        from_client=options.from_client,
        original_port=original_port,
        options=[each[1:] for each in options.raw()],
    )


def _patterns(access: tuple[tuple[AccessRule, ...], ...]) -> tuple[list[tuple[int, bytes]], ...]:
    """Global allow, global deny, own allow, own deny."""
    patterns: tuple[list[tuple[int, bytes]], ...] = ([], [], [], [])
    for stage, rules in enumerate(access):
        for rule in compile_access(each for each in rules if each.verb is not Verb.TRUST):
            patterns[2 * stage + (rule.verb is Verb.DENY)].append((int(rule.kind), rule.data))
    return patterns


def may_self_connect(addresses: tuple[SocketAddress, ...], local_ports: range) -> bool:
    """Whether the kernel may give the outgoing end the very port that it connects to."""
    return any(not isinstance(address, str) and address[1] in local_ports for address in addresses)


def _relay_mode(settings: Settings, options: ConnectOptions) -> int:
    # Not every kernel has splice for MPTCP, and a refusal would count for all connections.
    return _RELAY_MODES[RelayMode.COPY if options.mptcp else settings.relay]


def _local_ports() -> range:
    """The ports that the kernel chooses from for outgoing connections; all, if it does not say."""
    try:
        with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as file:
            first, last = map(int, file.read().split())
    except OSError:
        return range(1, 65536)
    return range(first, last + 1)


def milliseconds(seconds: float) -> int:
    """Rounded up, so that a short timeout does not become 0, which is "off"; at most what fits (49 days)."""
    return min(-int(-seconds * 1000 // 1), 0xFFFFFFFF)
