"""The kinds of values of directives and options: how each is parsed and formatted.

A kind has a `form`, its notation in messages and the manual; a `parse`, which raises `Mistake`; and a `format`, whose
result parses to an equal value.
"""

from __future__ import annotations

import enum
import re
from typing import Any, Protocol

from oinetd.bounds import (
    KEEPALIVE_COUNT_MAX,
    KEEPALIVE_S_MAX,
    PREFIX_IPV4_MAX,
    PREFIX_IPV6_MAX,
    SIZE_BYTES_MAX,
    TIME_S_MAX,
    TIME_S_MIN,
)
from oinetd.config.address import parse_host
from oinetd.config.mistake import Mistake, did_you_mean, shown
from oinetd.core.pattern import PatternError, compile_pattern
from oinetd.model import UNIX_PREFIX, KeepAlive, SourcePrefix

__all__ = [
    "AccessPattern",
    "Choice",
    "Count",
    "FileName",
    "Flags",
    "KeepAliveForm",
    "PrefixPair",
    "Size",
    "SourceAddress",
    "Switch",
    "Time",
    "Value",
]

_TIME = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,20})?)(ms|[smh]?)")
_SIZE = re.compile(r"([0-9]{1,12})([KMGkmg]?)")
_EVERYBODY = ("all", "any", "everybody", "everyone", "anywhere")
_UNIT_S = {"": 1, "s": 1, "m": 60, "h": 3600, "ms": 0.001}
_UNIT_BYTES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class Value(Protocol):
    """A kind of value."""

    @property
    def form(self) -> str: ...

    def parse(self, text: str) -> Any: ...

    def format(self, value: Any) -> str: ...


class Choice:
    """A word: a value of an enumeration, or one of `others`. `bare` is the word of an option without a value."""

    def __init__(self, words: type[enum.Enum], others: dict[str, enum.Enum] | None = None, bare: str = "") -> None:
        self._members = {str(member.value): member for member in words} | (others or {})
        self.form = "|".join(self._members)
        self.bare = bare

    def parse(self, text: str) -> enum.Enum:
        member = self._members.get(text)
        if member is None:
            raise Mistake(f"{shown(text)} is not one of {', '.join(self._members)}", did_you_mean(text, self._members))
        return member

    def format(self, value: enum.Enum) -> str:
        return str(value.value)


class Flags:
    """Words joined by `+`, each a value of an enumeration; `off` is none. The order has no meaning."""

    def __init__(self, words: type[enum.Enum]) -> None:
        self._members = {str(member.value): member for member in words}
        self.form = "off|" + "+".join(self._members)

    def parse(self, text: str) -> tuple[enum.Enum, ...]:
        if text == "off":
            return ()
        start, words = 0, text.split("+")
        for word in words:
            if word not in self._members:
                hint = did_you_mean(word, self._members) or f"words joined by +, of {', '.join(self._members)}"
                raise Mistake(f"{shown(word)} is not one of them", hint, start=start, width=max(1, len(word)))
            start += len(word) + 1
        return tuple(member for word, member in self._members.items() if word in words)

    def format(self, value: tuple[enum.Enum, ...]) -> str:
        return "+".join(str(member.value) for member in value) or "off"


class Count:
    """A whole number in a range, or a word that means a number."""

    def __init__(self, low: int, high: int, words: dict[str, int], form: str = "N") -> None:
        self._low, self._high, self._words = low, high, words
        self.form = "|".join([*words, form])

    def parse(self, text: str) -> int:
        if text in self._words:
            return self._words[text]
        if not (text.isascii() and text.isdigit()):
            words = "".join(f", or {word}" for word in self._words)
            hint = did_you_mean(text, self._words) or f"a whole number{words}"
            raise Mistake(f"{shown(text)} is not a valid number", hint)
        digits = text.lstrip("0") or "0"
        if len(digits) > len(str(self._high)) or not self._low <= int(digits) <= self._high:
            raise Mistake(f"{shown(text)} is out of range", f"from {self._low} to {self._high}")
        return int(digits)

    def format(self, value: int) -> str:
        return next((word for word, number in self._words.items() if number == value), str(value))


class Switch:
    """On or off; an option without a value is on."""

    form = "on|off"
    bare = "on"

    def parse(self, text: str) -> bool:
        if text not in ("on", "off"):
            raise Mistake(f"{shown(text)} is not one of on, off", did_you_mean(text, ("on", "off")))
        return text == "on"

    def format(self, value: bool) -> str:
        return "on" if value else "off"


class Time:
    """A duration in seconds, with the unit ms, s, m or h; fractions are allowed, and `off` is 0.

    `zero_s` is the value of a written 0, if that is not `off`. Without `never` it cannot be off.
    """

    def __init__(self, zero_s: float = 0.0, *, never: bool = True) -> None:
        self._zero_s = zero_s
        self._never = never
        self.form = "TIME|off" if never else "TIME"

    def parse(self, text: str) -> float:
        if text == "off" and self._never:
            return 0.0
        match = _TIME.fullmatch(text)
        if match is None:
            also = ", or off" if self._never else ""
            raise Mistake(f"{shown(text)} is not a valid time", f"a number with s, m or h, such as 90s or 1.5h{also}")
        number, unit = float(match[1]), match[2]
        if not number:
            if not self._never:
                raise Mistake(f"{shown(text)} is not a valid time", "a time above 0")
            return self._zero_s
        # Rounded because of the multiplication: 1.1h is 3960 s, not 3960.0000000000005.
        seconds = number if _UNIT_S[unit] == 1 else round(number * _UNIT_S[unit], 6)
        if seconds > TIME_S_MAX:
            raise Mistake(f"{shown(text)} is longer than a year", "write off for no limit" if self._never else "")
        if seconds < TIME_S_MIN:
            hint = "write off for no limit" if self._never else ""
            raise Mistake(f"{shown(text)} is shorter than a millisecond", hint)
        return seconds

    def format(self, value: float) -> str:
        if not value:
            return "off"
        if value == int(value):
            unit = next(unit for unit in ("h", "m", "s") if not value % _UNIT_S[unit])
            return f"{int(value) // _UNIT_S[unit]}{unit}"
        return f"{value!r}s"


class Size:
    """A number of bytes, with K, M or G for 1024, 1024² and 1024³."""

    form = "SIZE"

    def parse(self, text: str) -> int:
        match = _SIZE.fullmatch(text)
        if match is None:
            raise Mistake(f"{shown(text)} is not a valid size", "bytes, or a number with K, M or G, such as 64K")
        size = int(match[1]) * _UNIT_BYTES[match[2].upper()]
        if not 1 <= size <= SIZE_BYTES_MAX:
            raise Mistake(f"{shown(text)} is out of range", "from 1 byte to 1G")
        return size

    def format(self, value: int) -> str:
        unit = next(unit for unit in ("G", "M", "K", "") if not value % _UNIT_BYTES[unit])
        return f"{value // _UNIT_BYTES[unit]}{unit}"


class KeepAliveForm:
    """TCP keep-alive: `on`, `off`, or the seconds before the first probe, the seconds between probes, their number."""

    form = "on|off|IDLE:INTERVAL:COUNT"

    def parse(self, text: str) -> KeepAlive:
        if text == "on":
            return KeepAlive()
        if text == "off":
            return KeepAlive(idle_s=0)
        parts = text.split(":")
        if len(parts) != 3:
            raise Mistake(f"{shown(text)} is not a valid keep-alive", f"{self.form}, such as 60:10:6")
        start, numbers = 0, []
        for part, name, low, high in (
            (parts[0], "IDLE", 0, KEEPALIVE_S_MAX),
            (parts[1], "INTERVAL", 1, KEEPALIVE_S_MAX),
            (parts[2], "COUNT", 1, KEEPALIVE_COUNT_MAX),
        ):
            numbers.append(self._number(part, name, low, high, start))
            start += len(part) + 1
        return KeepAlive(*numbers)

    @staticmethod
    def _number(part: str, name: str, low: int, high: int, start: int) -> int:
        try:
            seconds = Time().parse(part) if name != "COUNT" else Count(low, high, {}).parse(part)
        except Mistake as mistake:
            raise Mistake(f"{name}: {mistake.message}", mistake.hint, start=start, width=len(part)) from None
        if seconds != int(seconds) or not low <= seconds <= high:
            raise Mistake(
                f"{name}: {shown(part)} is out of range",
                f"whole {'seconds ' if name != 'COUNT' else ''}from {low} to {high}",
                start=start,
                width=len(part),
            )
        return int(seconds)

    def format(self, value: KeepAlive) -> str:
        if value == KeepAlive(idle_s=0):
            return "off"
        return f"{value.idle_s}:{value.interval_s}:{value.count}"


class PrefixPair:
    """Two prefix lengths, for IPv4 and IPv6 addresses."""

    form = "IPV4/IPV6"

    def parse(self, text: str) -> SourcePrefix:
        ipv4, slash, ipv6 = text.partition("/")
        if not slash:
            raise Mistake(f"{shown(text)} is not two prefix lengths", "of IPv4 and of IPv6 addresses, such as 32/64")
        lengths, start = [], 0
        for part, most in ((ipv4, PREFIX_IPV4_MAX), (ipv6, PREFIX_IPV6_MAX)):
            try:
                lengths.append(Count(0, most, {}).parse(part))
            except Mistake as mistake:
                raise Mistake(mistake.message, mistake.hint, start=start, width=max(1, len(part))) from None
            start += len(part) + 1
        return SourcePrefix(*lengths)

    def format(self, value: SourcePrefix) -> str:
        return f"{value.ipv4}/{value.ipv6}"


class FileName:
    """A file name, or with the `form` GLOB a pattern of names; without the quotes around it."""

    def __init__(self, form: str = "FILE") -> None:
        self.form = form

    def parse(self, text: str) -> str:
        if not text:
            raise Mistake("the name between the quotes is empty")
        return text

    def format(self, value: str) -> str:
        """The name, in quotes if it needs them.

        Raises `ValueError` for a name that the language cannot express.
        """
        if not value or any(char in value for char in "\0\r\n"):
            raise ValueError(f"a configuration cannot contain the file name {value!r}")
        if " " not in value and "\t" not in value and value[0] not in '"#':
            return value
        if '"' in value:
            raise ValueError(f"a configuration cannot contain the file name {value!r}: it has quotes and blanks")
        return f'"{value}"'


class AccessPattern:
    """A pattern of `allow` and `deny`; kept as written."""

    form = "PATTERN"

    def parse(self, text: str) -> str:
        if text.lower() in _EVERYBODY:
            raise Mistake(f"{shown(text)} is not a valid pattern", "write *, which matches every address")
        try:
            compile_pattern(text)
        except PatternError as error:
            raise Mistake(f"{shown(text)} is not a valid pattern: {error.message}", error.hint) from None
        return text

    def format(self, value: str) -> str:
        return value


class SourceAddress:
    """The local address of outgoing connections."""

    form = "ADDRESS"

    def parse(self, text: str) -> str:
        if text.startswith(UNIX_PREFIX):
            raise Mistake("the source address of a connection cannot be a unix socket", "an address of this machine")
        parse_host(text)
        return text[1:-1] if text.startswith("[") else text

    def format(self, value: str) -> str:
        return value
