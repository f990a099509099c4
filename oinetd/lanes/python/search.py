"""The search for a server of a group: another one before the client notices. `_fastpath/tcp/search.pxd` is its twin.

A server that refuses, cannot be reached or says nothing is followed by the next choice at once; the client has not been
read by then. The whole search ends with connect-timeout. While another server is left, each one gets half of the time
that is left, and no more than `SILENT_S`, by when the kernel has asked twice. Only a few wait that long,
as many as would eject it; the others go on as soon as the connect is overdue. A client for which only full servers are
left waits for room.
"""

from __future__ import annotations

import asyncio
import errno
import math
import time
from collections.abc import Awaitable, Callable

from oinetd.core.dial import Dialed, DialRequest
from oinetd.core.record import Ending, Try
from oinetd.lanes.python.client_watch import ClientWatch
from oinetd.net.poller import Poller
from oinetd.upstream.address_order import is_of_the_server
from oinetd.upstream.group import Group
from oinetd.upstream.member import Member
from oinetd.upstream.name_wait import SHORT_MAX_S
from oinetd.upstream.selection import TRIES_MAX, Refusal

__all__ = ["SILENT_S", "search_server"]

SILENT_S = 1.5
"""How long a server may be silent while others are left: the kernel repeats the first packet after a second."""

_FAILED = (Ending.CONNECT_FAILED, Ending.CONNECT_TIMEOUT)
_OVER = (Ending.CLIENT_RESET, Ending.SOCKET_FAILED)
"""Nothing that another server could change."""

Dial = Callable[[DialRequest], Awaitable[Dialed]]


async def search_server(request: DialRequest, poller: Poller, dial: Dial) -> Dialed:
    """Try servers until one takes the connection, which is then `request.member`, counted until the session ends."""
    group = request.group
    assert group is not None
    loop = asyncio.get_running_loop()
    begin = loop.time()
    deadline = begin + (request.settings.connect_timeout_s or math.inf)
    tried: list[Member] = []
    retry = _Retry(group)
    last: Dialed | None = None
    try:
        while len(tried) < TRIES_MAX:
            if tried and not retry.may_be():
                break
            found = group.select(request.host, tried)
            if found is Refusal.FULL:
                give_up = deadline if deadline < math.inf else begin + SHORT_MAX_S
                last = await _wait_for_room(request, poller, group, tried, give_up) or last
                if last is not None and last.failed in (Ending.LIMITED, Ending.CLIENT_RESET):
                    break
                continue
            if isinstance(found, Refusal):
                break
            tried.append(found)
            last = await _try(request, dial, group, found, tried, deadline - loop.time(), retry)
            if last.taken_by is not None or last.failed in _OVER or loop.time() >= deadline:
                break
    finally:
        retry.over()
    return last if last is not None else Dialed(None, None, Ending.NO_SERVER)


class _Retry:
    """The right of a session to try another server, taken once."""

    __slots__ = ("_group", "_taken")

    def __init__(self, group: Group) -> None:
        self._group = group
        self._taken = False

    def may_be(self) -> bool:
        """Take it, if it is not taken yet; whether the session has it."""
        self._taken = self._taken or self._group.may_retry()
        return self._taken

    def over(self) -> None:
        if self._taken:
            self._group.retried()


async def _try(
    request: DialRequest, dial: Dial, group: Group, member: Member, tried: list[Member], left_s: float, retry: _Retry
) -> Dialed:
    """One server, which is selected already; it is left again unless it takes the connection.

    If its connect is overdue, only as many sessions wait on as would eject it. The others go on to another server,
    which is no backup if this is none.
    """
    mark = 0

    def goes_on() -> bool | None:
        nonlocal mark
        mark = member.load.wait(group.options.passive.failures)
        if mark or len(tried) >= TRIES_MAX:
            return False
        other = group.pick(request.host, tried, answering=True)
        if not isinstance(other, Member) or other.backup is not member.backup:
            return False
        return retry.may_be() or None  # others have the rights now, and soon give them back

    others = len(tried) < TRIES_MAX and isinstance(group.pick(request.host, tried), Member)
    limit_s = min(left_s / 2, SILENT_S) if others else left_s
    if member.config.connect_timeout_s:
        limit_s = min(limit_s, member.config.connect_timeout_s)
    part = request.to_server(member, max(0.0, limit_s))
    if len(group.members) > 1 and group.options.passive.failures:
        part.overdue_s, part.goes_on = member.load.patience_ms / 1000, goes_on
    try:
        return await _dial(request, part, dial, group, member)
    finally:
        if mark:  # behind the failure that it may be, so that nobody else waits in its place
            member.load.wait_over(mark)


async def _dial(request: DialRequest, part: DialRequest, dial: Dial, group: Group, member: Member) -> Dialed:
    """Connect to a server, and say what came of it."""
    begin = time.monotonic()
    taken = False
    try:
        dialed = await dial(part)
        taken = dialed.taken_by is not None
    finally:
        request.tries.extend(each._replace(server=member.name) for each in part.tries)
        if not taken:
            group.leave(member)
    if dialed.taken_by is not None:
        member.load.took(int((time.monotonic() - begin) * 1000))
        request.member = member
        request.tries.append(Try(dialed.taken_by.host, dialed.taken_by.port, 0, member.name))
        group.worked(member)
    elif dialed.failed in _FAILED and dialed.errno != errno.EINPROGRESS and is_of_the_server(dialed.errno):
        group.failed(member, dialed.errno or errno.ETIMEDOUT)
    return dialed


async def _wait_for_room(
    request: DialRequest, poller: Poller, group: Group, tried: list[Member], deadline: float
) -> Dialed | None:
    """Wait until a server may have room; the end of the search if that is too long, or the client has gone."""
    loop = asyncio.get_running_loop()
    woken: asyncio.Future[bool] = loop.create_future()

    def wake(gone: bool = False) -> None:
        if not woken.done():
            woken.set_result(gone)

    watch = ClientWatch(loop, poller, request.client, lambda: wake(True)) if request.client is not None else None
    group.when_room(wake)
    try:
        async with asyncio.timeout_at(deadline if deadline < math.inf else None):
            if await woken:
                return Dialed(None, None, Ending.CLIENT_RESET, errno.ECONNRESET)
    except TimeoutError:
        return Dialed(None, None, Ending.LIMITED)
    finally:
        group.forget_waiting(wake)
        if watch is not None:
            watch.close()
    return None
