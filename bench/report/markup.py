"""The lab's Markdown as HTML: headings, tables, lists, code, bold; nothing else is in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape

__all__ = ["parts_of"]

_CODE = re.compile(r"`([^`]+)`")
_BOLD = re.compile(r"\*\*([^*]+)\*\*")
_RULE = re.compile(r"^\|[-:|\s]+\|$")


def parts_of(markdown: str) -> list[tuple[str, str]]:
    """Title and HTML of each part that a heading of the second level begins; the text before the first is left out."""
    parts = []
    for part in re.split(r"^## ", markdown, flags=re.MULTILINE)[1:]:
        title, _, text = part.partition("\n")
        parts.append((title, "\n".join(_blocks(text.strip().split("\n\n")))))
    return parts


def _blocks(blocks: list[str]) -> Iterator[str]:
    for block in blocks:
        lines = block.strip("\n").split("\n")
        if lines[0].startswith("### "):
            yield f"<h4>{_inline(lines[0][4:])}</h4>"
        elif lines[0].startswith("|"):
            yield _table(lines)
        elif lines[0].startswith("- "):
            items = "".join(f"<li>{_inline(line[2:])}</li>" for line in lines)
            yield f'<ul class="notes">{items}</ul>'
        elif lines[0]:
            yield f'<p class="soft">{_inline(" ".join(lines))}</p>'


def _table(lines: list[str]) -> str:
    head, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines if not _RULE.match(line))
    titles = "".join(f"<th>{_inline(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{_inline(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'


def _inline(text: str) -> str:
    return _BOLD.sub(r"<b>\1</b>", _CODE.sub(r"<code>\1</code>", escape(text)))
