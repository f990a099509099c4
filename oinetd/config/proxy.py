"""Contradictions between options of the PROXY protocol, checked when the whole configuration is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from oinetd.config.rule import RuleLine
from oinetd.errors import Problem
from oinetd.model import AcceptProxy, Protocol, RuleOptions, SendProxy, Settings
from oinetd.servers import Server

__all__ = ["proxy_problems"]


def proxy_problems(
    rules: Iterable[tuple[int, RuleLine, bool]], settings: Settings, groups: Mapping[str, Sequence[Server]]
) -> Iterator[tuple[int, Problem]]:
    """The index of each rule with options that contradict each other, and the problem.

    With each rule comes whether it has a `trust`, or there is one for all rules. `settings` are those for all rules,
    `groups` the servers of the groups with a name.
    """
    for index, said, trusts in rules:
        options, in_force = said.options, settings.with_overrides(said.options)
        word = said.bind_word
        servers = groups.get(said.group, ())
        own = {server.send_proxy: server for server in servers}
        to = servers[0].endpoint.protocol if servers else said.connect.protocol
        sending = own.get(SendProxy.V1) or own.get(SendProxy.V2)
        for message, hint in _sending_problems((said.bind.protocol, to), options, in_force, sending):
            yield index, said.line.problem(message, word.column, word.width, hint)
        if options.from_client and Protocol.UDP in (said.bind.protocol, said.connect.protocol):
            message = "src=client is for rules from TCP to TCP"
            yield index, said.line.problem(message, word.column, word.width, "write an address of this machine")
        if (options.sni or options.alpn) and Protocol.UDP in (said.bind.protocol, said.connect.protocol):
            message = "sni and alpn are for rules from TCP to TCP"
            yield index, said.line.problem(message, word.column, word.width, "remove them from this rule")
        if in_force.accept_proxy is not AcceptProxy.OFF and not (trusts or said.bind.is_unix):
            message = "accept-proxy without trust: nobody may send a header"
            hint = "write trust and the address of the proxy on a line behind the rule; trust 0.0.0.0/0 is everybody"
            yield index, said.line.problem(message, word.column, word.width, hint)
        if in_force.proxy_tlv and (in_force.send_proxy is SendProxy.V1 or SendProxy.V1 in own):
            message = "proxy-tlv needs version 2 of the PROXY protocol"
            if in_force.send_proxy is not SendProxy.V1:
                message += f", and the server {own[SendProxy.V1]} of @{said.group} gets version 1"
            yield index, said.line.problem(message, word.column, word.width, "write send-proxy=v2, or proxy-tlv=off")
        elif options.proxy_tlv and in_force.send_proxy is SendProxy.OFF and SendProxy.V2 not in own:
            message = "proxy-tlv has no effect without send-proxy"
            yield index, said.line.problem(message, word.column, word.width, "add send-proxy=v2 to this rule")


def _sending_problems(
    way: tuple[Protocol, Protocol], options: RuleOptions, in_force: Settings, sending: Server | None
) -> Iterator[tuple[str, str]]:
    """What is wrong with `send-proxy` between the protocols of a rule, with the remedy; `sending` is a server of its
    group that has it."""
    pair = "send-proxy is for rules from TCP to TCP or from UDP to UDP"
    if way[0] is not way[1]:
        if options.send_proxy not in (None, SendProxy.OFF):
            yield pair, "remove send-proxy from this rule"
        if sending is not None:
            yield f"{pair}, and the server {sending} of the group has it", "remove send-proxy from the server"
    elif way[0] is Protocol.UDP and in_force.send_proxy is SendProxy.V1:
        yield "version 1 of the PROXY protocol is not for datagrams", "write send-proxy=v2, or send-proxy=off"
    if options.send_proxy_udp is not None and Protocol.TCP in way:
        yield "send-proxy-udp is for rules from UDP to UDP", "remove send-proxy-udp from this rule"
    elif options.send_proxy_udp is not None and in_force.send_proxy is SendProxy.OFF and sending is None:
        yield "send-proxy-udp has no effect without send-proxy", "add send-proxy=v2 to this rule"
