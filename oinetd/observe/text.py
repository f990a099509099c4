"""Text for a terminal: numbers, times, tables. Control characters in foreign names are escaped."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Final

__all__ = ["age", "inert", "number_of", "rate", "size", "table"]

_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB")


def inert(text: str) -> str:
    """`text` with control and formatting characters replaced by escapes."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def number_of(count: int, what: str) -> str:
    """`1 rule`, `2 rules`, `3 addresses`."""
    return f"{count} {what}{('es' if what.endswith('s') else 's') * (count != 1)}"


def size(count: float) -> str:
    """A number of bytes, with three digits."""
    number, unit = float(count), 0
    while number >= 999.5 and unit < len(_UNITS) - 1:
        number, unit = number / 1000, unit + 1
    digits = 0 if unit == 0 or number >= 99.95 else 1
    return f"{number:.{digits}f} {_UNITS[unit]}"


def rate(count: float) -> str:
    """A number per second, with three digits."""
    for bound, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= bound * 0.9995:
            number = count / bound
            return f"{number:.{0 if number >= 99.95 else 1}f}{unit}"
    return f"{count:.0f}" if count >= 9.95 or count == int(count) else f"{count:.1f}"


def age(seconds: float) -> str:
    """A time, in its two largest units."""
    if seconds < 60:
        return f"{seconds:.1f}s" if seconds < 9.95 else f"{seconds:.0f}s"
    whole = int(seconds)
    for unit, name, small, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= unit:
            return f"{whole // unit}{name}{whole % unit // small:02d}{smaller}"
    return f"{whole}s"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with aligned columns; a heading that begins with `>` aligns its column to the right."""
    right = [name.startswith(">") for name in head]
    cells = [[name.lstrip(">") for name in head], *([inert(cell) for cell in row] for row in rows)]
    widths = [max(_width(row[at]) for row in cells) for at in range(len(head))]
    lines = []
    for row in cells:
        parts = []
        for at, cell in enumerate(row):
            pad = " " * (widths[at] - _width(cell))
            parts.append(pad + cell if right[at] else cell + pad)
        lines.append("  ".join(parts).rstrip())
    return lines


def _width(text: str) -> int:
    return sum(
        2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text if not unicodedata.combining(char)
    )
