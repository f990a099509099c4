"""UDP clients whose questions stay without an answer: how long they wait at one address, and which one is next.

A client goes from address to address as long as none answers. Back at the first one it stays `ROUND_TIMES` as long as
before, and its next round is as quick as the first: traffic in one direction, which nobody ever answers, mostly stays
where it was. `_fastpath/udp/silence.pxd` does the same for the native lane.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from oinetd.net.sockets import Address
from oinetd.upstream.address_order import AddressOrder, now_ms

__all__ = ["ANSWERED_TIMES", "SILENCE_S", "Trail", "in_order", "patience_s"]

SILENCE_S: Final = 4.0
"""How long the question of a client that was never answered waits at one address. Both lanes have it from here.
Resolvers and game clients ask again within one to five seconds."""

ANSWERED_TIMES: Final = 5
"""Where an answer came before, a question waits this many times as long, and no less than the rule's `timeout`.
WireGuard is silent for up to ten seconds, the receiving end of an IPsec tunnel for up to thirty."""

ROUND_TIMES: Final = 16
ROUNDS_MAX: Final = 2
"""Rounds that make the stay at the first address longer: up to 256 times, 17 minutes."""

NOT_AGAIN: Final = 3
"""Rounds of a client that has nowhere to go, and the name was looked up for each."""


class Trail(NamedTuple):
    """The way of a client whose questions no address has answered yet.

    `left` are the addresses that it left in this round, the first of them first; `rounds` says how often it was at
    every address, and `since` when it asked the first of `left`, as a time of the loop.
    """

    left: tuple[Address, ...] = ()
    rounds: int = 0
    since: float = 0.0

    def leave(self, address: Address, asked: float, addresses: tuple[Address, ...], same: bool) -> Trail:
        """The trail of a client that leaves `address`, which it has asked at the time `asked`, for one of `addresses`;
        `same` says that the destination had these when the client came."""
        left = tuple(each for each in (*self.left, address) if each in addresses)
        return Trail(left, self.rounds if same else 0, self.since if self.left else asked)

    def arrive(self, address: Address | None) -> Trail:
        """The same once it has come to `address`; one that it had left begins the next round."""
        if address not in self.left:
            return self
        return Trail((), min(self.rounds + 1, ROUNDS_MAX))


def patience_s(trail: Trail, answered: bool, timeout_s: float, same: bool) -> float:
    """How long a question waits at an address; infinite where it is not left.

    `answered` says that an answer came before, `timeout_s` is the rule's, and `same` says that the destination has
    the same addresses as when the client came.
    """
    if answered:
        return max(ANSWERED_TIMES * SILENCE_S, timeout_s) if timeout_s else float("inf")
    if trail.left or not same:
        return SILENCE_S
    return SILENCE_S * ROUND_TIMES**trail.rounds if trail.rounds < NOT_AGAIN else float("inf")


def in_order(order: AddressOrder, left: tuple[Address, ...]) -> Iterator[Address]:
    """The addresses in the order in which a client that has left some tries them: those last, the first one first."""
    turn = order.begin()
    gone = sum(1 << at for at, address in enumerate(order.addresses) if address in left)
    tried = gone
    while (at := order.pick(tried, turn, now_ms())) >= 0:
        tried |= 1 << at
        yield order.addresses[at]
    if not gone:
        return
    tried = ~gone
    if left[0] in order.addresses:
        tried |= 1 << order.addresses.index(left[0])
        yield left[0]
    while (at := order.pick(tried, turn, now_ms())) >= 0:
        tried |= 1 << at
        yield order.addresses[at]
