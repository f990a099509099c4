"""The socket options of rules, tried with the kernel before anything is opened."""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence

from oinetd.errors import ConfigError, Problem
from oinetd.model import Protocol, Rule
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
    if any(rule.options.from_client for rule in rules) and delivers_marked(socket.AF_INET) is False:
        log.warning("src=client: answers of servers would not come here: `oinetd transparent` prints what is needed")
    if any(rule.options.transparent for rule in rules) and delivers_marked(socket.AF_INET) is False:
        log.warning("transparent: what tproxy brings would not come here: `oinetd transparent` prints what is needed")
    if fastopen and fastopen_is_off():
        log.warning("fastopen: not in force for clients: set net.ipv4.tcp_fastopen to 3")


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
