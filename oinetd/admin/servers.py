"""Servers of groups: what `/v1/servers` says of them, and what an operator changes."""

from __future__ import annotations

import json
from typing import Any, Final

from oinetd.admin.message import Refusal, Request
from oinetd.forwarder import Forwarder
from oinetd.upstream.member import ServerStatus

__all__ = ["STATES", "change_state", "change_weight", "group_documents", "server_document"]

STATES: Final = ("ready", "drain", "maint")
UP: Final = "up"


def server_document(status: ServerStatus) -> dict[str, Any]:
    """One server."""
    return {
        "name": status.name,
        "state": status.state.value,
        "since": round(status.since, 3),
        "why": status.why,
        "weight": status.weight,
        "backup": status.backup,
        "live": status.live,
        "selected": status.selected,
        "failed": status.failed,
        "checks_passed": status.checks_passed,
        "checks_failed": status.checks_failed,
        "changes": status.changes,
        "addresses": list(status.addresses),
    }


def group_documents(forwarder: Forwarder, group: str = "") -> list[dict[str, Any]]:
    """All groups, or the one of this name. Raises `Refusal` if there is none."""
    found = [each for each in forwarder.upstreams() if not group or each.name == group]
    if group and not found:
        known = ", ".join(each.name for each in forwarder.upstreams()) or "none"
        raise Refusal(404, f"there is no group {group[:64]!r}; known: {known}")
    return [
        {
            "name": each.name,
            "balance": each.balance.value,
            "usable": sum(server.state.value == UP for server in each.servers),
            "full": each.full,
            "times_full": each.times_full,
            "down": each.down,
            "times_down": each.times_down,
            "servers": [server_document(server) for server in each.servers],
        }
        for each in found
    ]


def change_state(forwarder: Forwarder, request: Request, state: str) -> str:
    """Put a server in a state; what was done, for the log."""
    return _change(forwarder, request, state=state)


def change_weight(forwarder: Forwarder, request: Request) -> str:
    """Give a server another weight; what was done, for the log."""
    try:
        value = json.loads(request.body)
        weight = value["weight"]
    except (ValueError, KeyError, TypeError):
        raise Refusal(400, 'the body is {"weight": N}') from None
    if not isinstance(weight, int) or isinstance(weight, bool):
        raise Refusal(400, "the weight is a whole number from 0 to 256")
    return _change(forwarder, request, weight=weight)


def _change(forwarder: Forwarder, request: Request, *, state: str | None = None, weight: int | None = None) -> str:
    group, server = request.values["group"], request.values["server"]
    try:
        forwarder.set_server(group, server, state=state, weight=weight)
    except LookupError as error:
        raise Refusal(404, str(error).strip("'\"")) from None
    except ValueError as error:
        raise Refusal(400, str(error)) from None
    return f"{state or f'weight {weight}'} {group}/{server}"
