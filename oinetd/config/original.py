"""Contradictions of `transparent` and the destination `original`, checked when the whole configuration is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from oinetd.config.rule import RuleLine
from oinetd.errors import Problem
from oinetd.model import AcceptProxy, Protocol, Settings

__all__ = ["original_problems"]


def original_problems(rules: Iterable[tuple[int, RuleLine, bool]], settings: Settings) -> Iterator[tuple[int, Problem]]:
    """The index of each rule with a problem, and the problem; with each rule comes whether an `allow` is for it."""
    for index, said, allows in rules:
        if said.connect.is_original:
            word = said.connect_word
            found = _of_original(said, allows, settings)
        elif said.options.transparent and said.bind.protocol is Protocol.UDP:
            word = said.bind_word
            found = "transparent is for rules that listen on TCP", "remove transparent from this rule"
        else:
            continue
        if found is not None:
            yield index, said.line.problem(found[0], word.column, word.width, found[1])


def _of_original(said: RuleLine, allows: bool, settings: Settings) -> tuple[str, str] | None:
    """What is wrong with a rule whose destination is `original`, and the remedy; None if nothing is."""
    bind = said.bind
    if bind.is_unix or bind.protocol is Protocol.UDP:
        return "original is for rules that listen on TCP", "clients of this rule wanted no other address"
    if not said.options.transparent:
        return "original needs the option transparent", "add [transparent]; a host of this name needs a port behind it"
    if not bind.port or len(bind.ports) > 1:
        return "original needs one port to listen on", "connections to all ports are brought to this one"
    if settings.with_overrides(said.options).accept_proxy is not AcceptProxy.OFF:
        return "original and accept-proxy exclude each other", "write accept-proxy=off"
    if not allows:
        hint = "write allow and the network of the clients on a line behind the rule; allow 0.0.0.0/0 is everybody"
        return "original without allow: everybody could reach every address from here", hint
    return None
