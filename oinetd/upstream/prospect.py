"""Which server of a group a client would get now, and why not another one."""

from __future__ import annotations

from typing import NamedTuple

from oinetd.servers import AllDown, Balance
from oinetd.upstream.group import Group
from oinetd.upstream.member import Member, State

__all__ = ["Prospect", "prospects"]

_NOBODY = "0.0.0.0"


class Prospect(NamedTuple):
    """A server of a group: whether it would be chosen, and why or why not."""

    server: str
    chosen: bool
    why: str


def prospects(group: Group, client: str) -> tuple[Prospect, ...]:
    """The servers of a group as a new client finds them; without an address of it, `balance=source` chooses none.

    Of several that may be chosen, by `balance=random` or without a client's address, each one is `chosen`.
    """
    found = group.pick(client or _NOBODY, draw=0)
    next_one = found if isinstance(found, Member) else None
    balance = group.options.balance
    any_of = balance is Balance.RANDOM or (balance is Balance.SOURCE and not client)
    return tuple(_prospect(group, member, next_one, any_of=any_of) for member in group.members)


def _prospect(group: Group, member: Member, next_one: Member | None, *, any_of: bool) -> Prospect:
    how = f"balance={group.options.balance.value}"
    if member is next_one and not any_of:
        if not member.is_usable:
            how = "no server is usable, and its last failure is the oldest (all-down=try)"
        return Prospect(member.name, True, how if not member.backup else f"{how}, no other server is usable")
    if not member.is_usable:
        return Prospect(member.name, False, _unusable(group, member))
    if not member.has_room:
        return Prospect(member.name, False, f"full: {member.live} of {member.load.max_connections} sessions")
    if next_one is None or member.backup is not next_one.backup:
        return Prospect(member.name, False, "backup: used when no other server is usable")
    return Prospect(member.name, any_of, f"{how}, one of several" if any_of else f"{how} chooses another one now")


def _unusable(group: Group, member: Member) -> str:
    if member.state is State.UP and not member.destination.resolved:
        return "its name has no address now"
    why = f"{member.state.value} ({member.why})" if member.why else member.state.value
    if group.options.all_down is AllDown.TRY and not group.has_usable and member.state in (State.DOWN, State.EJECTED):
        why += ", tried later: no server is usable"
    return why
