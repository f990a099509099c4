"""The documents of the API as lines for a terminal and for the process log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Final

from oinetd.endpoint import ORIGINAL
from oinetd.observe.text import age, inert, number_of, rate, size, table

__all__ = [
    "client_lines",
    "event_line",
    "explain_lines",
    "place",
    "rule_lines",
    "server_lines",
    "session_lines",
    "status_lines",
]

GROUPS_MAX: Final = 64
"""Groups that `oinetd status` has a line for; `oinetd servers` has all."""


def status_lines(found: dict[str, Any]) -> list[str]:
    """`oinetd status`."""
    lanes = ", ".join(f"{count} {lane}" for lane, count in found["lanes"].items() if count)
    descriptors, reloads = found["descriptors"], found["reloads"]
    limit = descriptors["limit"]
    used = (
        f"{descriptors['open']} of {limit} ({descriptors['open'] / limit:.0%})" if limit else str(descriptors["open"])
    )
    lines = [
        f"{found['name']}: {found['state']}, oinetd {found['version']}, pid {found['pid']}, "
        f"up {age(found['uptime_s'])}",
        f"configuration: {found['conf_file'] or 'none'}, {number_of(found['rules'], 'rule')}"
        + (f" ({lanes})" if lanes else ""),
        f"sessions: {found['live']} live, {found['accepted']} accepted, {found['refused']} refused, "
        f"{found['failed']} failed",
        f"bytes: {size(found['bytes_up'])} up, {size(found['bytes_down'])} down",
        f"room for {found['room'] or 'any number of'} connections"
        + (", FULL: clients wait in the accept queue" if found["full"] else "")
        + (f", was full {number_of(found['times_full'], 'time')}" if found["times_full"] and not found["full"] else ""),
        f"descriptors: {used}",
    ]
    for each in found["reactors"]:
        load = "not measured yet"
        if each["load"] is not None:
            load = f"{each['load']:.1%} of a core, {each['waiting']:.1%} waiting for one"
        lines.append(
            f"thread {each['id']}: {load}, {number_of(each['sessions'], 'session')}, {each['moved']} moved on, "
            f"{age(each['cpu_s'])} CPU in all" + (", polling paused" if each["polling"] == "paused" else "")
        )
    for each in found["names"]:
        lines.append(f"name {each['host']}: {', '.join(each['addresses']) or each['error'] or 'no answer yet'}")
    lines += [_group_line(each) for each in found["groups"][:GROUPS_MAX]]
    if len(found["groups"]) > GROUPS_MAX:
        lines.append(f"and {len(found['groups']) - GROUPS_MAX} more groups")
    done = f"reloads: {reloads['succeeded']} succeeded, {reloads['failed']} failed"
    lines.append(done + (f"; the last one failed: {reloads['last_error']}" if reloads["last_error"] else ""))
    return [inert(part) for line in lines for part in line.split("\n")]


def _group_line(group: dict[str, Any]) -> str:
    line = f"group {group['name']}: {group['usable']} of {group['servers']} servers usable, {group['live']} sessions"
    if group["down"]:
        line += f", DOWN ({number_of(group['times_down'], 'time')})"
    elif group["times_down"]:
        line += f", was down {number_of(group['times_down'], 'time')}"
    if group["full"]:
        return f"{line}, FULL: clients wait for room in a server"
    return f"{line}, was full {number_of(group['times_full'], 'time')}" if group["times_full"] else line


def rule_lines(found: dict[str, Any]) -> list[str]:
    """`oinetd rules`."""
    rows = []
    for rule in found["rules"]:
        now = rule["rate"] or {"accepted": 0, "bytes_up": 0, "bytes_down": 0}
        state = ("FULL" if rule["full"] else rule["lane"]) if rule["in_force"] else "gone"
        rows.append(
            (
                rule["name"],
                rule["connect"],
                state,
                str(rule["live"]),
                str(rule["queued"]),
                str(rule["accepted"]),
                str(rule["refused"]),
                str(rule["failed"]),
                rate(now["accepted"]),
                size(rule["bytes_up"]),
                size(rule["bytes_down"]),
                f"{size(now['bytes_up'] + now['bytes_down'])}/s",
            )
        )
    head = (
        "RULE",
        "TO",
        "LANE",
        ">LIVE",
        ">QUEUED",
        ">ACCEPTED",
        ">REFUSED",
        ">FAILED",
        ">NEW/S",
        ">UP",
        ">DOWN",
        ">NOW",
    )
    return table(head, rows) + [
        inert(f"{rule['name']}: Python lane: {rule['why']}") for rule in found["rules"] if rule["lane"] == "python"
    ]


def server_lines(found: dict[str, Any]) -> list[str]:
    """`oinetd servers`."""
    rows = [
        (
            f"{group['name']}/{server['name']}",
            server["state"] + (" (backup)" if server["backup"] else ""),
            age(max(0.0, time.time() - server["since"])) if server["since"] else "",
            str(server["live"]),
            str(server["weight"]),
            str(server["selected"]),
            str(server["failed"]),
            server["why"],
        )
        for group in found["groups"]
        for server in group["servers"]
    ]
    head = ("SERVER", "STATE", ">SINCE", ">LIVE", ">WEIGHT", ">CHOSEN", ">FAILED", "WHY")
    return table(head, rows) + [inert(line) for group in found["groups"] for line in _group_states(group)]


def _group_states(group: dict[str, Any]) -> Iterator[str]:
    """What is to say of a group beside its servers."""
    if group["down"]:
        yield f"{group['name']}: DOWN: no server is usable ({number_of(group['times_down'], 'time')})"
    elif group["times_down"]:
        yield f"{group['name']}: was down {number_of(group['times_down'], 'time')}"
    if group["full"]:
        yield f"{group['name']}: FULL: clients wait for room in a server"
    elif group["times_full"]:
        yield f"{group['name']}: was full {number_of(group['times_full'], 'time')}"


def client_lines(found: dict[str, Any]) -> list[str]:
    """`oinetd clients`."""
    rows = [
        (
            each["client"],
            str(each["sessions"]),
            age(each["oldest_s"]),
            age(each["idle_s"]),
            size(each["bytes_up"]),
            size(each["bytes_down"]),
        )
        for each in found["clients"]
    ]
    lines = table(("CLIENT", ">SESSIONS", ">OLDEST", ">IDLE", ">UP", ">DOWN"), rows)
    if len(rows) < found["total"]:
        lines.append(f"{len(rows)} of {number_of(found['total'], 'client')}")
    return lines


def session_lines(found: dict[str, Any]) -> list[str]:
    """`oinetd sessions`."""
    rows = [
        (
            str(each["id"]),
            each["rule"],
            _client(each),
            place(each["upstream"], each["upstream_port"]) if each["upstream"] else "connecting",
            age(each["duration_s"]),
            age(each["idle_s"]),
            size(each["bytes_up"]),
            size(each["bytes_down"]),
        )
        for each in found["sessions"]
    ]
    lines = table((">ID", "RULE", "CLIENT", "SERVER", ">AGE", ">IDLE", ">UP", ">DOWN"), rows)
    if len(rows) < found["total"]:
        lines.append(f"{len(rows)} of {number_of(found['total'], 'session')}")
    return lines


def _client(each: dict[str, Any]) -> str:
    """The client of a session, and the proxy that it came through."""
    found = place(each["client"], each["client_port"])
    return f"{found} via {place(each['peer'], each['peer_port'])}" if "peer" in each else found


def event_line(name: str, found: dict[str, Any]) -> str:
    """One line of `oinetd events`."""
    if name == "lost":
        return f"lost: {found['count']} events, this terminal was too slow"
    if name == "server":
        why = f" ({found['why']})" if found["why"] else ""
        return inert(f"{name:8} {found['group']}/{found['name']} is {found['state']}{why}")
    if name == "reload":
        return inert(f"{name:8} " + ("succeeded" if found["succeeded"] else f"failed: {found['error']}"))
    if "client" not in found:
        return inert(f"{name}: " + ", ".join(f"{key} {value}" for key, value in found.items()))
    text = f"{name:8} {found['id']} {_client(found)} -> {found['rule']}"
    if name == "opened":
        return inert(text)
    if found["upstream"]:
        text += f" -> {place(found['upstream'], found['upstream_port'])}"
    return inert(
        f"{text}, {found['ending']}, {age(found['duration_s'])}, "
        f"{size(found['bytes_up'])} up, {size(found['bytes_down'])} down"
    )


def explain_lines(found: dict[str, Any]) -> list[str]:
    """`oinetd explain`."""
    if found["rule"] is None:
        return [inert(f"{found['verdict']}: {found['why']}")]
    lines = [
        f"rule {found['rule']} ({found['line']}{', ' + found['origin'] if found['origin'] else ''})",
        f"listens on {found['listens_on']}",
        f"{found['lane']} lane: {found['lane_why']}",
        *found["limits"],
        f"destination {found['destination']}: {', '.join(found['addresses']) or 'no address now'}"
        if found["destination"] != ORIGINAL
        else "destination original: the address and port that the client wanted",
        *(
            f"server {each['name']}: {'chosen' if each['chosen'] else 'not chosen'}: {each['why']}"
            for each in found["servers"]
        ),
        f"{found['verdict']}: {found['why']}",
    ]
    return [inert(line) for line in lines]


def place(host: str, port: int) -> str:
    """`host:port`; a client of a unix socket has no port."""
    if host.startswith("unix:"):
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
