"""Maglev's tables for the servers of a group that balances by source."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from oinetd.servers import Balance, Server
from oinetd.upstream.group import Group
from oinetd.upstream.maglev import Build, Entries, fill, server_name, turns_of
from oinetd.upstream.selection import Tables

__all__ = ["tables_for"]


async def tables_for(group: Group, balance: Balance, servers: Sequence[Server], build: Build | None) -> Tables:
    """The tables of the primaries and of the backups; those in force are used if they fit. `build` fills them quicker
    than Python."""
    if balance is not Balance.SOURCE:
        return None, None
    if [member.config for member in group.members] == list(servers) and group.tables != (None, None):
        return group.tables
    return await _table(servers, False, build), await _table(servers, True, build)


async def _table(servers: Sequence[Server], backup: bool, build: Build | None) -> Entries | None:
    """The table of a tier, None without a server; the loop is not held for longer than a few milliseconds."""
    places = [at for at, server in enumerate(servers) if server.backup is backup and server.weight]
    if not places:
        return None
    named = [
        (server_name(servers[at].endpoint.address, servers[at].endpoint.port), servers[at].weight) for at in places
    ]
    turns = turns_of(named, places)
    await asyncio.sleep(0)
    if build is not None:
        return build(turns)
    table: Entries | None = None
    for table in fill(turns):
        if table is None:
            await asyncio.sleep(0)
    return table
