"""The byte hook of an embedding program: it sees, delays or changes what connections carry."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from oinetd.core.record import SessionRecord

__all__ = ["Direction", "SessionTap", "Tap", "TapAnswer"]


class Direction(enum.Enum):
    """Where bytes go."""

    UP = "up"
    """From the client to the server."""
    DOWN = "down"
    """From the server to the client."""


TapAnswer: TypeAlias = bytes | None
"""None: the bytes pass as they are. Otherwise these pass in their place; `b""` drops them."""

Tap: TypeAlias = Callable[[SessionRecord, Direction, bytes], TapAnswer | Awaitable[TapAnswer]]

SessionTap: TypeAlias = Callable[[Direction, bytes], TapAnswer | Awaitable[TapAnswer]]
"""The hook for one session."""
