"""Buffers for relays that have bytes pending."""

from __future__ import annotations

__all__ = ["BufferPool"]

FREE_BYTES_MAX = 4 * 1024 * 1024
"""Unused buffers that a pool keeps: 64 of 64 KiB, more than can be in use between two waits."""


class BufferPool:
    """Free buffers by size. Taking never fails; giving back never grows the pool beyond `FREE_BYTES_MAX`."""

    def __init__(self) -> None:
        self._free: dict[int, list[memoryview]] = {}
        self._free_bytes = 0
        self.taken = 0
        """Buffers in use now: the tests hold that an idle connection has none."""

    def take(self, size: int) -> memoryview:
        """A buffer of `size` bytes; what is in it is left over from earlier."""
        self.taken += 1
        free = self._free.get(size)
        if free:
            self._free_bytes -= size
            return free.pop()
        return memoryview(bytearray(size))

    def give(self, buffer: memoryview) -> None:
        """Take a buffer back, whole and only once."""
        self.taken -= 1
        size = len(buffer)
        if self._free_bytes + size > FREE_BYTES_MAX and not self._free.get(size):
            # Full of the sizes of an earlier configuration, which are not taken any more.
            self._free.clear()
            self._free_bytes = 0
        if self._free_bytes + size <= FREE_BYTES_MAX:
            self._free_bytes += size
            self._free.setdefault(size, []).append(buffer)
