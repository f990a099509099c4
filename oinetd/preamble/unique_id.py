"""The unique ID of a session, for the header that a server gets: it finds the session in the logs of both."""

from __future__ import annotations

import os
from typing import Final

__all__ = ["RUN_ID", "unique_id"]

RUN_ID: Final = int.from_bytes(os.urandom(8), "big")
"""Tells this run of the program from all others. The native lane gets it with each policy."""


def unique_id(session: int) -> bytes:
    """32 hexadecimal digits: the run, and the number of the session, which is the `id` of the JSON log."""
    return b"%016x%016x" % (RUN_ID, session)
