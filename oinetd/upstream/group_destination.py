"""A group of servers where a destination is asked for."""

from __future__ import annotations

import asyncio

from oinetd.net.sockets import Address
from oinetd.upstream.destination import Destination
from oinetd.upstream.group import Group

__all__ = ["GroupDestination"]


class GroupDestination(Destination):
    """A group where a destination is asked for: it has the addresses of all servers; a port is an offset here."""

    def __init__(self, group: Group) -> None:
        super().__init__(str(group), 0.0)
        self.group = group

    @property
    def resolved(self) -> bool:
        """Whether a server has an address, or there is none to wait for."""
        members = self.group.members
        return not members or any(member.destination.resolved for member in members)

    async def wait_resolved(self, timeout_s: float) -> bool:
        """Wait at most `timeout_s` seconds for the address of any server; whether there is one."""
        waits = [asyncio.ensure_future(each.destination.wait_resolved(timeout_s)) for each in self.group.members]
        if waits and not self.resolved:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for each in waits:
            each.cancel()
        return self.resolved

    def at(self, port: int) -> tuple[Address, ...]:
        return tuple(dict.fromkeys(address for each in self.group.members for address in each.addresses(port)))

    def failed(self) -> None:
        """Servers are told by their group."""

    def connected(self) -> None:
        """Servers are told by their group."""
