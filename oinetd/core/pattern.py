"""What an `allow` or `deny` line matches: a pattern as text, and its compiled form.

The compiled form is small and flat, because two matchers are made from it: `oinetd.core.access` in Python and the
native engine's in C. It is a kind and a few bytes:

    GLOB   the pattern in ASCII: `*` is any run of characters, also an empty one, `?` is exactly one, everything else
           stands for itself. It has to match the whole numeric address. Hexadecimal digits are in lower case; what
           follows a `%` (the scope, a name of an interface) is as written.
    NET4   4 bytes of network, the host bits cleared, and 1 byte of prefix length (0-32).
    NET6   16 bytes of network, the host bits cleared, and 1 byte of prefix length (0-128).

An address without wildcards is the network of its full length, so that `0:0:0:0:0:0:0:1` matches `::1`. One
with a scope is a GLOB of its shortest form, because a network knows no scope.

What is matched, for one client: every form of its address that an operator may have had in mind.

- IPv4: the dotted quad.
- IPv6: the shortest form of RFC 5952, as `inet_ntop` writes it, in lower case.
- IPv6 with a scope (`fe80::1%eth0`): with it and without it. Networks see the 128 bits alone.
- An IPv4 client of an IPv6 socket (`::ffff:192.0.2.1`): as this, and as `192.0.2.1`.
"""

from __future__ import annotations

import enum
import re
import socket
from collections.abc import Iterable
from typing import NamedTuple

from oinetd.model import AccessRule, Verb

__all__ = ["CompiledRule", "Kind", "Pattern", "PatternError", "compile_access", "compile_pattern"]

PATTERN_CHARS_MAX = 255
"""Longer than any address: 45 characters of IPv6, `%`, an interface's name of 15, and wildcards to spare."""

_PLAIN = re.compile(r"[0-9A-Fa-f:.*?\[\]]*")
_SHORT_NETWORK = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,3}){0,2})\.?/([0-9]{1,2})")


class Kind(enum.IntEnum):
    """How the bytes of a compiled pattern are to be read."""

    GLOB = 1
    NET4 = 2
    NET6 = 3


class Pattern(NamedTuple):
    """A compiled pattern."""

    kind: Kind
    data: bytes


class CompiledRule(NamedTuple):
    """One `allow` or `deny`, compiled."""

    verb: Verb
    kind: Kind
    data: bytes


class PatternError(ValueError):
    """A pattern that is none; `hint` is the remedy."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def compile_access(rules: Iterable[AccessRule]) -> tuple[CompiledRule, ...]:
    """The compiled form of `rules`, in their order. Raises `PatternError` for a pattern that is none."""
    compiled = []
    for rule in rules:
        try:
            compiled.append(CompiledRule(rule.verb, *compile_pattern(rule.pattern)))
        except PatternError as error:
            raise PatternError(f"{str(rule)!r} is not valid: {error.message}", error.hint) from None
    return tuple(compiled)


def compile_pattern(text: str) -> Pattern:
    """A pattern's compiled form. Raises `PatternError`."""
    if not text:
        raise PatternError("it is empty")
    if len(text) > PATTERN_CHARS_MAX:
        raise PatternError(f"it has {len(text)} characters; the limit is {PATTERN_CHARS_MAX}")
    if "/" in text:
        return _network(text)
    address, percent, scope = text.partition("%")
    if address.startswith("[") and address.endswith("]"):
        address = address[1:-1]
    elif text.startswith("[") and text.endswith("]"):
        address, scope = address[1:], scope[:-1]
    if not _PLAIN.fullmatch(address) or not (text.isascii() and text.isprintable()):
        raise PatternError(
            "clients are matched by their numeric addresses",
            "write an address, a pattern such as 192.0.2.*, or a network such as 192.0.2.0/24; names are not looked up",
        )
    address = address.lower()
    packed = _packed(address)
    if packed is None or (percent and len(packed) == 4):
        return Pattern(Kind.GLOB, (address + percent + scope).encode())
    if percent:
        return Pattern(Kind.GLOB, f"{socket.inet_ntop(socket.AF_INET6, packed)}%{scope}".encode())
    return Pattern(Kind.NET4 if len(packed) == 4 else Kind.NET6, packed + bytes([len(packed) * 8]))


def _network(text: str) -> Pattern:
    address, _, length = text.partition("/")
    if address.startswith("[") and address.endswith("]"):
        address = address[1:-1]
    packed = _packed(address)
    if packed is None:
        raise PatternError("what stands before the / is not an address", _network_hint(text, address))
    bits = len(packed) * 8
    if not (length.isascii() and length.isdigit() and len(length) <= 3 and int(length) <= bits):
        netmask = _packed(length)
        if netmask is not None and len(netmask) == len(packed) == 4:
            ones, _, rest = f"{int.from_bytes(netmask, 'big'):032b}".partition("0")
            if "1" not in rest:
                raise PatternError("a network takes a prefix length and not a mask", f"write {address}/{len(ones)}")
        raise PatternError(
            f"the prefix length of an IPv{4 if bits == 32 else 6} network is a number from 0 to {bits}",
            f"such as {address}/{24 if bits == 32 else 64}",
        )
    keep = int(length)
    mask = ((1 << bits) - 1) ^ ((1 << (bits - keep)) - 1)
    network = (int.from_bytes(packed, "big") & mask).to_bytes(len(packed), "big")
    return Pattern(Kind.NET4 if bits == 32 else Kind.NET6, network + bytes([keep]))


def _network_hint(text: str, address: str) -> str:
    if "*" in address or "?" in address:
        return "a pattern has wildcards or a prefix length, not both"
    if "%" in address:
        return "a network has no scope; a pattern may have one: fe80::*%eth0"
    short = _SHORT_NETWORK.fullmatch(text)
    if short is not None:
        octets = short[1].split(".")
        return f"write all four numbers: {'.'.join(octets + ['0'] * (4 - len(octets)))}/{short[2]}"
    return "an address and a prefix length, such as 192.0.2.0/24 or 2001:db8::/32"


def _packed(address: str) -> bytes | None:
    """The 4 or 16 bytes of a numeric address, None if the text is none."""
    try:
        return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
    except (OSError, ValueError):
        return None
