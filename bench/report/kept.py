"""What is kept besides results: runs of the lab and of the capture, each a folder of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Kept", "newest_kept"]


@dataclass(frozen=True, slots=True)
class Kept:
    """One run: `facts` are what was written down of it, `directory` has the rest."""

    directory: Path
    facts: dict[str, Any]
    started: float


def newest_kept(paths: Sequence[Path]) -> dict[str, Kept]:
    """The newest run of `lab` and of `capture` in these folders, by name."""
    found: dict[str, Kept] = {}
    for name, file in (("lab", "figures.json"), ("capture", "capture.json")):
        for path in (each for folder in paths if folder.is_dir() for each in folder.glob(f"{name}-*/{file}")):
            try:
                facts = json.loads(path.read_text())
                started = float((facts["meta"] if name == "lab" else facts)["started"])
            except (ValueError, KeyError, TypeError):
                continue  # a run that did not come to its end
            if name not in found or found[name].started < started:
                found[name] = Kept(path.parent, facts, started)
    return found
