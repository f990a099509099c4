"""The names in a configuration that a start resolves."""

from __future__ import annotations

from collections.abc import Iterator

from oinetd.model import Config, Origin
from oinetd.net.sockets import is_numeric

__all__ = ["names_of"]


def names_of(config: Config) -> dict[str, tuple[Origin, str]]:
    """The names that a start resolves, each with its first place and its use there."""
    names: dict[str, tuple[Origin, str]] = {}
    for host, origin, what in _hosts(config):
        if host and not is_numeric(host):
            names.setdefault(host, (origin, what))
    return names


def _hosts(config: Config) -> Iterator[tuple[str | None, Origin, str]]:
    for rule in config.rules:
        yield rule.bind.address, rule.origin, "address to listen on"
        if rule.upstream is None and not rule.connect.is_original:
            yield rule.connect.address, rule.origin, "destination"
        yield rule.options.source_host, rule.origin, "source address"
        if rule.upstream is None:
            continue
        yield rule.upstream.options.source, rule.upstream.origin, "source address"
        for server in rule.upstream.servers:
            yield server.source, server.origin, "source address"
            if server.is_address:
                yield server.endpoint.address, server.origin, "server"
