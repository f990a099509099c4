"""Why a client is served as it is: the rule for an address, its lane, what access says, where it would go."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from typing import Any, Final

from oinetd.admin.explain_group import add_servers, judge_servers
from oinetd.core.access import AccessControl
from oinetd.core.names import NameTable
from oinetd.enums import AcceptProxy
from oinetd.model import AccessRule, Config, Protocol, Rule, Verb
from oinetd.observe.rules import RuleState
from oinetd.upstream.destination import DestinationState
from oinetd.upstream.group import UpstreamStatus
from oinetd.upstream.prospect import Prospect

__all__ = ["explain"]

ALLOWS_SHOWN: Final = 4
"""Lines that an answer names."""


def explain(
    config: Config,
    states: Iterable[RuleState],
    names: Iterable[DestinationState],
    servers_of: Callable[[Rule, str], tuple[UpstreamStatus | None, tuple[Prospect, ...]]],
    address: str,
    port: int,
    protocol: Protocol,
    client: str,
    hello: tuple[str, tuple[str, ...]] | None = None,
) -> dict[str, Any]:
    """What would happen to a `client` (perhaps empty) that connects to an address and port; a unix socket has port 0.

    `servers_of` has the group of a rule, and its servers as the client would find them. `hello` is the server name and
    the protocols that it wants by TLS, if something is known of that.
    """
    on_port = [state for state in states if state.in_force and port in _ports(state)]
    candidates = [state for state in on_port if state.rule.bind.protocol is protocol]
    served = [(how, state) for state in candidates if (how := _listens(state, address, port))]
    served.sort(key=lambda each: each[0] != "this address")
    if not served:
        others = [
            f"{state.name} listens on {', '.join(state.listening) or state.rule.bind.host}" for state in candidates
        ]
        why = "no rule listens on this port" if not others else f"no rule listens on this address: {'; '.join(others)}"
        if not candidates and on_port:
            hint = "without --udp" if protocol is Protocol.UDP else "--udp"
            why = f"no rule listens on this port by {protocol.value}; {on_port[0].name} has another protocol ({hint})"
        return {"rule": None, "verdict": "not served", "why": why}
    how, state = served[0]
    sharing = [
        each for each_how, each in served if each_how == how and (each.rule.options.sni or each.rule.options.alpn)
    ]
    if sharing:
        chosen = _choose([each for each_how, each in served if each_how == how], *(hello or ("", ())))
        if chosen is None:
            return {"rule": None, "verdict": "not served", "why": _wanted(sharing, hello)}
        state = chosen
    rule = state.rule
    found: dict[str, Any] = {
        "rule": state.name,
        "line": str(rule),
        "origin": str(rule.origin),
        "listens_on": how,
        "lane": state.lane,
        "lane_why": state.why,
        "destination": str(rule.connect),
        "addresses": _addresses(rule, names),
        "servers": [],
        "limits": _limits(config, state),
    }
    if rule.upstream is not None:
        add_servers(found, *servers_of(rule, client))
    found["verdict"], found["why"] = _verdict(config, rule, client) if client else ("served", "no client was given")
    if found["verdict"] == "served" and rule.upstream is not None:
        judge_servers(found, rule)
    elif found["verdict"] == "served" and not found["addresses"]:
        found["verdict"], found["why"] = "waits", "the destination has no address now"
    if found["verdict"] == "served" and state.counts.full:
        found["verdict"], found["why"] = "waits", "the rule is full: clients wait in the accept queue"
    return found


def _choose(states: list[RuleState], name: str, protocols: tuple[str, ...]) -> RuleState | None:
    """The rule that a TLS hello chooses among those that share a listener."""
    options = ((state.rule.options, state) for state in states)
    table = NameTable((said.sni or (), said.alpn or (), state) for said, state in options)
    return table.choose(name.lower(), [protocol.encode() for protocol in protocols])


def _wanted(states: list[RuleState], hello: tuple[str, tuple[str, ...]] | None) -> str:
    """Why none of the rules was chosen, and what they are for."""
    known = "; ".join(
        f"{state.name} is for " + " ".join((*(state.rule.options.sni or ()), *(state.rule.options.alpn or ())))
        for state in states
    )
    if hello is None:
        return f"the TLS server name chooses the rule, and none was given (--sni NAME): {known}"
    wanted = " ".join(filter(None, (hello[0], *hello[1])))
    return f"no rule is for the TLS hello {wanted}: {known}"


def _ports(state: RuleState) -> set[int] | range:
    if state.rule.bind.is_unix:
        return {0}
    if state.rule.bind.port:
        return state.rule.bind.ports
    return {int(place.rpartition(":")[2]) for place in state.listening if not place.startswith("unix:")}


def _listens(state: RuleState, address: str, port: int) -> str:
    """How the rule gets clients of this address; empty if it does not."""
    try:
        wanted = ipaddress.ip_address(address.strip("[]"))
    except ValueError:
        return "this address" if address == state.rule.bind.address else ""
    for place in state.listening:
        host = place.rpartition(":")[0].strip("[]").partition("%")[0]
        try:
            bound = ipaddress.ip_address(host)
        except ValueError:
            continue
        if bound == wanted:
            return "this address"
        if bound.is_unspecified and (bound.version == wanted.version or bound.version == 6):
            return "all addresses"
    return ""


def _addresses(rule: Rule, names: Iterable[DestinationState]) -> list[str]:
    for each in names:
        if each.host == rule.connect.address:
            return list(each.addresses)
    return [rule.connect.address]


def _limits(config: Config, state: RuleState) -> list[str]:
    options, found = state.rule.options, list[str]()
    accepts = config.settings_of(state.rule).accept_proxy
    if accepts is not AcceptProxy.OFF:
        others = "all others are refused" if accepts is AcceptProxy.ON else "others are plain clients"
        found.append(f"accept-proxy {accepts.value}: peers of trust say who their client is; {others}")
    for scope, most, live in (
        ("of the rule", options.max_connections, state.counts.live),
        ("of the process", config.max_connections or None, None),
    ):
        if most:
            found.append(f"max-connections {most} {scope}" + (f" ({live} live)" if live is not None else ""))
    per_source = options.max_connections_per_source or config.max_connections_per_source
    if per_source:
        found.append(f"max-connections-per-source {per_source}")
    return found


def _verdict(config: Config, rule: Rule, client: str) -> tuple[str, str]:
    """What access says, and the line that decides; global lines come first, allow before deny."""
    for scope, rules in (("for all rules", config.access), ("of this rule", rule.access)):
        allows = [each for each in rules if each.verb is Verb.ALLOW]
        if allows and not any(_matches(each, client) for each in allows):
            shown = ", ".join(map(str, allows[:ALLOWS_SHOWN]))
            return "not-allowed", f"no allow line {scope} matches {client}: {shown}"
        for each in rules:
            if each.verb is Verb.DENY and _matches(each, client):
                return "denied", f"{each} {scope} matches {client}"
    passed = [
        str(each) for each in (*config.access, *rule.access) if each.verb is Verb.ALLOW and _matches(each, client)
    ]
    return "served", f"{', '.join(passed)} matches {client}" if passed else f"no line refuses {client}"


def _matches(rule: AccessRule, client: str) -> bool:
    return AccessControl((), (AccessRule(Verb.DENY, rule.pattern),)).decide(client) is not None
