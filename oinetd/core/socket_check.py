"""The socket options of rules, tried with the kernel before anything is opened."""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from typing import Final

from oinetd.errors import ConfigError, Problem
from oinetd.model import Endpoint, Protocol, Rule
from oinetd.net.options import (
    NO_CONNECT_OPTIONS,
    NO_LISTEN_OPTIONS,
    ConnectOptions,
    ListenOptions,
    RefusedOption,
    fastopen_is_off,
    probe,
)
from oinetd.net.transparent import delivers_marked

__all__ = ["check_options"]

log = logging.getLogger("oinetd")

_NAMES: Final = {socket.AF_INET: "IPv4", socket.AF_INET6: "IPv6"}


def check_options(rules: Sequence[Rule]) -> None:
    """Try the options of all rules. Raises `ConfigError` with each that the kernel refuses."""
    problems: list[Problem] = []
    tried: dict[tuple[ListenOptions | ConnectOptions, Protocol], str] = {}
    fastopen = False
    for rule in rules:
        listen, connect = ListenOptions.of(rule.options), ConnectOptions.of(rule.options)
        found = []
        if listen != NO_LISTEN_OPTIONS and not rule.bind.is_unix:
            found.append(_refused(listen, rule.bind.protocol, tried))
            fastopen = fastopen or listen.fastopen
        if connect != NO_CONNECT_OPTIONS and not rule.connect.is_unix:
            found.append(_refused(connect, rule.connect.protocol, tried))
        for message in dict.fromkeys(each for each in found if each):
            what, _, remedy = message.rpartition(": ")
            problems.append(Problem(what, rule.origin.file, rule.origin.line, hint=remedy))
    if problems:
        raise ConfigError(*problems)
    for option, what, having in (
        ("src=client", "answers of servers", [rule for rule in rules if rule.options.from_client]),
        ("transparent", "what tproxy brings", [rule for rule in rules if rule.options.transparent]),
    ):
        families = {family for rule in having for family in _families(rule.bind)}
        if missing := [name for family, name in _NAMES.items() if family in families and _is_missing(family)]:
            remedy = "`oinetd transparent` prints what is needed"
            log.warning("%s: %s would not come here over %s: %s", option, what, " and ".join(missing), remedy)
    if fastopen and fastopen_is_off():
        log.warning("fastopen: not in force for clients: set net.ipv4.tcp_fastopen to 3")


def _families(bind: Endpoint) -> Sequence[socket.AddressFamily]:
    """Those of the clients of a rule that listens there."""
    if bind.is_unix:  # its clients have addresses by their PROXY headers
        return tuple(_NAMES)
    host = bind.host
    if ":" not in host or "." in host:  # an IPv4 address, also one that is written as IPv6
        return (socket.AF_INET,)
    return tuple(_NAMES) if host == "::" else (socket.AF_INET6,)


def _is_missing(family: socket.AddressFamily) -> bool:
    """Whether no route delivers packets for the addresses of others to this machine."""
    return delivers_marked(family) is False


def _refused(
    options: ListenOptions | ConnectOptions,
    protocol: Protocol,
    tried: dict[tuple[ListenOptions | ConnectOptions, Protocol], str],
) -> str:
    """What the kernel says against them; empty if nothing."""
    if (options, protocol) not in tried:
        try:
            probe(options, protocol)
        except RefusedOption as error:
            tried[options, protocol] = str(error.strerror)
        else:
            tried[options, protocol] = ""
    return tried[options, protocol]
