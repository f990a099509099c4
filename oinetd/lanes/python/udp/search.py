"""The search for a server of a group over UDP. `_fastpath/udp/dial.pxd` is its twin.

Connecting a UDP socket sends nothing, so that a server is passed over only if there is no way to it. One that is silent
or refuses datagrams is left later; see `oinetd.upstream.silence`.
"""

from __future__ import annotations

from collections.abc import Callable

from oinetd.core.dial import Dialed, DialRequest
from oinetd.core.record import Ending, Try
from oinetd.upstream.member import Member
from oinetd.upstream.selection import TRIES_MAX, Refusal

__all__ = ["search_datagrams"]


def search_datagrams(request: DialRequest, dial: Callable[[DialRequest], Dialed], left: Member | None) -> Dialed:
    """A server for the client, by `dial`; it is then `request.member`, and the session is counted there. The one that
    the client has just `left` comes last."""
    group = request.group
    assert group is not None
    tried = [left] if left is not None and left in group.members else []
    again = bool(tried)
    last = Dialed(None, None, Ending.NO_SERVER)
    while len(tried) < TRIES_MAX:
        found = group.select(request.host, tried)
        if isinstance(found, Refusal):
            if again:  # there is no other server: the first one again
                again = False
                tried.clear()
                continue
            if found is Refusal.FULL:
                group.found_full()
                last = Dialed(None, None, Ending.LIMITED)
            break
        again = False
        last = dial(request.to_server(found))
        if last.upstream is not None:
            request.change_server(found)
            if last.address is not None:
                request.tries.append(Try(last.address.host, last.address.port, 0, found.name))
            break
        group.leave(found)
        if last.failed is Ending.CONNECT_FAILED:
            group.failed(found, last.errno, by=object())  # no other session sees this one
        if last.failed is Ending.SOCKET_FAILED:
            break
        tried.append(found)
    return last
