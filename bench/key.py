"""The key of a run: what client and server know, and a forwarder does not. It travels in their environment."""

from __future__ import annotations

import functools
import os
import secrets
from typing import Any

from bench.extension import native

__all__ = ["KINDS", "VARIABLE", "new_key", "run_key"]

VARIABLE = "OINETD_BENCH_KEY"
KINDS = {"exchange": 1, "short": 2, "upload": 3, "download": 4}
"""What a hello is for, as in `native/content.pxd`."""


def new_key() -> str:
    return secrets.token_hex(16)


@functools.cache
def run_key() -> Any:
    """The key in this process's environment."""
    return native().Key(bytes.fromhex(os.environ[VARIABLE]))
