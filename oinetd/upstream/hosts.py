"""The names in a configuration that a start resolves."""

from __future__ import annotations

from oinetd.model import Config, Rule
from oinetd.net.sockets import is_numeric

__all__ = ["names_of"]


def names_of(config: Config) -> dict[str, tuple[Rule, str]]:
    """The names that a start resolves, each with its first rule and its use in this rule."""
    names: dict[str, tuple[Rule, str]] = {}
    for rule in config.rules:
        source = rule.options.source
        hosts = ((rule.bind.address, "address to listen on"), (rule.connect.address, "destination"))
        for host, what in (*hosts, *(((source, "source address"),) if source else ())):
            if not is_numeric(host):
                names.setdefault(host, (rule, what))
    return names
