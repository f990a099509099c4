"""What `explain` says of a rule with a group of servers: which server the client would get, and why not another one."""

from __future__ import annotations

from typing import Any

from oinetd.model import Rule
from oinetd.servers import AllDown
from oinetd.upstream.group import UpstreamStatus
from oinetd.upstream.prospect import Prospect

__all__ = ["add_servers", "judge_servers"]


def add_servers(found: dict[str, Any], group: UpstreamStatus | None, prospects: tuple[Prospect, ...]) -> None:
    """Put the servers of the group into the document `found`."""
    servers = group.servers if group is not None else ()
    found["addresses"] = list(dict.fromkeys(address for server in servers for address in server.addresses))
    found["servers"] = [
        {"name": prospect.server, "chosen": prospect.chosen, "why": prospect.why} for prospect in prospects
    ]


def judge_servers(found: dict[str, Any], rule: Rule) -> None:
    """The verdict of a client that access lets in, if the group has no server for it now."""
    assert rule.upstream is not None
    if any(each["chosen"] for each in found["servers"]):
        return
    if any(each["why"].startswith("full") for each in found["servers"]):
        found["verdict"], found["why"] = "waits", "every usable server of the group is full"
    elif not found["addresses"]:
        found["verdict"], found["why"] = "waits", "no server of the group has an address now"
    elif rule.upstream.options.all_down is AllDown.REFUSE:
        found["verdict"], found["why"] = "no-server", "no server of the group is usable, and all-down=refuse"
    else:
        found["verdict"], found["why"] = "no-server", "no server of the group takes sessions"
