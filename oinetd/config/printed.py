"""Whether a pattern of `allow` or `deny` can match any address at all, decided with an automaton of all printed texts.

An address has one printed form: no leading zeros, lower case, and in an IPv6 address `::` for the leftmost longest run
of at least two zero groups (RFC 5952, `inet_ntop`). A pattern for another form never matches. The pattern and the
automaton of all printed forms are followed in parallel; a pattern matches an address if and only if both can end
together.

The printed forms are: IPv4; IPv6; `::ffff:` and IPv4; and with some C libraries `::` and IPv4. A link-local address
also has a scope: `%` and the name of an interface.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from functools import lru_cache
from typing import Final, NamedTuple

__all__ = ["printed_example"]

GROUPS: Final = 8
SCOPE_CHARS_MAX: Final = 15
"""IFNAMSIZ of the kernel, less its NUL."""

TEXT_CHARS_MAX: Final = 39 + 1 + SCOPE_CHARS_MAX
"""The longest text: eight groups of four digits, `%`, an interface's name."""

_DIGITS: Final = "0123456789"
_HEXADECIMAL: Final = _DIGITS + "abcdef"
_SCOPE: Final = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in "/:")
_COMPATIBLE_DOTTED: Final = "." in socket.inet_ntop(socket.AF_INET6, bytes(12) + bytes([1, 2, 3, 4]))
"""Whether the C library prints `::1.2.3.4` (glibc) or `::102:304` (musl)."""


class _Literal(NamedTuple):
    """In the text before an embedded IPv4 address; `at` characters were read."""

    text: str
    at: int = 0


class _Dotted(NamedTuple):
    """In an IPv4 address: the number of the octet, and the part of it that was read.

    `first_zero` is whether `::` precedes the address and all its octets so far are 0: with two of them, another form is
    printed.
    """

    octet: int
    read: str
    first_zero: bool = False


class _Groups(NamedTuple):
    """In an IPv6 address.

    `gap` is the number of zero groups that `::` replaces, chosen at the start, 0 without `::`. `mode` is one of the
    constants below. `groups` is the number of complete groups, and the last `run` of them are zero. `read` is the part
    of the present group: `0`, or `x` for each digit, or the digits if their values matter. `local` is whether the first
    group is that of a link-local address.
    """

    gap: int
    mode: int
    after: bool = False
    groups: int = 0
    run: int = 0
    read: str = ""
    local: bool = False


class _Scope(NamedTuple):
    """In a scope; `chars` characters were read."""

    chars: int


_State = _Literal | _Dotted | _Groups | _Scope
_Place = tuple[_State, int]
"""A state, and the index in the pattern."""

_Step = tuple[_Place, str]
"""The previous place, and the character that leads from it; empty if only the pattern advanced."""

_START, _GROUP, _COLON, _FIRST_COLON, _GAP = range(5)


def printed_example(pattern: str) -> str | None:
    """A printed address that `pattern` matches; None if there is none. `*` is any run of characters, `?` any one."""
    if sum(char != "*" for char in pattern) > TEXT_CHARS_MAX:
        return None
    came_from: dict[_Place, _Step | None] = {}
    waiting: list[_Place] = [(state, 0) for state in _starts()]
    came_from.update(dict.fromkeys(waiting))
    while waiting:
        here = waiting.pop()
        state, at = here
        if not pattern[at:].strip("*") and _ends(state):
            return _text_of(came_from, here)
        wanted = pattern[at : at + 1]
        if wanted == "*" and (state, at + 1) not in came_from:
            came_from[state, at + 1] = (here, "")
            waiting.append((state, at + 1))
        if not wanted:
            continue
        behind = at if wanted == "*" else at + 1
        for chars, following in _steps(state):
            if (wanted in "*?" or wanted in chars) and (following, behind) not in came_from:
                came_from[following, behind] = (here, chars[0] if wanted in "*?" else wanted)
                waiting.append((following, behind))
    return None


def _text_of(came_from: dict[_Place, _Step | None], end: _Place) -> str:
    chars = []
    step = came_from[end]
    while step is not None:
        before, char = step
        chars.append(char)
        step = came_from[before]
    return "".join(reversed(chars))


def _starts() -> Iterator[_State]:
    yield _Dotted(0, "")
    yield _Literal("::ffff:")
    if _COMPATIBLE_DOTTED:
        yield _Literal("::")
    for gap in (0, *range(2, GROUPS + 1)):
        yield _Groups(gap, _START)


def _ends(state: _State) -> bool:
    """Whether a text may end here."""
    match state:
        case _Dotted():
            return state.octet == 3 and bool(state.read)
        case _Groups(mode=mode):
            if mode == _GAP:
                return state.groups == GROUPS - state.gap
            return (
                mode == _GROUP
                and state.groups + 1 == GROUPS - state.gap
                and (state.after or not state.gap)
                and _fits(state)
            )
        case _Scope():
            return state.chars > 0
        case _:
            return False


@lru_cache(maxsize=16384)
def _steps(state: _State) -> tuple[tuple[str, _State], ...]:
    """The next states, each with the characters that lead to it."""
    found: dict[_State, str] = {}
    for char, following in _moves(state):
        found[following] = found.get(following, "") + char
    return tuple((chars, following) for following, chars in found.items())


def _moves(state: _State) -> Iterator[tuple[str, _State]]:
    match state:
        case _Literal(text, at):
            whole = at + 1 == len(text)
            yield text[at], _Dotted(0, "", text == "::") if whole else _Literal(text, at + 1)
        case _Dotted():
            yield from _dotted_moves(state)
        case _Groups():
            yield from _group_moves(state)
            if state.local and _ends(state):
                yield "%", _Scope(0)
        case _Scope(chars):
            if chars < SCOPE_CHARS_MAX:
                yield from ((char, _Scope(chars + 1)) for char in _SCOPE)


def _dotted_moves(state: _Dotted) -> Iterator[tuple[str, _State]]:
    octet, read, first_zero = state
    if read and octet < 3:
        zero = first_zero and read == "0"
        if not (zero and octet == 1):
            yield ".", _Dotted(octet + 1, "", zero and octet == 0)
    if read != "0":
        for digit in _DIGITS:
            if int(read + digit) <= 255:
                yield digit, _Dotted(octet, read + digit, first_zero)


def _group_moves(state: _Groups) -> Iterator[tuple[str, _State]]:
    gap, mode, after, groups, run, read, _ = state
    room = groups < GROUPS - gap
    if mode == _START and gap:
        yield ":", state._replace(mode=_FIRST_COLON)
    if mode == _FIRST_COLON:
        yield ":", state._replace(mode=_GAP, after=True)
    if mode == _COLON and gap and not after and not run:
        yield ":", state._replace(mode=_GAP, after=True)
    if mode == _GROUP:
        more = groups + 1 < GROUPS - gap or (gap > 0 and not after and groups + 1 == GROUPS - gap)
        if more and _fits(state):
            yield ":", state._replace(mode=_COLON, groups=groups + 1, run=run + 1 if read == "0" else 0, read="")
        if read != "0" and len(read) < 4:
            yield from ((digit, _read(state, digit)) for digit in _HEXADECIMAL)
    elif mode in (_START, _COLON, _GAP) and room and not (mode == _GAP and _dotted_only(state)):
        for digit in _HEXADECIMAL:
            if digit != "0" or mode != _GAP:
                yield digit, _read(state, digit)


def _dotted_only(state: _Groups) -> bool:
    """Whether the text after a leading `::` is printed as IPv4."""
    return _COMPATIBLE_DOTTED and state.gap == 6 and not state.groups


def _fits(state: _Groups) -> bool:
    """Whether the present group may end here."""
    if state.read == "0":
        # The gap is the longest run of zeros, and the first one of that length.
        return state.run + 1 <= (1 if not state.gap else state.gap if state.after else state.gap - 1)
    # ::ffff:x:y is printed as IPv4.
    return not (state.read == "ffff" and state.after and not state.groups and state.gap == 5)


def _read(state: _Groups, digit: str) -> _Groups:
    """`state` with one more digit. Digits whose value does not matter become `x`."""
    read = state.read + digit
    first = not state.groups
    if first and not state.after:
        kept = read if "fe80"[: len(read)] == read or (read[:2] == "fe" and read[2:3] in ("8", "9", "a", "b")) else ""
        local = len(read) == 4 and bool(kept)
        kept = "fe8x"[: len(read)] if kept else ""
    else:
        kept = read if first and state.gap == 5 and "ffff".startswith(read) else ""
        local = state.local
    if read == "0":
        kept = "0"
    return state._replace(mode=_GROUP, read=kept or "x" * len(read), local=local)
