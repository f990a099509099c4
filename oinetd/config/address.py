"""Parses hosts and ports, and explains what is wrong with an invalid one.

No host name is resolved here. Service names are looked up in the system's table of services, because the log has port
numbers.
"""

from __future__ import annotations

import re
import socket
from functools import lru_cache
from typing import NamedTuple

from oinetd.config.mistake import Mistake, did_you_mean, shown
from oinetd.model import UNIX_PREFIX, Protocol

__all__ = ["MAPPED", "Host", "Ports", "host_and_port", "parse_host", "parse_ports"]

PORT_MAX = 65535
MAPPED = b"\0" * 10 + b"\xff\xff"
"""The prefix of an IPv4-mapped IPv6 address, RFC 4291, 2.5.5.2."""

NAME_CHARS_MAX = 253
LABEL_CHARS_MAX = 63
"""The limits of a domain name, RFC 1035, 2.3.4."""

UNIX_PATH_BYTES_MAX = 107
"""The length of sun_path in linux/un.h, without the NUL at the end, or before an abstract name."""

_LABEL = re.compile(r"[-0-9A-Za-z_]+")
_NUMBERS = re.compile(r"[0-9.]+")
_HEXADECIMAL = re.compile(r"0[xX][0-9a-fA-F]*")
_HOST_AND_PORT = re.compile(r"(\[[^\]]*\]|[^:]*):([0-9]+(?:-[0-9]+)?(?:/[a-z]+)?)")
_URL = re.compile(r"([A-Za-z][-+.0-9A-Za-z]*)://(?:[^/@]*@)?(\[[^]/]*\]|[^/:?#]*)(?::([0-9]*))?(?:[/?#].*)?")
_PORT_OF_SCHEME = {"http": "80", "https": "443", "ws": "80", "wss": "443", "ftp": "21", "ssh": "22"}
_SERVICE = re.compile(r"[0-9A-Za-z][-0-9A-Za-z_.+*]*")
_RANGE = re.compile(r"([0-9]+)-([0-9]+)")
_PROTOCOLS = {protocol.value: protocol for protocol in Protocol}


class Host(NamedTuple):
    """A parsed host: an address of 4 or 16 bytes with a scope, or a name in lower case without a trailing dot.

    A unix socket has its whole address as name.
    """

    packed: bytes
    scope: str = ""
    name: str = ""

    @property
    def wildcard(self) -> bool:
        """Whether it is the unspecified address, which means all addresses."""
        return bool(self.packed) and not any(self.packed)

    @property
    def unmapped(self) -> Host:
        """The IPv4 address of an IPv4-mapped address; any other host as it is."""
        return Host(self.packed[len(MAPPED) :]) if len(self.packed) == 16 and self.packed.startswith(MAPPED) else self


class Ports(NamedTuple):
    """A parsed port or range: `first` to `last`, both included."""

    first: int
    last: int
    protocol: Protocol

    def __len__(self) -> int:
        return self.last - self.first + 1


@lru_cache(maxsize=4096)
def parse_host(text: str) -> Host:
    """Parse the host of a rule or of `src=`: IPv4, `0`, IPv6 with or without brackets and scope, a name, or
    a unix socket.

    Raises `Mistake`.
    """
    if text == "0":
        return Host(bytes(4))
    if text.startswith("["):
        return _bracketed(text)
    if text.startswith(UNIX_PREFIX):
        return _unix(text)
    if ":" in text:
        return _ipv6(text)
    if _NUMBERS.fullmatch(text):
        return _ipv4(text)
    return _name(text)


def _unix(text: str) -> Host:
    place = text.removeprefix(UNIX_PREFIX)
    name = place.removeprefix("@")
    if not name:
        raise Mistake("the path of the unix socket is missing", "unix:/run/app.sock, or unix:@app for an abstract name")
    if place == name and not name.startswith("/"):
        raise Mistake(
            f"{shown(name)} is not an absolute path",
            f"write unix:/run/{name}, or unix:@{name} for an abstract name",
            start=len(UNIX_PREFIX),
        )
    if place == name and (name.endswith("/") or any(part in (".", "..") for part in name.split("/"))):
        raise Mistake(f"{shown(name)} is not the path of a file", "no '.', no '..', no '/' at the end", start=5)
    size = len(name.encode("utf-8", "surrogateescape"))
    if size > UNIX_PATH_BYTES_MAX:
        raise Mistake(f"the path of the unix socket has {size} bytes; the limit is {UNIX_PATH_BYTES_MAX}", start=5)
    return Host(b"", name=text)


def _bracketed(text: str) -> Host:
    inside, bracket, rest = text[1:].partition("]")
    if not bracket:
        raise Mistake("the ']' of the address is missing", f"[{_bracket_example(inside)}]")
    if rest:
        _refuse_host_and_port(text)
        raise Mistake(f"unexpected {shown(rest)} after the ']' of the address", start=len(inside) + 2)
    if ":" not in inside:
        raise Mistake(f"{shown(inside)} in brackets is not a valid IPv6 address", "brackets are for IPv6: [::1]")
    return _ipv6(inside)


def _bracket_example(inside: str) -> str:
    # The word itself if it is an address, so that the hint can be copied.
    try:
        _ipv6(inside)
    except Mistake:
        return "::1"
    return inside


def _ipv6(text: str) -> Host:
    address, percent, scope = text.partition("%")
    try:
        packed = socket.inet_pton(socket.AF_INET6, address)
    except (OSError, ValueError):
        _refuse_host_and_port(text)
        raise Mistake(
            f"{shown(text)} is not a valid IPv6 address",
            "such as 2001:db8::1, ::1 or fe80::1%eth0; brackets are allowed",
        ) from None
    if percent and not scope:
        raise Mistake("the scope after '%' is missing", "the interface's name or number: fe80::1%eth0")
    if not scope.isprintable() or any(char in scope for char in "[]%/,"):
        raise Mistake(f"{shown(scope)} is not a valid scope", "the interface's name or number: fe80::1%eth0")
    return Host(packed, scope)


def _ipv4(text: str) -> Host:
    try:
        return Host(socket.inet_pton(socket.AF_INET, text))
    except OSError:
        pass
    octets = text.split(".")
    if len(octets) == 4 and all(octets):
        for octet in octets:
            if int(octet[:5]) > 255:
                raise Mistake(
                    f"{shown(text)} is not a valid IPv4 address: {octet[:20]} is more than 255",
                    start=text.index(octet),
                    width=len(octet),
                )
        raise Mistake(
            f"{shown(text)} has a leading zero, and some programs would read the number as octal",
            f"write {'.'.join(str(int(octet[-3:])) for octet in octets)}",
        )
    raise Mistake(
        f"{shown(text)} is not a valid IPv4 address: it needs four numbers from 0 to 255",
        "0 alone means every IPv4 address; the last part of a name needs a letter",
    )


def _name(text: str) -> Host:
    if text == "*":
        raise Mistake("'*' is not a valid address", "0.0.0.0 means every IPv4 address, :: means every address")
    if "/" in text:
        _refuse_host_and_port(text)
        raise Mistake(
            f"{shown(text)} is not a valid address or host name",
            "networks are for allow and deny; a rule takes one address or name",
        )
    if not text.isascii():
        raise Mistake(f"{shown(text)} has characters that a host name cannot have", _ascii_hint(text))
    name = text.removesuffix(".")
    if len(name) > NAME_CHARS_MAX:
        raise Mistake(f"the host name has {len(name)} characters; the limit is {NAME_CHARS_MAX}")
    start = 0
    labels = name.split(".")
    for label in labels:
        if not label:
            raise Mistake(f"{shown(text)} has an empty part between its dots", start=max(0, start - 1), width=1)
        if len(label) > LABEL_CHARS_MAX:
            raise Mistake(
                f"a part of the host name has {len(label)} characters; the limit is {LABEL_CHARS_MAX}",
                start=start,
                width=len(label),
            )
        if not _LABEL.fullmatch(label):
            raise Mistake(
                f"{shown(text)} is neither an address nor a host name",
                "names have letters, digits, '-', '_' and dots",
            )
        start += len(label) + 1
    if not re.search("[A-Za-z]", labels[-1]) or _HEXADECIMAL.fullmatch(labels[-1]):
        raise Mistake(
            f"{shown(text)} is neither an address nor a host name",
            "the last part of a name needs a letter",
        )
    return Host(b"", name=name.lower())


def host_and_port(text: str) -> Mistake | None:
    """The mistake if `text` is a URL, or an address and a port in one word; else None."""
    url = _URL.fullmatch(text)
    if url is not None:
        port = url[3] or _PORT_OF_SCHEME.get(url[1].lower(), "PORT")
        return Mistake(f"{shown(text)} is a URL; a rule takes a host and a port", f"write {url[2]} {port}")
    joined = _HOST_AND_PORT.fullmatch(text)
    if joined is None:
        return None
    return Mistake(
        f"{shown(text)} is an address and a port in one word",
        f"write the port as a word of its own: {joined[1] or '0'} {joined[2]}",
    )


def _refuse_host_and_port(text: str) -> None:
    joined = host_and_port(text)
    if joined is not None:
        raise joined


def _ascii_hint(text: str) -> str:
    try:
        return f"in ASCII it is {text.encode('idna').decode('ascii')}"
    except UnicodeError:
        return "the file is read as UTF-8"


@lru_cache(maxsize=4096)
def parse_ports(text: str) -> Ports:
    """Parse the port of a rule: a number, service or range, and an optional protocol after a slash.

    Raises `Mistake`.
    """
    word, slash, name = text.partition("/")
    protocol = _PROTOCOLS.get(name) if slash else Protocol.TCP
    if protocol is None:
        hint = did_you_mean(name, _PROTOCOLS, "protocols") or "/tcp or /udp"
        raise Mistake(f"unknown protocol {shown(name)}", hint, start=len(word) + 1)
    if not word:
        raise Mistake("the port before the '/' is missing", f"such as 80{text}", width=1)
    if word.isascii() and word.isdigit():
        port = _number(word, 0)
        return Ports(port, port, protocol)
    ends = _RANGE.fullmatch(word)
    if ends is not None:
        first, last = _number(ends[1], 0), _number(ends[2], len(ends[1]) + 1)
        if first > last:
            raise Mistake(f"the range {shown(word)} is backwards", f"write {last}-{first}", width=len(word))
        if first == 0:
            raise Mistake("a range cannot begin with port 0", "0 alone means any free port", width=len(word))
        return Ports(first, last, protocol)
    port = _service(word, protocol)
    return Ports(port, port, protocol)


def _number(digits: str, start: int) -> int:
    significant = digits.lstrip("0") or "0"
    if len(significant) > 5 or int(significant) > PORT_MAX:
        raise Mistake(
            f"port {digits[:20]} is out of range",
            f"ports are 0 to {PORT_MAX}",
            start=start,
            width=len(digits),
        )
    return int(significant)


def _service(word: str, protocol: Protocol) -> int:
    if _SERVICE.fullmatch(word):
        try:
            return socket.getservbyname(word, protocol.value)
        except OSError:
            pass
    _refuse_host_and_port(word)
    raise Mistake(
        f"{shown(word)} is neither a port nor a service known for {protocol.value}",
        "a number, a range such as 8000-8010, or a name from /etc/services",
        width=len(word),
    )
