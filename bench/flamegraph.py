"""A flame graph as one SVG file: every box a function, its width the share of samples with it on the stack."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from html import escape

from bench.stacks import Stacks

__all__ = ["flamegraph"]

WIDTH = 1200
ROW = 17
MARGIN = 10
_TOP = 44
_LETTER = 6.6
_LEAST_WIDTH = 0.4
"""Boxes below this many pixels are left out: they could not be seen."""

_STYLE = """
.flame{background:#fff}.flame text{font:11px ui-monospace,monospace;fill:#111}
.flame .title{font:600 14px sans-serif;fill:#222}.flame .note{font:11px sans-serif;fill:#555}
.flame rect{stroke:#fff;stroke-width:.6}.flame g:hover>rect{stroke:#000}
"""
"""On paper in either scheme of colours; of its own class, so that it may stand in a page."""


@dataclass
class _Frame:
    name: str
    count: int = 0
    children: dict[str, _Frame] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        return 1 + max((child.depth for child in self.children.values()), default=0)


def flamegraph(stacks: Stacks, title: str) -> str:
    """The SVG; function names are shown in full when the pointer rests on a box."""
    root = _Frame("all")
    for stack, count in stacks.items():
        frame = root
        frame.count += count
        for name in stack:
            frame = frame.children.setdefault(name, _Frame(name))
            frame.count += count
    depth = root.depth
    height = _TOP + depth * ROW + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="flame" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}">',
        f"<style>{_STYLE}</style>",
        f'<text class="title" x="{MARGIN}" y="18">{escape(title)}</text>',
        f'<text class="note" x="{MARGIN}" y="34">{root.count} samples of processor time; point at a box</text>',
    ]
    if root.count:
        _draw(root, MARGIN, 0, (WIDTH - 2 * MARGIN) / root.count, height - MARGIN - ROW, root.count, parts)
    parts.append("</svg>\n")
    return "\n".join(parts)


def _draw(frame: _Frame, x: float, level: int, scale: float, bottom: float, total: int, parts: list[str]) -> None:
    """A frame and, above it, its callees; as deep as the deepest stack, which perf bounds at 127."""
    width = frame.count * scale
    if width < _LEAST_WIDTH:
        return
    y = bottom - level * ROW
    letters = int((width - 6) / _LETTER)
    label = frame.name if len(frame.name) <= letters else f"{frame.name[: letters - 1]}…" if letters > 3 else ""
    tip = f"{frame.name}: {frame.count} samples, {100 * frame.count / total:.1f} %"
    parts.append(
        f'<g><title>{escape(tip)}</title><rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{ROW}" '
        f'rx="2" fill="{_colour(frame.name)}"/>'
        + (f'<text x="{x + 3:.1f}" y="{y + 12:.1f}">{escape(label)}</text>' if label else "")
        + "</g>"
    )
    for name in sorted(frame.children):
        child = frame.children[name]
        _draw(child, x, level + 1, scale, bottom, total, parts)
        x += child.count * scale


def _colour(name: str) -> str:
    """The same colour for the same name in every graph, with warm hues for all functions."""
    seed = zlib.crc32(name.encode())
    return f"hsl({20 + seed % 35} {65 + seed // 64 % 25}% {62 + seed // 4096 % 14}%)"
