"""`Config` → text with every setting, which parses to an equal `Config`."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter

from oinetd.config.admin import admin_lines
from oinetd.config.upstream import DATAGRAMS
from oinetd.config.vocabulary import VOCABULARY, Duty, Entry
from oinetd.model import AccessRule, Config, Endpoint, Protocol, Rule
from oinetd.servers import GroupOptions, Server, Upstream

__all__ = ["render_config"]


def render_config(config: Config) -> str:
    """The configuration as text, with defaults.

    Raises `ValueError` for a `Config` of a program that the language cannot express, such as a host with a blank.
    """
    return "\n".join(_lines(config)) + "\n"


def _lines(config: Config) -> Iterator[str]:
    yield "# The configuration in force: every setting, with defaults."
    yield ""
    for entry in VOCABULARY:
        if entry.duty is Duty.SET and entry.setting and not entry.alias:
            value = attrgetter(entry.setting)(config)
            if value != "":
                yield f"{entry.name} {_value(entry, value)}"
    yield from admin_lines(config.admin)
    if config.access:
        yield ""
    yield from map(_access, config.access)
    for upstream in config.upstreams:
        yield ""
        yield from _upstream(upstream)
    for rule in config.rules:
        yield ""
        yield _rule(rule)
        for access in rule.access:
            yield f"    {_access(access)}"


def _rule(rule: Rule) -> str:
    options = [
        f"{entry.name}={_value(entry, value)}"
        for entry in VOCABULARY
        if entry.option and (value := getattr(rule.options, entry.option)) is not None
    ]
    upstream = rule.upstream
    if upstream is not None and not upstream.name:
        if any(server != Server(server.endpoint) for server in upstream.servers):
            raise ValueError("a configuration cannot contain servers with options in a group without a name")
        options += _group_options(upstream.options, beside_rule=True)
    connect = _one_word(rule.connect.host) if upstream is not None and upstream.name else _destination(rule.connect)
    sides = f"{_endpoint(rule.bind)}  {connect}"
    return f"{sides}  [{', '.join(options)}]" if options else sides


def _upstream(upstream: Upstream) -> Iterator[str]:
    """The lines of a group with a name: its options, then its servers."""
    yield f"upstream {_one_word(upstream.name)} [{', '.join(_group_options(upstream.options))}]"
    for server in upstream.servers:
        options = _server_options(server)
        where = _endpoint(server.endpoint) if server.is_address else _one_word(server.endpoint.host)
        if server.is_file and server.endpoint.protocol is Protocol.UDP:
            where += f" {DATAGRAMS}"
        yield f"upstream {upstream.name} {where}" + (f"  [{', '.join(options)}]" if options else "")


def _group_options(options: GroupOptions, *, beside_rule: bool = False) -> list[str]:
    """All options; in the brackets of a rule, a name of both tables is an option of the rule."""
    return [
        f"{entry.name}={_value(entry, value)}"
        for entry in VOCABULARY
        if entry.group
        and not (beside_rule and entry.option)
        and (value := getattr(options, entry.group)) not in (None, "", b"")
        and not (entry.group == "check_port" and not value)
    ]


def _server_options(server: Server) -> list[str]:
    return [
        f"{entry.name}={_value(entry, value)}"
        for entry in VOCABULARY
        if entry.server and (value := getattr(server, entry.server)) is not None
    ]


def _destination(endpoint: Endpoint) -> str:
    return endpoint.host if endpoint.is_original else _endpoint(endpoint)


def _endpoint(endpoint: Endpoint) -> str:
    if endpoint.is_unix:
        return _one_word(endpoint.host)
    ports = str(endpoint.port)
    if endpoint.last_port != endpoint.port:
        ports += f"-{endpoint.last_port}"
    if endpoint.protocol is not Protocol.TCP:
        ports += f"/{endpoint.protocol.value}"
    return f"{_one_word(endpoint.host)} {ports}"


def _access(access: AccessRule) -> str:
    return f"{access.verb.value} {_one_word(access.pattern)}"


def _value(entry: Entry, value: object) -> str:
    assert entry.value is not None  # only an alias has no value
    return entry.value.format(value)


def _one_word(text: str) -> str:
    if not text or any(char in text for char in " \t\r\n\0#"):
        raise ValueError(f"{text!r} is not one word of a configuration")
    return text
