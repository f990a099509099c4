"""How a mistake in a configuration is told: the words that are quoted, the remedy that is suggested.

Whoever finds out that a word is wrong seldom knows where it stands. It raises a `Mistake`; the caller, who
holds the word's place, makes a `Problem` of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

__all__ = ["Mistake", "did_you_mean", "nearest", "printable", "shown"]

SHOWN_CHARS_MAX = 60
"""A quoted word is cut here, so that a message stays a line."""

NEAREST_CHARS_MAX = 40
"""A longer word is no misspelling of a keyword, and comparing takes the product of the lengths."""


class Mistake(Exception):
    """What is wrong with one word.

    `start` is where in the word the wrong part begins, `width` its length, 0 being the rest of the word.
    """

    def __init__(self, message: str, hint: str = "", *, start: int = 0, width: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.start = start
        self.width = width


def printable(text: str) -> str:
    """`text` with one U+FFFD for each character that a terminal would obey, hide, or fail to encode.

    The length stays, so that a caret below the text still stands where it should. Tabs are left alone.
    """
    if text.isprintable():
        return text
    return "".join(char if char == "\t" or char.isprintable() else "\ufffd" for char in text)


def shown(word: str) -> str:
    """`word` in quotes, for a message."""
    if len(word) > SHOWN_CHARS_MAX:
        word = word[: SHOWN_CHARS_MAX - 1] + "…"
    return f"'{printable(word)}'"


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The one of `known` that `word` most resembles, empty where none does."""
    if not word or len(word) > NEAREST_CHARS_MAX:
        return ""
    return _nearest(word.lower(), tuple(known), cutoff)


@lru_cache(maxsize=1024)
def _nearest(word: str, known: tuple[str, ...], cutoff: float) -> str:
    # Imported here, because a configuration without mistakes has no need of it.
    from difflib import get_close_matches

    found = get_close_matches(word, known, n=1, cutoff=cutoff)
    return found[0] if found else ""


def did_you_mean(word: str, known: Iterable[str], kind: str = "words") -> str:
    """The hint that names the nearest known word, empty where there is none. `kind` is what the known words are."""
    match = nearest(word, known)
    if not match:
        return ""
    if match == word.lower():
        return f"{kind} are case-sensitive: write {match}"
    return f"did you mean '{match}'?"
