"""How many sessions there are descriptors for."""

from __future__ import annotations

import logging
import resource

__all__ = ["connection_limit"]

log = logging.getLogger("oinetd")

DESCRIPTORS_KEPT_BACK = 64
"""Descriptors that sessions may not use: logs, the loop, lookups, and the program around the forwarder."""


def connection_limit(asked_for: int, listeners: int) -> int:
    """How many sessions there may be: no more than there are descriptors for, whatever was asked for.

    Beyond that clients would be accepted and then reset, for want of a socket to their destination; so they wait.
    """
    possible = _descriptor_limit(listeners)
    if not asked_for or not possible or asked_for <= possible:
        return asked_for or possible
    log.warning("max-connections %d: the limit of descriptors (`ulimit -n`) allows %d", asked_for, possible)
    return possible


def _descriptor_limit(listeners: int) -> int:
    """How many sessions the soft limit of descriptors allows: two each, with the listeners and some kept back."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return 0
    return max(1, (soft - DESCRIPTORS_KEPT_BACK - listeners) // 2)
