"""The engine of the reactors: it relays pairs of sockets that the Python lane connected."""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from oinetd.core.engine import Carried, Departed, Leaving, Meter
from oinetd.core.record import RelayResult
from oinetd.lanes.native.departure import Held
from oinetd.lanes.native.plane import ENDINGS, RELAYED, Hub, compile_policy
from oinetd.model import RelayMode, Settings
from oinetd.net.options import IPPROTO_MPTCP
from oinetd.net.sockets import close_with_reset

if TYPE_CHECKING:
    from oinetd import _fastpath

__all__ = ["NativeEngine"]

REFRESH_S = 0.1
REFRESH_SHARE = 0.02
"""Meters of running relays are brought up to date ten times a second, or as often as takes this share of the loop."""


class NativeEngine:
    """Relays pairs of sockets in the reactors; see `oinetd.core.engine` for the contract."""

    name = "native"

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._loop = asyncio.get_running_loop()
        self._tokens = itertools.count(1)
        self._running: dict[int, tuple[asyncio.Future[RelayResult], Meter]] = {}
        self._policies: dict[Settings, _fastpath.Policy] = {}
        self._timer: asyncio.TimerHandle | None = None
        hub.take(RELAYED, self._relayed)

    async def relay(
        self,
        client: socket.socket,
        upstream: socket.socket,
        settings: Settings,
        meter: Meter,
        carried: Carried | None = None,
    ) -> RelayResult:
        token = next(self._tokens)
        try:
            if IPPROTO_MPTCP in (client.proto, upstream.proto):  # see `compile_policy`
                settings = replace(settings, relay=RelayMode.COPY)
            policy = self._policy_of(settings)
            for sock in (client, upstream):
                if sock.family == socket.AF_UNIX:
                    continue
                if not sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY):  # else it would push a header out alone
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
            if carried is None:
                session_id = self._hub.relay(client.fileno(), upstream.fileno(), policy, token)
            else:
                passport = self._hub.adopt(
                    policy, carried.state, client.fileno(), upstream.fileno(), *carried.pending, token
                )
                session_id = passport.id
                self._hub.put_in(passport)
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
                self._hub.kill(session_id)
        if cancelled is not None:
            raise cancelled
        return ended.result()

    def take_out(self, at_most: int) -> list[Leaving]:
        passports, _ = self._hub.take_out(at_most, pairs=True)
        return [_LeavingPair(self._hub, each, self._running) for each in passports]

    async def close(self) -> None:
        """Abort every relay that runs and wait for their results; the hub stays."""
        for record in self._hub.snapshot():
            if record.token in self._running:
                self._hub.kill(record.id)
        while self._running:
            await asyncio.wait([ended for ended, _ in self._running.values()])
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def refresh(self) -> None:
        """Bring the meters of all running relays up to date; it happens some times a second without being asked."""
        for record in self._hub.snapshot():
            if (running := self._running.get(record.token)) is not None:
                running[1].bytes_up, running[1].bytes_down = record.bytes_up, record.bytes_down
                running[1].moved_at = time.monotonic() - record.idle_s

    def _refresh(self) -> None:
        self._timer = None
        if self._running:
            before = self._loop.time()
            self.refresh()
            pause_s = max(REFRESH_S, (self._loop.time() - before) / REFRESH_SHARE)
            self._timer = self._loop.call_later(pause_s, self._refresh)

    def _policy_of(self, settings: Settings) -> _fastpath.Policy:
        policy = self._policies.get(settings)
        if policy is None:
            if len(self._policies) >= 64:  # reloads bring others; connections keep what they began with
                self._policies.clear()
            policy = self._policies[settings] = compile_policy(
                0, None, settings, flip_bytes=self._hub.flip_bytes, move_turns=self._hub.move_turns
            )
        return policy

    def _relayed(self, record: _fastpath.Record) -> None:
        ended, meter = self._running.pop(record.token)
        meter.bytes_up, meter.bytes_down = record.bytes_up, record.bytes_down
        meter.result = RelayResult(ENDINGS[record.ending], record.bytes_up, record.bytes_down, record.errno)
        ended.set_result(meter.result)


class _LeavingPair(Held):
    """A pair that Python connected; see `oinetd.core.engine.Leaving`."""

    def __init__(
        self, hub: Hub, passport: _fastpath.Passport, running: dict[int, tuple[asyncio.Future[RelayResult], Meter]]
    ) -> None:
        super().__init__(hub, passport)
        self.meter = running[passport.token][1]
        self._running = running

    def release(self) -> None:
        ended, _ = self._running.pop(self._passport.token)
        super().release()
        if not ended.done():
            ended.set_exception(Departed())
