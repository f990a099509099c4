"""The extension's batches of datagrams, where it is built."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from oinetd._fastpath import DatagramBatch

__all__ = ["native_batch"]


def native_batch() -> DatagramBatch | None:
    """A batch of the extension; None where it is not built, which `oinetd.lanes.native.plane` tells the reason of."""
    try:
        from oinetd import _fastpath
    except ImportError:
        return None
    return _fastpath.DatagramBatch()
