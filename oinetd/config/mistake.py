"""Error messages about a configuration: quoted words and suggested remedies.

A parser of a word does not know the position of the word. It raises a `Mistake`, and the caller, which knows the
position, makes a `Problem` of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

__all__ = ["NEAR_ENOUGH", "Mistake", "did_you_mean", "nearest", "printable", "shown"]

SHOWN_CHARS_MAX = 60
"""A longer quoted word is cut, so that a message stays on one line."""

NEAREST_CHARS_MAX = 40
"""A longer word is no misspelled keyword, and the comparison takes the product of the lengths."""

NEAR_ENOUGH = 0.7
"""The similarity from which the first word counts as misspelled where no name is required: a directive, or an option
before a value without `=`. It is above that of words that only share letters ('hello' and 'allow': 0.6)."""


class Mistake(Exception):
    """What is wrong with one word.

    `start` is the index of the wrong part in the word, `width` its length; 0 means the rest of the word.
    """

    def __init__(self, message: str, hint: str = "", *, start: int = 0, width: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.start = start
        self.width = width


def printable(text: str) -> str:
    """`text` with U+FFFD for each character that a terminal would interpret, hide, or fail to encode.

    The length does not change, so that a caret below the text is in the right column. Tabs are kept.
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
    """The word of `known` that is most similar to `word`; empty if none is."""
    if not word or len(word) > NEAREST_CHARS_MAX:
        return ""
    return _nearest(word.lower(), tuple(known), cutoff)


@lru_cache(maxsize=1024)
def _nearest(word: str, known: tuple[str, ...], cutoff: float) -> str:
    # Imported here, because only a mistake needs it.
    from difflib import get_close_matches

    found = get_close_matches(word, known, n=1, cutoff=cutoff)
    return found[0] if found else ""


def did_you_mean(word: str, known: Iterable[str], kind: str = "words") -> str:
    """A hint with the nearest known word; empty if there is none. `kind` is what the known words are."""
    match = nearest(word, known)
    if not match:
        return ""
    if match == word.lower():
        return f"{kind} are case-sensitive: write {match}"
    return f"did you mean '{match}'?"
