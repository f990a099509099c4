"""The native part of the bench's load client, which lives in an extension of its own."""

from __future__ import annotations

from types import ModuleType

from bench.errors import ToolMissing

__all__ = ["native"]


def native() -> ModuleType:
    """The extension. Raises `ToolMissing` where it is not built: a load client in Python would measure itself."""
    try:
        from oinetd import _bench
    except ImportError as error:
        raise ToolMissing(
            f"the extension with the load client is not built ({error}): pip install -e . with a C compiler"
        ) from None
    return _bench
