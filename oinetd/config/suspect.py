"""Patterns of `allow` and `deny` that match no client, or fewer clients than expected, with a suggestion.

Whether a pattern can match at all is decided exactly (`printed`). A suggestion is a guess, but it is checked: it is
never a pattern that cannot match.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from itertools import pairwise

from oinetd.config.address import MAPPED
from oinetd.config.mistake import Mistake
from oinetd.config.printed import printed_example
from oinetd.core.pattern import Kind, PatternError, compile_pattern

__all__ = ["suspect_pattern"]

_WITH_PORT = re.compile(r"\[?([^]]*?)\]?:[0-9]+")
_DOTTED = re.compile(r"[0-9.*?]+")
_LEADING_ZEROS = re.compile(r"(?<![0-9a-f*?])0+(?=[0-9a-f])")
_PREFIX = re.compile(r"((?:[0-9a-f]{1,4}:){1,7})(:?)\*")
_LINK_LOCAL = "fe80"

EVERYBODY = "* matches every address"
AS_PRINTED = "an address is matched in its printed form, such as 192.0.2.1 or 2001:db8::1"


def suspect_pattern(pattern: str, *, ipv4_listens: bool) -> Mistake | None:
    """What is suspicious about a valid pattern; None if nothing is.

    `ipv4_listens` is whether it applies to a listener on an IPv4 address. The message continues a sentence that begins
    with the pattern: "can never match".
    """
    kind, data = compile_pattern(pattern)
    if kind is Kind.GLOB:
        text = data.decode()
        if printed_example(text) is None:
            return Mistake("can never match", _never_hint(text))
        found = _part_of_a_network(text)
        if found is None and ipv4_listens and text.startswith("::ffff:") and _can_match(text[len("::ffff:") :]):
            found = _mapped_only(text[len("::ffff:") :])
        return found
    network, length = data[:-1], data[-1]
    if not any(network) and length == len(network) * 8:
        return Mistake("can never match: no client has this address", EVERYBODY)
    if "/" not in pattern:
        found = _one_address(network)
        if found is not None:
            return found
    if ipv4_listens and kind is Kind.NET6 and length >= 96 and network.startswith(MAPPED):
        host = socket.inet_ntop(socket.AF_INET, network[len(MAPPED) :])
        return _mapped_only(host if length == 128 else f"{host}/{length - 96}")
    return None


def _never_hint(text: str) -> str:
    for guess in _guesses(text):
        if guess != text and _can_match(guess):
            whole = _network_of(guess) if _part_of_a_network(guess) else guess
            return f"did you mean {whole}?"
    if _DOTTED.fullmatch(text) and any(number > 255 for number in map(int, re.findall("[0-9]+", text))):
        return "the numbers of an IPv4 address go from 0 to 255"
    return AS_PRINTED


def _can_match(pattern: str) -> bool:
    try:
        kind, data = compile_pattern(pattern)
    except PatternError:
        return False
    return kind is not Kind.GLOB or printed_example(data.decode()) is not None


def _guesses(text: str) -> Iterator[str]:
    """What a pattern that can never match may have meant, the most likely first."""
    if not text.strip("0.:"):
        yield "*"
    with_port = _WITH_PORT.fullmatch(text)
    if with_port is not None and ("." in text or "[" in text):
        yield with_port[1]
        yield from _guesses(with_port[1])
    address, percent, _ = text.partition("%")
    if percent:
        yield address
    if _DOTTED.fullmatch(text):
        octets = [octet.lstrip("0") or octet[:1] for octet in text.strip(".").split(".")]
        yield ".".join(octets if len(octets) >= 4 else [*octets, "*"])
        if len(octets) > 4:
            yield ".".join(octets[:4]) if set(octets[4:]) == {"*"} else ""
    if ":" in text:
        plain = _LEADING_ZEROS.sub("", text.strip("[]"))
        yield plain
        yield f"{plain.rstrip(':')}:*"


def _network_of(pattern: str) -> str:
    """The network of the pattern `groups:*` or `groups::*`; empty if it is neither."""
    prefix = _PREFIX.fullmatch(pattern)
    if prefix is None:
        return ""
    groups = prefix[1].rstrip(":").split(":")
    whole = ":".join(groups + ["0"] * (8 - len(groups)))
    return f"{socket.inet_ntop(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, whole))}/{16 * len(groups)}"


def _part_of_a_network(text: str) -> Mistake | None:
    """The mistake if the pattern matches a part of a network only: an address with a run of zeros has `::` instead."""
    prefix = _PREFIX.fullmatch(text)
    if prefix is None:
        return None
    groups = [int(group, 16) for group in prefix[1].rstrip(":").split(":")]
    if prefix[2]:
        # Link-local addresses begin with fe80 and three groups of zeros (RFC 4291, 2.5.6).
        whole = len(groups) == 1 and prefix[1].startswith(_LINK_LOCAL)
    else:
        whole = groups[-1] != 0 and (0, 0) not in pairwise(groups)
    if whole:
        return None
    network = _network_of(text)
    return Mistake(
        f"matches only a part of {network}", f"zeros are printed as '::'; for the whole network write {network}"
    )


def _one_address(network: bytes) -> Mistake | None:
    """The mistake if an address without a prefix length looks like a network."""
    zeros = len(network) - len(network.rstrip(b"\0"))
    if zeros == 0 or (len(network) == 16 and zeros < 8):
        return None
    if len(network) == 4:
        address, length = socket.inet_ntop(socket.AF_INET, network), 32 - 8 * zeros
    else:
        address, length = socket.inet_ntop(socket.AF_INET6, network), 128 - 16 * (zeros // 2)
    return Mistake(
        "matches one address, not a network",
        f"for the network write {address}/{length}, for this address only {address}/{len(network) * 8}",
    )


def _mapped_only(plain: str) -> Mistake:
    return Mistake(
        "matches IPv4 clients of an IPv6 listener, but not of an IPv4 listener",
        f"{plain} matches both",
    )
