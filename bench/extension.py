"""The native part of the bench: its load client and the reader of packet rings."""

from __future__ import annotations

import sys
from types import ModuleType

from bench.errors import ToolMissing

__all__ = ["native"]


def native() -> ModuleType:
    """The extension. Raises `ToolMissing` if it is not built: a load client in Python would measure itself."""
    try:
        from bench import _native
    except ImportError as error:
        raise ToolMissing(
            f"the bench's extension is not built ({error}): {sys.executable} -m pip install -e bench, "
            "with a C compiler and Python.h"
        ) from None
    return _native
