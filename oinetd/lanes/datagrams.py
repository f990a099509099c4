"""What a reload does to the UDP listeners of both lanes, those that are in force and those that linger."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace

from oinetd.core.lane import Listener
from oinetd.lanes.choose import Lanes
from oinetd.model import AccessRule, Config
from oinetd.net.ports import PortKey
from oinetd.net.sockets import bound_address

__all__ = ["settle_datagrams"]

log = logging.getLogger("oinetd")


def settle_datagrams(config: Config, lanes: Lanes, listening: Mapping[PortKey, Listener]) -> None:
    """End the sessions that `config`, which is in force, refuses; listeners that it removed linger."""
    _make_way(listening, lanes.lingering)
    _revoke(config.access, (*listening.values(), *lanes.lingering.values()))


def _make_way(listening: Mapping[PortKey, Listener], lingering: Mapping[PortKey, Listener]) -> None:
    """End a lingering listener if another one overlaps it now: its socket would get the new clients of the other."""
    if not lingering:
        return
    bound = [replace(key, address=bound_address(listener.sock)) for key, listener in listening.items()]
    for key, listener in tuple(lingering.items()):
        held = replace(key, address=bound_address(listener.sock))
        if any(held.overlaps(other) for other in bound):
            listener.end()


def _revoke(access: tuple[AccessRule, ...], listeners: Iterable[Listener]) -> None:
    """End the UDP sessions whose clients the global rules `access`, or those of their own rule, refuse."""
    ended = sum(listener.revoke(access) for listener in listeners)
    if ended:
        log.info("UDP sessions ended because the access rules now refuse their clients: %d", ended)
