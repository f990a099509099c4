"""Datagrams of one session that wait for its upstream, within bounds."""

from __future__ import annotations

from collections.abc import Iterable

from oinetd.lanes.python.udp.table import SessionTable

__all__ = ["HELD_DATAGRAMS_MAX", "HELD_SESSION_BYTES_MAX", "HeldDatagrams"]

HELD_DATAGRAMS_MAX = 256
HELD_SESSION_BYTES_MAX = 128 * 1024
"""What one session may hold: two of the largest datagrams, or a burst of small ones."""


class HeldDatagrams:
    """In the order in which they came. Their bytes are counted in `table`, too, which bounds those of all sessions."""

    __slots__ = ("_bytes", "_datagrams", "_table")

    def __init__(self, table: SessionTable) -> None:
        self._table = table
        self._datagrams: list[bytes] = []
        self._bytes = 0

    def __bool__(self) -> bool:
        return bool(self._datagrams)

    def hold(self, datagrams: Iterable[bytes]) -> int:
        """Keep them; how many were too much and are lost."""
        lost = 0
        for datagram in datagrams:
            size = len(datagram)
            room = len(self._datagrams) < HELD_DATAGRAMS_MAX and self._bytes + size <= HELD_SESSION_BYTES_MAX
            if room and self._table.hold(size):
                self._datagrams.append(datagram)
                self._bytes += size
            else:
                lost += 1
        return lost

    def release(self) -> list[bytes]:
        """What was held, which is then held no more."""
        held, self._datagrams = self._datagrams, []
        self._table.let_go(self._bytes)
        self._bytes = 0
        return held
