"""The order in which the addresses of a destination are tried.

Working addresses of a family take turns (round robin). Families alternate, and the family of the resolver's first
answer goes first (RFC 8305, section 4). An address that failed is tried last for a while; of several, the one that
failed longest ago goes first. `_fastpath/shared/target.pxd` does the same for the native lane, and a test compares the
two.
"""

from __future__ import annotations

import errno
import time
from typing import Final

from oinetd.net.sockets import SHORTAGE, Address

__all__ = ["AddressOrder", "is_of_the_server", "now_ms"]

HOLD_MS: Final = 10_000
"""How long a failed address is tried last; the time doubles if it then fails again."""
HOLD_MAX_MS: Final = 300_000

_OURS: Final = SHORTAGE | {errno.EADDRNOTAVAIL, errno.EAGAIN, errno.ELOOP}


def is_of_the_server(code: int) -> bool:
    """Whether a connect error is a failure of the address, and not of this machine."""
    return code not in _OURS


class _State:
    """One address: its rank in its family, and when it failed; 0 if it works."""

    __slots__ = ("failed_ms", "hold_ms", "rank", "relatives", "second")

    def __init__(self, rank: int, relatives: int, second: bool) -> None:
        self.rank = rank
        self.relatives = relatives
        self.second = second
        self.failed_ms = 0
        self.hold_ms = 0


class AddressOrder:
    """The addresses of one destination and port, in the resolver's order; failures known to `before` are kept."""

    def __init__(self, addresses: tuple[Address, ...], before: AddressOrder | None = None) -> None:
        self.addresses = addresses
        families = [address.family != addresses[0].family for address in addresses]
        self._states = [
            _State(families[:at].count(second), families.count(second), second) for at, second in enumerate(families)
        ]
        self._turn: int = before._turn if before is not None else 0
        known = dict(zip(before.addresses, before._states, strict=True)) if before is not None else {}
        for address, state in zip(addresses, self._states, strict=True):
            if (old := known.get(address)) is not None:
                state.failed_ms, state.hold_ms = old.failed_ms, old.hold_ms

    def begin(self) -> int:
        """Begin a search; returns the number of its turn."""
        if len(self.addresses) < 2:
            return 0
        self._turn += 1
        return self._turn - 1

    def pick(self, tried: int, turn: int, now_ms: int) -> int:
        """The index of the next address whose bit in `tried` is not set; -1 if there is none."""
        best, best_key = -1, (0, 0)
        for at, state in enumerate(self._states):
            if tried >> at & 1:
                continue
            held = state.failed_ms if state.failed_ms and now_ms < state.failed_ms + state.hold_ms else 0
            key = held, 2 * ((state.rank - turn) % state.relatives) + state.second
            if best < 0 or key < best_key:
                best, best_key = at, key
        return best

    def failed(self, at: int, now_ms: int) -> None:
        """The address with index `at` failed."""
        state = self._states[at]
        if not state.failed_ms:
            state.hold_ms = HOLD_MS
        elif now_ms >= state.failed_ms + state.hold_ms:
            state.hold_ms = min(state.hold_ms * 2, HOLD_MAX_MS)
        state.failed_ms = now_ms

    def worked(self, at: int) -> None:
        """The address with index `at` accepted a connection, or answered."""
        state = self._states[at]
        state.failed_ms = state.hold_ms = 0


def now_ms() -> int:
    """Milliseconds of the monotonic clock."""
    return time.monotonic_ns() // 1_000_000
