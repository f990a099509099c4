"""The documents of the API: status, health, rules, sessions. The OpenAPI file describes them."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

import oinetd
from oinetd.admin.instance import DRAINING, STARTING, Instance
from oinetd.core.record import SessionRecord
from oinetd.core.registry import Stats
from oinetd.model import Protocol
from oinetd.net.sockets import is_numeric
from oinetd.observe.machine import ThreadTimes, descriptor_limit, descriptors_open
from oinetd.observe.rates import Rate
from oinetd.observe.rules import RuleState

__all__ = ["health", "rule_document", "session_document", "status"]

RATES = ("accepted", "bytes_up", "bytes_down", "datagrams_up", "datagrams_down")


def health(instance: Instance) -> dict[str, Any]:
    """Whether it serves; `problems` says what is wrong."""
    problems = []
    if instance.state not in (STARTING, DRAINING):
        for state in instance.forwarder.destinations():
            if not state.addresses:
                problems.append(f"{state.host} is not resolved: {state.error or 'no answer from the name server'}")
        for group in instance.forwarder.upstreams():
            if not any(server.state.value == "up" for server in group.servers):
                problems.append(f"group {group.name} has no usable server")
    ready = instance.state not in (STARTING, DRAINING) and not problems
    status = instance.state if instance.state in (STARTING, DRAINING) else "ready" if ready else "degraded"
    return {"status": status, "name": instance.name, "problems": problems}


def _reactors(instance: Instance, loads: Mapping[int, Rate | None], times: list[ThreadTimes]) -> list[dict[str, Any]]:
    """The native threads, each with its load and its sessions."""
    counts = {each.thread: each for each in instance.forwarder.reactors()}
    reactors = []
    for number, each in enumerate(times):
        rate = loads.get(each.thread)
        load, waiting = rate.values if rate is not None else (None, None)
        reactors.append(
            {
                "id": number,
                "load": None if load is None else round(load, 4),
                "waiting": None if waiting is None else round(waiting, 4),
                "cpu_s": round(each.running_s, 3),
                "sessions": counts[each.thread].sessions if each.thread in counts else 0,
                "moved": counts[each.thread].moved if each.thread in counts else 0,
                "polling": counts[each.thread].polling if each.thread in counts else "off",
            }
        )
    return reactors


def status(
    instance: Instance,
    stats: Stats,
    states: list[RuleState],
    loads: Mapping[int, Rate | None],
    times: list[ThreadTimes],
) -> dict[str, Any]:
    """The overview; `loads` has the rates of the reactor threads."""
    reloads = instance.reloads
    in_force = [state for state in states if state.in_force]
    return {
        "name": instance.name,
        "version": oinetd.__version__,
        "pid": os.getpid(),
        "state": instance.state,
        "started": round(instance.started, 3),
        "uptime_s": round(time.monotonic() - instance.began, 3),
        "conf_file": instance.conf_file,
        "rules": len(in_force),
        "lanes": {lane: sum(state.lane == lane for state in in_force) for lane in ("native", "python")},
        "live": stats.live,
        "accepted": stats.accepted,
        "refused": stats.refused,
        "failed": stats.failed,
        "bytes_up": stats.bytes_up,
        "bytes_down": stats.bytes_down,
        "full": stats.full,
        "times_full": stats.times_full,
        "room": stats.room,
        "descriptors": {"open": descriptors_open(), "limit": descriptor_limit()},
        "reactors": _reactors(instance, loads, times),
        "names": [
            {"host": each.host, "addresses": list(each.addresses), "error": each.error}
            for each in instance.forwarder.destinations()
            if not is_numeric(each.host)
        ],
        "groups": [
            {
                "name": each.name,
                "servers": len(each.servers),
                "usable": sum(server.state.value == "up" for server in each.servers),
                "live": sum(server.live for server in each.servers),
                "full": each.full,
                "times_full": each.times_full,
                "down": each.down,
                "times_down": each.times_down,
            }
            for each in instance.forwarder.upstreams()
        ],
        "reloads": {
            "succeeded": reloads.succeeded,
            "failed": reloads.failed,
            "last_error": reloads.last_error,
            "last_at": round(reloads.last_at, 3),
            "last_duration_s": round(reloads.last_duration_s, 6),
        },
    }


def rule_document(state: RuleState, second: Rate | None, minute: Rate | None) -> dict[str, Any]:
    """One rule."""
    counts, rule = state.counts, state.rule
    return {
        "name": state.name,
        "bind": str(rule.bind),
        "connect": str(rule.connect),
        "origin": str(rule.origin),
        "in_force": state.in_force,
        "lane": state.lane,
        "why": state.why,
        "listening": list(state.listening),
        "ports": state.ports,
        "queued": state.queued,
        "live": counts.live,
        "accepted": counts.accepted,
        "refused": counts.refused,
        "failed": counts.failed,
        "bytes_up": counts.bytes_up,
        "bytes_down": counts.bytes_down,
        "datagrams_up": counts.datagrams_up,
        "datagrams_down": counts.datagrams_down,
        "datagrams_lost": counts.datagrams_lost,
        "endings": {ending.value: count for ending, count in counts.endings.most_common()},
        "full": counts.full,
        "times_full": counts.times_full,
        "rate_waits": counts.rate_waits,
        "rate": _rate(second),
        "rate_minute": _rate(minute),
    }


def _rate(rate: Rate | None) -> dict[str, Any] | None:
    if rate is None:
        return None
    values = {name: round(value, 3) for name, value in zip(RATES, rate.values, strict=True)}
    return {"seconds": round(rate.seconds, 3), **values}


def session_document(record: SessionRecord, rule: str) -> dict[str, Any]:
    """One live session, with the names of the JSON log; `rule` is the name of its rule."""
    route = record.route
    found: dict[str, Any] = {
        "id": record.id,
        "started": round(record.started, 6),
        "client": record.client,
        "client_port": record.client_port,
        "bind": route.bind.host,
        "bind_port": route.bind.port,
        "connect": route.connect.host,
        "connect_port": route.connect.port,
        "rule": rule,
        "upstream": record.upstream,
        "upstream_port": record.upstream_port,
        "engine": record.engine,
        "relay": record.relay,
        "connect_s": round(record.connect_s, 6),
        "duration_s": round(record.duration_s, 6),
        "idle_s": round(record.idle_s, 6),
        "bytes_up": record.bytes_up,
        "bytes_down": record.bytes_down,
    }
    if Protocol.UDP in (route.bind.protocol, route.connect.protocol):
        found["datagrams_up"] = record.datagrams_up
        found["datagrams_down"] = record.datagrams_down
        found["datagrams_lost"] = record.datagrams_lost
    if record.peer:
        found |= {"peer": record.peer, "peer_port": record.peer_port}
    return found
