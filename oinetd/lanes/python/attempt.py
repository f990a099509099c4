"""One connect under way, and the descriptors for those beside it."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from oinetd.core.admission import Gate
from oinetd.net.sockets import Address

__all__ = ["Attempt", "Spares"]


@dataclass(slots=True)
class Attempt:
    """One connect under way, to address number `at`, since `began`."""

    sock: socket.socket
    at: int
    address: Address
    began: float


class Spares:
    """Descriptors of the budget for the connects of one session: it has one without asking, the others are spare."""

    __slots__ = ("_gate", "_taken")

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._taken = 0

    def take(self, under_way: int) -> bool:
        """Take what one more connect beside so many needs; False if it is not to be had."""
        if under_way:
            if not self._gate.take_spare():
                return False
            self._taken += 1
        return True

    def give(self, under_way: int) -> None:
        """Give back what so many connects do not need."""
        while self._taken > max(0, under_way - 1):
            self._taken -= 1
            self._gate.give_spare()
