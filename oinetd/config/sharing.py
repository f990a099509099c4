"""Rules that share a listener: they differ in server names or protocols, and agree on the listener's options."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from oinetd.config.rule import RuleLine
from oinetd.errors import Problem
from oinetd.model import Settings

__all__ = ["Shared", "sharing_problems"]

_OF_THE_LISTENER = (
    "engine", "listen_backlog", "keepalive", "accept_proxy", "proxy_timeout_s", "peek_timeout_s",
)  # fmt: skip
_OPTIONS_OF_THE_LISTENER = (
    "freebind", "interface", "defer_accept_s", "transparent", "fastopen", "mptcp", "congestion", "unix_mode",
    "unix_owner",
)  # fmt: skip


class Shared:
    """The rules of one listener, by their indices; the first one opened it."""

    def __init__(self, first: int, rule: RuleLine) -> None:
        self.first = first
        self.rules: list[int] = []
        self._bind = rule.bind
        self._names: dict[tuple[str, str], int] = {}

    def add(self, index: int, rule: RuleLine) -> int | None:
        """Let a rule share the listener; the index of the rule that has its name already, or another range of ports."""
        if (rule.bind.port, rule.bind.last_port) != (self._bind.port, self._bind.last_port):
            return self.first
        options = rule.options
        keys = [(name, protocol) for name in options.sni or ("",) for protocol in options.alpn or ("",)]
        for key in keys:
            if key in self._names:
                return self._names[key]
        self._names.update(dict.fromkeys(keys, index))
        self.rules.append(index)
        return None


def sharing_problems(
    rules: Sequence[RuleLine], listeners: Sequence[Shared], settings: Settings
) -> Iterator[tuple[int, Problem]]:
    """The index of each rule whose listener options differ from the first rule's, and the problem with its line."""
    for shared in listeners:
        first = rules[shared.first]
        wanted = settings.with_overrides(first.options)
        for index in shared.rules[1:]:
            rule = rules[index]
            own = settings.with_overrides(rule.options)
            differ = [name for name in _OF_THE_LISTENER if getattr(own, name) != getattr(wanted, name)]
            differ += [
                name for name in _OPTIONS_OF_THE_LISTENER if getattr(rule.options, name) != getattr(first.options, name)
            ]
            if differ:
                word, name = rule.bind_word, differ[0].removesuffix("_s").replace("_", "-")
                message = f"{name} differs from that of {first.line}, which shares the listener"
                hint = "rules that share a bind address agree on what belongs to the listener"
                yield index, rule.line.problem(message, word.column, word.width, hint)
