"""Groups of servers in the reactors: the native form of a group, and what reactors report of servers.

A native group is a snapshot of a group for one policy. Another one is made when servers come or go, or have other
addresses; the servers themselves, which are the `load` of a `Member`, stay, and both lanes count in them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from oinetd.core.record import Ending
from oinetd.core.service import Service
from oinetd.lanes.native.plane import ENDINGS, PROXY_VERSIONS, Hub, available, may_self_connect, milliseconds
from oinetd.net.sockets import is_numeric
from oinetd.servers import AllDown, Balance
from oinetd.upstream.group import Group
from oinetd.upstream.load import LocalLoad, NewLoad
from oinetd.upstream.maglev import Build, Turns
from oinetd.upstream.member import Member

try:
    from oinetd import _fastpath
except ImportError:  # then no lane asks for a group; `plane.available` says why
    if TYPE_CHECKING:
        raise

__all__ = ["build_table", "compile_group", "means_for_groups", "server_changed", "servers_by_tag", "session_parts"]

PARTS_MAX = 100
"""The sessions of a server are ended in at most this number of parts: each is a look at every session."""

FAILURES_TOLD = 3
"""Without passive ejection, this number of failed connects in a row has the server's name resolved again."""

_BALANCES = {balance: number for number, balance in enumerate(Balance)}


def means_for_groups() -> tuple[NewLoad, Build | None]:
    """What makes the load of a server, in which both lanes count, and what builds tables quicker than Python."""
    return (LocalLoad, None) if available() else (_fastpath.Server, build_table)


def build_table(turns: Turns) -> _fastpath.Table:
    """Maglev's table, quicker than in Python, in the form that all policies of a group share."""
    return _fastpath.Table(_fastpath.fill_table(*turns))


def _native(member: Member) -> _fastpath.Server:
    assert isinstance(member.load, _fastpath.Server)
    return member.load


def compile_group(
    group: Group, service: Service, local_ports: range, before: _fastpath.Group | None
) -> _fastpath.Group:
    """The group in the form of the data plane; what `before` knows of addresses is kept."""
    looping = service.guard.addresses if service.guard is not None else frozenset()
    members = []
    for member in group.members:
        addresses = member.addresses(service.route.place)
        places = tuple(address.sockaddr for address in addresses)
        sources = member.source.at(0) if member.source is not None else ()
        members.append(
            _fastpath.Member(
                _native(member),
                places,
                member.backup,
                tuple(address in looping for address in addresses),
                may_self_connect(places, local_ports),
                is_numeric(member.destination.host),
                tuple(address.sockaddr for address in sources),
                milliseconds(member.config.connect_timeout_s or 0.0),
                PROXY_VERSIONS[member.header(service.settings.send_proxy)] if service.sends_headers else 0,
            )
        )
    options = group.options
    return _fastpath.Group(
        members,
        balance=_BALANCES[options.balance],
        refuse=options.all_down is AllDown.REFUSE,
        all_backups=options.all_backups,
        slow_ms=milliseconds(options.slow_start_s),
        failures_told=options.passive.failures or FAILURES_TOLD,
        ejects=options.passive.failures > 0,
        tables=group.tables if options.balance is Balance.SOURCE else (None, None),
        before=before,
    )


def servers_by_tag(group: Group | None) -> Mapping[int, Member]:
    """The servers of a group by the tags that are in records of reactors."""
    return {member.load.tag: member for member in group.members} if group is not None else {}


def server_changed(group: Group, member: Member, errno: int, row: int) -> None:
    """Connects to a server fail, `row` of them in a row; or it works again (`errno` 0)."""
    if errno:
        member.destination.look_up_again()
        group.judge_failures(member, errno, row)
        member.load.state = member.state.number  # a reactor may have ejected it when two of them saw a last one each
    else:
        group.worked(member)


def session_parts(hub: Hub, member: Member) -> Iterable[Callable[[Ending], object]]:
    """The sessions of a server in the reactors, in parts of about the same size, each as the function that ends it."""
    parts = min(member.load.live, PARTS_MAX)
    return [functools.partial(_end_part, hub, member, part, parts) for part in range(parts)]


def _end_part(hub: Hub, member: Member, part: int, parts: int, ending: Ending) -> None:
    hub.end_sessions(_native(member), ENDINGS.index(ending), part, parts)
