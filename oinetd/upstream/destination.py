"""A destination: a name, its present addresses, and when it is resolved again.

A name is resolved at start, on reload, every `dns_refresh_s`, and after three failed connects in a row. Connections use
the addresses known so far. Only a start or a reload waits for the first answer, and only for some seconds: without one
the destination has no addresses, and the name is resolved again until it has.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from oinetd.bounds import ADDRESSES_MAX
from oinetd.errors import ConfigError, Problem
from oinetd.model import Origin
from oinetd.net.resolver import is_temporary, resolve
from oinetd.net.sockets import Address, is_numeric, lookup
from oinetd.upstream.address_health import AddressHealth, words_for
from oinetd.upstream.address_order import AddressOrder, is_of_the_server, now_ms
from oinetd.upstream.special import without_special

__all__ = ["START_PATIENCE_S", "Destination", "DestinationState"]

log = logging.getLogger("oinetd")

FAILURES_BEFORE_LOOKUP = 3
"""Failed connects in a row before the name is resolved again."""
LOOKUP_PAUSE_S = 1.0
"""Minimum time between two lookups caused by failures: a dead destination must not flood the resolver."""
START_PATIENCE_S = 3.0
"""How long a start waits for the first answers; an unknown name is then an error. All names are resolved at once."""
RETRY_S = 1.0
RETRY_MAX_S = 4.0
"""The first and the longest time between two lookups of a name without addresses; it doubles each time.
Clients wait meanwhile."""


class Destination:
    """The addresses of one host, a name or an address; `on_change` is called when a lookup returned other addresses."""

    def __init__(
        self, host: str, refresh_s: float, addresses: tuple[Address, ...] = (), *, special: bool = True
    ) -> None:
        self.host = host
        self.special = special
        """Whether a name may mean this machine, its link, or many machines; see `special`."""
        self.followers: dict[object, Callable[[], object]] = {}
        """Called when a lookup returned other addresses."""
        self.refresh_s = refresh_s
        self._addresses = addresses
        self._orders: dict[int, AddressOrder] = {}
        self._answered: dict[Address, float] = {}
        self.health = AddressHealth(host, lambda: len(self._addresses))
        self.on_change: Callable[[], object] | None = None
        self.error: OSError | None = None
        """The error of the last lookup; None if it succeeded."""
        self._failures = 0
        self._timer: asyncio.TimerHandle | None = None
        self._lookup: asyncio.Task[None] | None = None
        self._looked_up_at = 0.0
        self._retry_s = RETRY_S
        self._resolved = asyncio.Event()
        self._failing = False
        self._stopped = False

    @property
    def resolved(self) -> bool:
        """Whether it has an address."""
        return bool(self._addresses)

    @property
    def state(self) -> DestinationState:
        """Its state for the status."""
        error = _reason(self.error) if self.error is not None else ""
        failing = tuple((*place, code) for place, code in self.health.failing.items())
        return DestinationState(self.host, tuple(address.host for address in self._addresses), error, failing)

    async def resolve(self, origin: Origin, what: str = "destination", patience_s: float = START_PATIENCE_S) -> None:
        """Resolve the name for the first time. Raises `ConfigError` if it has no address.

        Without an answer within `patience_s` seconds, the destination has no addresses yet.
        """
        if is_numeric(self.host):
            try:
                self._addresses = lookup(self.host)
            except OSError as error:
                raise self._unknown(error, origin, what) from error
            return
        self._begin_lookup()
        assert self._lookup is not None
        await asyncio.wait({self._lookup}, timeout=patience_s)
        if self.error is not None and not is_temporary(self.error):
            raise self._unknown(self.error, origin, what) from self.error
        if not self._addresses:
            self._failing = True
            reason = _reason(self.error) if self.error else f"no answer from the name server within {patience_s:g} s"
            where = f"{origin}: " if origin.line else ""
            log.warning(
                "%sDNS: cannot resolve the %s %s yet (%s); clients wait up to connect-timeout",
                where, what, self.host, reason,
            )  # fmt: skip

    def _unknown(self, error: OSError, origin: Origin, what: str) -> ConfigError:
        hint = "check the spelling and the resolver (`getent hosts NAME`)"
        if is_numeric(self.host):
            hint = "check the scope: it has to be an interface of this machine (`ip link`)"
        message = f"cannot resolve the {what} {self.host}: {_reason(error)}"
        return ConfigError(Problem(message, file=origin.file, line=origin.line, hint=hint))

    async def wait_resolved(self, timeout_s: float) -> bool:
        """Wait at most `timeout_s` seconds for an address; whether it has one."""
        if not self._addresses and not self._stopped:
            self.look_up_again()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._resolved.wait()
            except TimeoutError:
                pass
        return self.resolved

    def at(self, port: int) -> tuple[Address, ...]:
        """The present addresses, with `port`, in the resolver's order."""
        return self.order(port).addresses

    def order(self, port: int) -> AddressOrder:
        """The present addresses, with `port`, and the order in which to try them."""
        order = self._orders.get(port)
        if order is None or len(order.addresses) != len(self._addresses):
            found = tuple(address.at(port) for address in self._addresses)
            order = self._orders[port] = AddressOrder(found, order)
        return order

    def start(self) -> None:
        """Refresh the addresses from now on; does nothing for an address."""
        if self._timer is not None or is_numeric(self.host) or self._stopped:
            return
        if not self._addresses:
            self._retry()
        elif self.refresh_s > 0:
            self._timer = asyncio.get_running_loop().call_later(self.refresh_s, self._refresh)

    def stop(self) -> None:
        """Stop refreshing, and cancel a running lookup. Sessions that dial later use the known addresses."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._lookup is not None:
            self._lookup.cancel()
            self._lookup = None
        self.on_change = None
        self.health.stop()

    def connected(self) -> None:
        """Call this when an address accepted a connection."""
        self._failures = 0

    def failed(self) -> None:
        """Call this when no address accepted a connection."""
        self._failures += 1
        if self._failures >= FAILURES_BEFORE_LOOKUP:
            self._failures = 0
            self.look_up_again()

    def note_failed(self, address: Address, code: int) -> None:
        """Call this when a connect to an address failed, or it refused datagrams; it is tried last for a while.

        A failure of this machine is ignored.
        """
        if not is_of_the_server(code):
            return
        order = self.order(address.port)
        if address in order.addresses:
            order.failed(order.addresses.index(address), now_ms())
            self.health.failed(address.host, address.port, code)

    def note_worked(self, address: Address) -> None:
        """Call this when an address accepted a connection, or answered datagrams."""
        order = self.order(address.port)
        if address in order.addresses:
            order.worked(order.addresses.index(address))
            self.health.worked(address.host, address.port)

    def note_answer(self, address: Address, now: float) -> None:
        """Call this when datagrams arrived from an address; `now` is the loop's time."""
        if len(self._addresses) > 1:
            self._answered[address] = now

    def answered_since(self, address: Address, when: float) -> bool:
        """Whether datagrams arrived from the address after `when`, in the loop's time."""
        return self._answered.get(address, 0.0) > when

    def look_up_again(self) -> None:
        """Resolve the name again, at most once in `LOOKUP_PAUSE_S`: its addresses do not work."""
        if asyncio.get_running_loop().time() - self._looked_up_at >= LOOKUP_PAUSE_S:
            self._begin_lookup()

    def look_up_now(self) -> None:
        """Resolve the name again now."""
        self._begin_lookup()

    def _begin_lookup(self) -> None:
        if self._lookup is None and not self._stopped and not is_numeric(self.host):
            self._lookup = asyncio.get_running_loop().create_task(self._update())

    def _refresh(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self.refresh_s, self._refresh)
        self._begin_lookup()

    def _retry(self) -> None:
        """Resolve a name without addresses again and again, with a growing delay."""
        self._begin_lookup()
        self._timer = asyncio.get_running_loop().call_later(self._retry_s, self._retry)
        self._retry_s = min(self._retry_s * 2, RETRY_MAX_S)

    async def _update(self) -> None:
        """One lookup. Only `stop` cancels this task."""
        try:
            found = await resolve(self.host)
            if not self.special:
                found = without_special(self.host, found)
        except OSError as error:
            self.error = error
            self._log_failure(error)
        else:
            self.error = None
            self._take(found)
        finally:
            self._looked_up_at = asyncio.get_running_loop().time()
            self._lookup = None

    def _log_failure(self, error: OSError) -> None:
        """Log the first of several failed lookups; `resolve` reports a failure without known addresses."""
        if not self._failing and self._addresses:
            self._failing = True
            log.warning("DNS: cannot resolve %s (%s); still using its last addresses", self.host, _reason(error))

    def _take(self, found: tuple[Address, ...]) -> None:
        before = self._addresses
        found = self._cut(found)
        # The resolver rotates its answers; a change of the order is no change.
        changed = set(found) != set(before)
        if before and self._failing:
            log.info("DNS: %s resolves again", self.host)
        if changed:
            self._addresses = found
            self._answered.clear()
            self._orders = {
                port: AddressOrder(tuple(address.at(port) for address in found), order)
                for port, order in self._orders.items()
            }
            self.health.forget({address.host for address in found})
            if before or self._failing:
                log.info("DNS: %s now resolves to %s", self.host, ", ".join(address.host for address in found))
        self._failing = False
        self._retry_s = RETRY_S
        if not before:
            self._resolved.set()
            self._resume()
        if changed and self.on_change is not None:
            self.on_change()
        for follower in tuple(self.followers.values()) if changed else ():
            follower()

    def _cut(self, found: tuple[Address, ...]) -> tuple[Address, ...]:
        """At most `ADDRESSES_MAX` of the addresses: those in use first, then others of both families in turn."""
        if len(found) <= ADDRESSES_MAX:
            return found
        kept = [address for address in found if address in self._addresses]
        order = AddressOrder(tuple(address for address in found if address not in self._addresses))
        tried = 0
        while len(kept) < ADDRESSES_MAX:
            at = order.pick(tried, 0, 0)
            tried |= 1 << at
            kept.append(order.addresses[at])
        kept.sort(key=found.index)
        if set(kept) != set(self._addresses):
            log.warning("DNS: %s has %d addresses; using %d of them", self.host, len(found), ADDRESSES_MAX)
        return tuple(kept)

    def _resume(self) -> None:
        """Go back from retries to the usual refreshing, after the first addresses."""
        if self.on_change is None or self._stopped:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.start()


@dataclass(frozen=True, slots=True)
class DestinationState:
    """The state of a host: its addresses, none if it is not resolved yet, and the error of the last lookup."""

    host: str
    addresses: tuple[str, ...]
    error: str
    failing: tuple[tuple[str, int, int], ...] = ()
    """Addresses that fail: each with its port and the errno."""

    def __str__(self) -> str:
        if not self.addresses:
            return f"{self.host}: not resolved yet ({self.error or 'no answer from the name server'}), clients wait"
        stale = f", not resolved now ({self.error})" if self.error else ""
        down = "".join(f"; {host} port {port} {words_for(code)}" for host, port, code in self.failing)
        return f"{self.host}: {', '.join(self.addresses)}{stale}{down}"


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
