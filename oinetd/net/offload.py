"""The extension's batches of datagrams, if it is built."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from oinetd._fastpath import DatagramBatch

__all__ = ["native_batch"]


def native_batch() -> DatagramBatch | None:
    """A batch of the extension; None if it is not built. `oinetd.lanes.native.plane` reports the reason."""
    try:
        from oinetd import _fastpath
    except ImportError:
        return None
    return _fastpath.DatagramBatch()
