"""UDP clients without answers: how long a session stays with one address, and which address is next.

A client moves from address to address until one answers. Back at the first one it stays `ROUND_TIMES` longer than
before, and its next round is as quick as the first: traffic in one direction, which is never answered, mostly stays at
one address. `_fastpath/udp/silence.pxd` does the same for the native lane.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Final, NamedTuple

from oinetd.net.sockets import Address
from oinetd.upstream.address_order import AddressOrder, now_ms
from oinetd.upstream.destination import Destination
from oinetd.upstream.group import Group
from oinetd.upstream.member import Member

__all__ = ["ANSWERED_TIMES", "SILENCE_S", "Trail", "in_order", "note_answered", "note_server_answered", "patience_s"]

SILENCE_S: Final = 4.0
"""How long a client that never got an answer stays with one address. Both lanes use this constant.
Resolvers and game clients retry within one to five seconds."""

ANSWERED_TIMES: Final = 5
"""A client that got an answer before stays this many times as long, and at least the rule's `timeout`.
WireGuard is silent for up to ten seconds, the receiving end of an IPsec tunnel for up to thirty."""

ROUND_TIMES: Final = 16
ROUNDS_MAX: Final = 2
"""The stay at the first address grows with each of these rounds: up to 256 times, 17 minutes."""

NOT_AGAIN: Final = 3
"""The number of rounds of a client without another address to go to; each of them has resolved the name again."""


class Trail(NamedTuple):
    """The addresses that a client without answers has tried.

    `left` are the addresses that it left in this round, in this order; `rounds` is the number of complete rounds, and
    `since` the loop's time when it wrote to the first of `left`. With a group, `server` is the one that it left last,
    which it wrote to at `since`, and `moves` is how many servers it left in this round.
    """

    left: tuple[Address, ...] = ()
    rounds: int = 0
    since: float = 0.0
    server: Member | None = None
    moves: int = 0

    def leave(self, address: Address, asked: float, addresses: tuple[Address, ...], same: bool) -> Trail:
        """The trail of a client that leaves `address`, which it wrote to at the time `asked`, for one of `addresses`;
        `same` is whether the destination had the same addresses when the client came."""
        left = tuple(each for each in (*self.left, address) if each in addresses)
        return Trail(left, self.rounds if same else 0, self.since if self.left else asked)

    def leave_server(self, server: Member, asked: float, servers: int) -> Trail:
        """The trail of a client that leaves `server`, which it wrote to at the time `asked`, for another one of its
        group. A round is over when there are as many moves as servers."""
        moves, rounds = self.moves + 1, self.rounds
        if moves >= servers:
            moves, rounds = 0, min(rounds + 1, ROUNDS_MAX)
        return Trail((), rounds, asked, server, moves)

    def arrive(self, address: Address | None) -> Trail:
        """The trail after the move to `address`; one that it had left before begins the next round."""
        if address not in self.left:
            return self
        return Trail((), min(self.rounds + 1, ROUNDS_MAX))


def patience_s(trail: Trail, answered: bool, timeout_s: float, same: bool) -> float:
    """How long a client waits for an answer of an address; infinite if it stays.

    `answered` is whether an answer came before, `timeout_s` is the rule's, and `same` is whether the destination has
    the same addresses as when the client came.
    """
    if answered:
        return max(ANSWERED_TIMES * SILENCE_S, timeout_s) if timeout_s else float("inf")
    if trail.left or trail.moves or not same:
        return SILENCE_S
    return SILENCE_S * ROUND_TIMES**trail.rounds if trail.rounds < NOT_AGAIN else float("inf")


def note_answered(destination: Destination, address: Address, trail: Trail) -> None:
    """Record the first answer, from `address`. Addresses that the client left count as failed, unless they answered
    other clients meanwhile."""
    destination.connected()
    destination.note_worked(address)
    for left in trail.left:
        if not destination.answered_since(left, trail.since):
            destination.note_failed(left, errno.ETIMEDOUT)


def note_server_answered(group: Group, member: Member, address: Address, trail: Trail) -> None:
    """Record the first answer of a server, from `address`. The one that the client left last counts as failed, unless
    it has answered another client meanwhile."""
    member.destination.connected()
    member.destination.note_worked(address)
    group.worked(member)
    left = trail.server
    if left is not None and left is not member and left in group.members and left.answered_at <= trail.since:
        group.failed(left, errno.ETIMEDOUT)


def in_order(order: AddressOrder, left: tuple[Address, ...]) -> Iterator[Address]:
    """The addresses in the order of a client that has left some: these come last, in the order it left them."""
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
