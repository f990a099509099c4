"""How long a run lasts and where its randomness comes from."""

from __future__ import annotations

import os
import random
import time

__all__ = ["TIMEOUT_S", "Effort"]

SHORT_S = 1.0
"""A run without SOAK_SECONDS, in the ordinary tests."""

SECONDS = float(os.environ.get("SOAK_SECONDS") or SHORT_S)

TIMEOUT_S = int(120 + 2 * SECONDS)
"""Bounds a run that has failed."""


class Effort:
    """One run: `random` makes its decisions, `left` says whether there is time."""

    def __init__(self) -> None:
        said = os.environ.get("SOAK_SEED")
        self.seed = int(said) if said else random.SystemRandom().getrandbits(63)
        self.random = random.Random(self.seed)
        self._end = time.monotonic() + SECONDS
        print(f"SOAK_SEED={self.seed} SOAK_SECONDS={SECONDS:g}", flush=True)

    @property
    def left(self) -> bool:
        """Whether the run goes on."""
        return time.monotonic() < self._end
