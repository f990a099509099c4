"""Whether a client may use a rule: the `allow` and `deny` lines, applied to its address.

The order is rinetd's. If global allows exist and none of them matches, the client is not allowed; if a
global deny matches, it is denied; then the same with the rule's own allows and denies. The order in which
allow and deny lines stand in the file plays no part.

A decision is made for every connection, so the lists are sorted once by how they can be looked up: networks
by their prefix length (one look-up in a set for each length that occurs), literal texts in a set, patterns
that are a beginning and a `*` in one `str.startswith`. Only what is left is matched one by one.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import NamedTuple

from oinetd.core.pattern import CompiledRule, Kind, PatternError, compile_access
from oinetd.core.record import Ending
from oinetd.errors import ConfigError, Problem
from oinetd.model import AccessRule, Config, Rule, Verb
from oinetd.net.address import UNIX_CLIENT

__all__ = ["AccessControl", "access_control", "glob_match"]

MAPPED_PREFIX = b"\0" * 10 + b"\xff\xff"
"""The first 12 bytes of an IPv4 address as an IPv6 socket shows it (RFC 4291, 2.5.5.2)."""


class AccessControl:
    """The global access rules and those of one forwarding rule, ready to decide.

    `global_rules` and `rule_rules` are what the configuration holds (`Config.access`, `Rule.access`). Raises
    `oinetd.core.pattern.PatternError`, a `ValueError`, for a pattern that is none.
    """

    __slots__ = ("_stages",)

    def __init__(self, global_rules: Iterable[AccessRule] = (), rule_rules: Iterable[AccessRule] = ()) -> None:
        stages = (*_global_stages(global_rules), *_stages(compile_access(rule_rules)))
        self._stages = stages

    def decide(self, address: str) -> Ending | None:
        """Why a client with this numeric address, as the socket gave it, is refused; None if it is not."""
        if not self._stages or address == UNIX_CLIENT:  # mode and owner of the socket's file judge who may connect
            return None
        client = _client(address)
        for refuse_when, refusal, matcher in self._stages:
            if matcher.matches(client) is refuse_when:
                return refusal
        return None


class _Client(NamedTuple):
    """The forms of one address; an absent number is -1."""

    texts: tuple[str, ...]
    ipv4: int
    ipv6: int


class _Stage(NamedTuple):
    """One of the four questions: the client is refused with `refusal` if `matcher` answers `refuse_when`."""

    refuse_when: bool
    refusal: Ending
    matcher: _Matcher


class _Matcher:
    """The patterns of one verb, sorted by how they can be looked up."""

    __slots__ = ("globs", "literals", "nets4", "nets6", "prefixes")

    def __init__(self, rules: Iterable[CompiledRule]) -> None:
        literals, prefixes, globs = set[str](), [], []
        nets4, nets6 = dict[int, set[int]](), dict[int, set[int]]()
        for rule in rules:
            if rule.kind is Kind.GLOB:
                text = rule.data.decode()
                if "*" not in text and "?" not in text:
                    literals.add(text)
                elif text.find("*") == len(text) - 1 and "?" not in text:
                    prefixes.append(text[:-1])
                else:
                    globs.append(text)
            else:
                network, length = rule.data[:-1], rule.data[-1]
                shift = len(network) * 8 - length
                nets = nets4 if rule.kind is Kind.NET4 else nets6
                nets.setdefault(shift, set()).add(int.from_bytes(network, "big") >> shift)
        self.literals = frozenset(literals)
        self.prefixes = tuple(prefixes)
        self.globs = tuple(globs)
        self.nets4 = tuple(nets4.items())
        self.nets6 = tuple(nets6.items())

    def matches(self, client: _Client) -> bool:
        if client.ipv4 >= 0:
            for shift, nets in self.nets4:
                if client.ipv4 >> shift in nets:
                    return True
        if client.ipv6 >= 0:
            for shift, nets in self.nets6:
                if client.ipv6 >> shift in nets:
                    return True
        for text in client.texts:
            if text in self.literals or text.startswith(self.prefixes):
                return True
            for glob in self.globs:
                if glob_match(glob, text):
                    return True
        return False


def _stages(rules: tuple[CompiledRule, ...]) -> tuple[_Stage, ...]:
    allows = [rule for rule in rules if rule.verb is Verb.ALLOW]
    denies = [rule for rule in rules if rule.verb is Verb.DENY]
    stages = []
    if allows:
        stages.append(_Stage(False, Ending.NOT_ALLOWED, _Matcher(allows)))
    if denies:
        stages.append(_Stage(True, Ending.DENIED, _Matcher(denies)))
    return tuple(stages)


_last_global: tuple[object, tuple[_Stage, ...]] = ((), ())


def _global_stages(rules: Iterable[AccessRule]) -> tuple[_Stage, ...]:
    """The stages of the global rules, made once for all forwarding rules of a configuration.

    Every `AccessControl` of a configuration is given the same tuple, and the last one is remembered: ten
    thousand rules would otherwise sort the same global list ten thousand times.
    """
    global _last_global
    if not isinstance(rules, tuple):
        return _stages(compile_access(rules))
    known, stages = _last_global
    if known is not rules:
        stages = _stages(compile_access(rules))
        _last_global = (rules, stages)
    return stages


def _client(address: str) -> _Client:
    try:
        if ":" not in address:
            return _Client((address,), int.from_bytes(socket.inet_pton(socket.AF_INET, address), "big"), -1)
        plain, percent, scope = address.partition("%")
        packed = socket.inet_pton(socket.AF_INET6, plain)
    except (OSError, ValueError):
        # Not an IP address (a Unix socket of an embedding program): only patterns of its text can match.
        return _Client((address,), -1, -1)
    number = int.from_bytes(packed, "big")
    text = socket.inet_ntop(socket.AF_INET6, packed)
    if packed.startswith(MAPPED_PREFIX):
        return _Client((text, text[len("::ffff:") :]), number & 0xFFFFFFFF, number)
    if percent:
        return _Client((text, f"{text}%{scope}"), -1, number)
    return _Client((text,), -1, number)


def access_control(config: Config, rule: Rule) -> AccessControl:
    """Who may use `rule`. Raises `ConfigError` for a pattern that is none."""
    try:
        return AccessControl(config.access, rule.access)
    except PatternError as error:
        # The language refuses it with its place; a program may have made the rule itself.
        raise ConfigError(
            Problem(error.message, file=rule.origin.file, line=rule.origin.line, hint=error.hint)
        ) from error


def glob_match(pattern: str, text: str) -> bool:
    """Whether `pattern` matches the whole of `text`: `*` is any run of characters, `?` exactly one.

    Only the last `*` is ever given more characters, which is enough: an earlier one that took more could only
    leave less for what follows. So the work is at most the product of the two lengths, whatever the pattern.
    """
    at = here = 0
    star = resume = -1
    while here < len(text):
        if at < len(pattern) and pattern[at] == "*":
            star, resume = at, here
            at += 1
        elif at < len(pattern) and (pattern[at] == "?" or pattern[at] == text[here]):
            at += 1
            here += 1
        elif star >= 0:
            resume += 1
            at, here = star + 1, resume
        else:
            return False
    return pattern.count("*", at) == len(pattern) - at
